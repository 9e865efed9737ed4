package kubeproxy_test

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"

	"fairlead.dev/fairlead/internal/kubeproxy"
	"fairlead.dev/fairlead/test/netlab"
)

// left makes, with the making of iptables named in $ipt, what kube-proxy in iptables mode
// leaves, among the rules of a kubelet, of kube-router and of a CNI plugin.
const left = `
$ipt -t mangle -N KUBE-PROXY-CANARY
$ipt -t mangle -N KUBE-KUBELET-CANARY
$ipt -t mangle -N KUBE-IPTABLES-HINT
$ipt -t nat -N KUBE-SERVICES
$ipt -t nat -N KUBE-NODEPORTS
$ipt -t nat -N KUBE-POSTROUTING
$ipt -t nat -N KUBE-MARK-MASQ
$ipt -t nat -N KUBE-MARK-DROP
$ipt -t nat -N KUBE-SVC-NPX46M4PTMTKRN6Y
$ipt -t nat -N KUBE-SEP-ABCDEFGHIJKLMNOP
$ipt -t nat -N CNI-HOSTPORT-DNAT
$ipt -t nat -A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
$ipt -t nat -A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
$ipt -t nat -A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
$ipt -t nat -A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
$ipt -t nat -A POSTROUTING -s $net -m comment --comment "one with -j KUBE-SERVICES" -j MASQUERADE
$ipt -t nat -A KUBE-SERVICES -d $vip -p tcp -m comment --comment "default/web cluster IP" -m tcp --dport 80 -j KUBE-SVC-NPX46M4PTMTKRN6Y
$ipt -t nat -A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
$ipt -t nat -A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
$ipt -t nat -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
$ipt -t nat -A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE --random-fully
$ipt -t nat -A KUBE-SVC-NPX46M4PTMTKRN6Y ! -s $net -d $vip -p tcp -m tcp --dport 80 -j KUBE-MARK-MASQ
$ipt -t nat -A KUBE-SVC-NPX46M4PTMTKRN6Y -m statistic --mode random --probability 0.5 -j KUBE-SEP-ABCDEFGHIJKLMNOP
$ipt -t nat -A KUBE-SEP-ABCDEFGHIJKLMNOP -s $pod -j KUBE-MARK-MASQ
$ipt -t nat -A KUBE-SEP-ABCDEFGHIJKLMNOP -p tcp -m tcp -j DNAT --to-destination $backend
$ipt -t filter -N KUBE-FIREWALL
$ipt -t filter -N KUBE-FORWARD
$ipt -t filter -N KUBE-NODEPORTS
$ipt -t filter -N KUBE-EXTERNAL-SERVICES
$ipt -t filter -N KUBE-ROUTER-INPUT
$ipt -t filter -A INPUT -j KUBE-ROUTER-INPUT
$ipt -t filter -A INPUT -m comment --comment "kubernetes health check service ports" -j KUBE-NODEPORTS
$ipt -t filter -A INPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes externally-visible service portals" -j KUBE-EXTERNAL-SERVICES
$ipt -t filter -A INPUT -j KUBE-FIREWALL
$ipt -t filter -A INPUT -p tcp -m multiport --dports 22,443 -m recent --name seen --set -j ACCEPT
$ipt -t filter -A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
$ipt -t filter -A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
$ipt -t filter -A KUBE-FIREWALL ! -s $lo -d $lo -j DROP
`

// kept is what of left is not kube-proxy's, as iptables-save writes it.
const kept = `*filter
:KUBE-FIREWALL -
:KUBE-ROUTER-INPUT -
-A INPUT -j KUBE-ROUTER-INPUT
-A INPUT -j KUBE-FIREWALL
-A INPUT -p tcp -m multiport --dports 22,443 -m recent --set --name seen --mask $mask --rsource -j ACCEPT
-A KUBE-FIREWALL ! -s $lo -d $lo -j DROP
*mangle
:KUBE-IPTABLES-HINT -
:KUBE-KUBELET-CANARY -
*nat
:CNI-HOSTPORT-DNAT -
:KUBE-MARK-DROP -
-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
-A POSTROUTING -s $net -m comment --comment "one with -j KUBE-SERVICES" -j MASQUERADE
`

// making is one making of iptables for one family.
type making struct{ name, program, words string }

func makings() (out []making) {
	for _, family := range []string{"", "6"} {
		for _, kind := range []string{"nft", "legacy"} {
			words := "table ip" + family + " %s of iptables-nft"
			if kind == "legacy" {
				words = "table %s of legacy iptables, IPv" + cmp.Or(family, "4")
			}
			program := "ip" + family + "tables-" + kind
			out = append(out, making{name: program, program: program, words: words})
		}
	}
	return out
}

// expand puts the program and addresses of its family into a script or a listing.
func (m making) expand(text string) string {
	values := []string{"$ipt", m.program + " -w 5", "$net", "10.244.0.0/16", "$vip", "10.96.0.9/32", "$pod", "10.244.1.2/32",
		"$backend", "10.244.1.2:8080", "$lo", "127.0.0.0/8", "$mask", "255.255.255.255"}
	if strings.HasPrefix(m.program, "ip6") {
		values = []string{"$ipt", m.program + " -w 5", "$net", "fd00:10:244::/56", "$vip", "fd00:10:96::9/128", "$pod", "fd00:10:244::2/128",
			"$backend", "[fd00:10:244::2]:8080", "$lo", "::1/128", "$mask", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"}
	}
	return strings.NewReplacer(values...).Replace(text)
}

// saved returns what iptables-save says, but for comments, counters, and built-in chains.
func (m making) saved(t *testing.T, host *netlab.Host) string {
	t.Helper()
	return on(t, host, "for t in filter mangle nat; do "+m.program+"-save -t $t; done | grep -v -e '^#' -e '^COMMIT' -e 'ACCEPT \\[' | sed 's/ \\[0:0\\]$//' || true")
}

func remove(t *testing.T, host *netlab.Host) (report kubeproxy.Report) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	must(t, host.Do(func() (err error) { report, err = kubeproxy.Remove(ctx); return err }))
	return report
}

// wantNothing removes once more: there is nothing left, and that is no error.
func wantNothing(t *testing.T, host *netlab.Host, kept ...string) {
	t.Helper()
	if diff := gocmp.Diff(kubeproxy.Report{Kept: kept}, remove(t, host)); diff != "" {
		t.Errorf("the second time (-want +got):\n%s", diff)
	}
}

// TestRemoveChains: kube-proxy's chains go, with the rules that lead to them, and
// everybody else's rules stay as they are.
func TestRemoveChains(t *testing.T) {
	for _, m := range makings() {
		t.Run(m.name, func(t *testing.T) {
			host := newHost(t)
			on(t, host, m.expand(left))
			want := kubeproxy.Report{Removed: []string{
				"chains KUBE-MARK-MASQ, KUBE-NODEPORTS, KUBE-POSTROUTING and 3 more of " + fmt.Sprintf(m.words, "nat"),
				"chains KUBE-EXTERNAL-SERVICES, KUBE-FORWARD, KUBE-NODEPORTS of " + fmt.Sprintf(m.words, "filter"),
				"chains KUBE-PROXY-CANARY of " + fmt.Sprintf(m.words, "mangle"),
			}}
			if diff := gocmp.Diff(want, remove(t, host)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if diff := gocmp.Diff(m.expand(kept), m.saved(t, host)); diff != "" {
				t.Errorf("what is left (-want +got):\n%s", diff)
			}
			wantNothing(t, host)
		})
	}
}

// TestKeepWhatOthersUse: a chain that somebody else's rules lead to stays, with its
// rules, and it is said.
func TestKeepWhatOthersUse(t *testing.T) {
	for _, m := range makings() {
		t.Run(m.name, func(t *testing.T) {
			host := newHost(t)
			on(t, host, m.expand(left+`
$ipt -t nat -A CNI-HOSTPORT-DNAT -s $pod -j KUBE-MARK-MASQ`))
			stays := "chains KUBE-MARK-MASQ of " + fmt.Sprintf(m.words, "nat") + ", which somebody else's rules lead to"
			if diff := gocmp.Diff([]string{stays}, remove(t, host).Kept); diff != "" {
				t.Errorf("kept (-want +got):\n%s", diff)
			}
			out := m.saved(t, host)
			for _, rule := range []string{"-A KUBE-MARK-MASQ -j MARK", m.expand("-A CNI-HOSTPORT-DNAT -s $pod -j KUBE-MARK-MASQ")} {
				if !strings.Contains(out, rule) {
					t.Errorf("no %q in\n%s", rule, out)
				}
			}
			if strings.Contains(out, "KUBE-SVC-") {
				t.Errorf("chains of Services are left:\n%s", out)
			}
			wantNothing(t, host, stays)
		})
	}
}

// TestRemoveManyChains: as many as no single transaction holds without privileges.
func TestRemoveManyChains(t *testing.T) {
	host := newHost(t)
	on(t, host, `
iptables-nft -t nat -N KUBE-SERVICES
iptables-nft -t nat -A OUTPUT -j KUBE-SERVICES
for n in $(seq 0 9); do
	from=$((n*300+1)) to=$((n*300+300))
	{
		echo "*nat"
		for i in $(seq $from $to); do echo ":KUBE-SVC-$i - [0:0]"; echo ":KUBE-SEP-$i - [0:0]"; done
		for i in $(seq $from $to); do echo "-A KUBE-SERVICES -p tcp --dport $i -j KUBE-SVC-$i"; echo "-A KUBE-SVC-$i -j KUBE-SEP-$i"; done
		echo COMMIT
	} | iptables-nft-restore --noflush
done`)
	want := []string{"chains KUBE-SEP-1, KUBE-SEP-10, KUBE-SEP-100 and 5998 more of table ip nat of iptables-nft"}
	if diff := gocmp.Diff(want, remove(t, host).Removed); diff != "" {
		t.Errorf("removed (-want +got):\n%s", diff)
	}
	if out := on(t, host, "iptables-nft-save"); strings.Contains(out, "KUBE") {
		t.Errorf("left is\n%s", out)
	}
}

// TestRemoveTables: those of nftables mode go, others' do not.
func TestRemoveTables(t *testing.T) {
	host := newHost(t)
	on(t, host, `nft -f - <<'END'
table ip kube-proxy {
	chain services { }
	chain nat-output {
		type nat hook output priority -100
		jump services
	}
}
table ip6 kube-proxy {
	map service-ips { type ipv6_addr : verdict; }
}
table inet kube-proxy { }
table ip fairlead { }
END`)
	want := kubeproxy.Report{Removed: []string{"table ip kube-proxy of nftables", "table ip6 kube-proxy of nftables"}}
	if diff := gocmp.Diff(want, remove(t, host)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if out := strings.Join(strings.Fields(on(t, host, "nft list tables")), " "); out != "table inet kube-proxy table ip fairlead" {
		t.Errorf("left are: %s", out)
	}
	wantNothing(t, host)
}

// TestRemoveIPVS: link and IP sets of ipvs mode go, after the rules that use them. The
// link is a bridge here, since not every kernel has dummies.
func TestRemoveIPVS(t *testing.T) {
	host := newHost(t)
	on(t, host, `
ip link add kube-ipvs0 type bridge
ip addr add 10.96.0.9/32 dev kube-ipvs0
ipset create KUBE-CLUSTER-IP hash:ip,port
ipset create KUBE-6-CLUSTER-IP hash:ip,port family inet6
ipset create KUBE-6-LOAD-BALANCER-SOURCE-CID hash:ip,port,net family inet6
ipset create KUBE-SRC-MINE hash:ip
{ for i in $(seq 2000); do echo "add KUBE-CLUSTER-IP 10.96.$((i/250)).$((i%250)),tcp:80"; done; } | ipset restore
iptables-nft -t nat -N KUBE-SERVICES
iptables-nft -t nat -A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
iptables-nft -t nat -A KUBE-SERVICES -m set --match-set KUBE-CLUSTER-IP dst,dst -j ACCEPT
ip6tables-legacy -t nat -N KUBE-SERVICES
ip6tables-legacy -t nat -A KUBE-SERVICES -m set --match-set KUBE-6-CLUSTER-IP dst,dst -j ACCEPT`)
	want := kubeproxy.Report{Removed: []string{
		"chains KUBE-SERVICES of table ip nat of iptables-nft", "chains KUBE-SERVICES of table nat of legacy iptables, IPv6",
		"link kube-ipvs0", "IP set KUBE-CLUSTER-IP", "IP set KUBE-6-CLUSTER-IP", "IP set KUBE-6-LOAD-BALANCER-SOURCE-CID",
	}}
	if diff := gocmp.Diff(want, remove(t, host)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if out := strings.TrimSpace(on(t, host, "ipset list -n; ip -br link show type bridge")); out != "KUBE-SRC-MINE" {
		t.Errorf("left are: %s", out)
	}
	wantNothing(t, host)
}

// TestRemoveWithoutLegacyProgram: what cannot be looked at is said, and the rest goes.
func TestRemoveWithoutLegacyProgram(t *testing.T) {
	host := newHost(t)
	on(t, host, "nft add table ip kube-proxy; iptables-legacy -t nat -N KUBE-SERVICES")
	t.Setenv("PATH", t.TempDir())
	must(t, host.Do(func() error {
		report, err := kubeproxy.Remove(t.Context())
		if diff := gocmp.Diff([]string{"table ip kube-proxy of nftables"}, report.Removed); diff != "" {
			t.Errorf("removed (-want +got):\n%s", diff)
		}
		if want := "table nat of legacy iptables, IPv4: iptables-legacy-save is not installed here"; err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want one with %q", err, want)
		}
		return nil
	}))
}
