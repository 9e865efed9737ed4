package dataplane_test

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/types"

	"fairlead.dev/fairlead/internal/dataplane"
	"fairlead.dev/fairlead/internal/ipfamily"
	"fairlead.dev/fairlead/internal/service"
)

// backends returns endpoints by family, written as ADDRESS:PORT; those of 10.244.1.0/24
// and fd00:10:244:1::/64 are on this node.
func backends(s ...string) (out service.Backends) {
	for _, b := range s {
		a := netip.MustParseAddrPort(b)
		local := strings.HasPrefix(b, "10.244.1.") || strings.HasPrefix(b, "[fd00:10:244:1::")
		f := ipfamily.Of(a.Addr())
		out[f] = append(out[f], service.Backend{Addr: a, Local: local, Weight: 1})
	}
	return out
}

// installed is what the kernel has once the Services are written, on a node with the
// address 172.18.0.11.
func installed(cfg dataplane.Config, services ...*service.Service) dataplane.Installed {
	var s service.Snapshot
	edit := s.Services.Edit()
	for _, svc := range services {
		edit.Set(svc.Name, svc)
	}
	s.Services = edit.Map()
	s.NodePortAddrs, s.NodeAddrs = addrs("172.18.0.11"), addrs("172.18.0.11", "fd00:172:18::11")
	if cfg.Local.CIDRs {
		s.PodCIDRs = podCIDRs
	}
	s.ServiceCIDRs = prefixes("10.96.0.0/16", "fd00:10:96::/108")
	return dataplane.Installed{Config: cfg, Ruleset: dataplane.Compile(dataplane.Program{}, &s).Ruleset, Ours: true}
}

// web is a Service of three endpoints, of which one is on this node, with edits.
func web(edit func(*service.Service)) *service.Service {
	all := backends("10.244.1.2:8080", "10.244.2.2:8080", "10.244.2.3:8080", "[fd00:10:244:1::2]:8080")
	out := &service.Service{
		Name:       types.NamespacedName{Namespace: "default", Name: "web"},
		ClusterIPs: addrs("10.96.0.10", "fd00:10:96::a"),
		Ports:      []service.Port{{Protocol: service.TCP, Port: 80, NodePort: 30080, Cluster: all, Local: backends("10.244.1.2:8080")}},
	}
	if edit != nil {
		edit(out)
	}
	return out
}

func TestWords(t *testing.T) {
	lbIP := func(s *service.Service) { s.LoadBalancerIPs = addrs("172.18.0.200") }
	for name, tc := range map[string]struct {
		cfg      dataplane.Config
		edit     func(*service.Service)
		at       string
		protocol service.Protocol
		want     string
	}{
		"a ClusterIP": {cfg: byCIDRs, at: "10.96.0.10:80", protocol: service.TCP, want: `
10.96.0.10:80/TCP: ClusterIP
  from pods (source in 10.244.0.0/16): to one of 3 endpoints, at random, source kept
      chains prerouting > cluster > dispatch > random_3
  from elsewhere: to one of 3 endpoints, at random, masqueraded
      chains prerouting > cluster > mark_masquerade > dispatch > random_3
  from this node: to one of 3 endpoints, at random, masqueraded
      chains output > mark_masquerade > dispatch > random_3
  endpoints:
      10.244.1.2:8080  (no pod known)  masqueraded when it reaches itself
      10.244.2.2:8080  default/web-2
      10.244.2.3:8080  (no pod known)
  in table ip fairlead:
      map cluster_ports has 10.96.0.10 . tcp . 80 : 0:4003, leads to chain random_3
      map endpoints has 0:4000 . 0x00000000 : 10.244.1.2 . 8080
`},
		"a ClusterIP of IPv6 with one endpoint": {cfg: byCIDRs, at: "[fd00:10:96::a]:80", protocol: service.TCP, want: `
[fd00:10:96::a]:80/TCP: ClusterIP
  from pods (source in fd00:10:244::/48): to the one endpoint, source kept
      chains prerouting > cluster > dispatch > random_1
  from elsewhere: to the one endpoint, masqueraded
      chains prerouting > cluster > mark_masquerade > dispatch > random_1
  from this node: to the one endpoint, masqueraded
      chains output > mark_masquerade > dispatch > random_1
  endpoints:
      [fd00:10:244:1::2]:8080  (no pod known)  masqueraded when it reaches itself
  in table ip6 fairlead:
      map cluster_ports has fd00:10:96::a . tcp . 80 : 0:4001, leads to chain random_1
      map endpoints has 0:4000 . 0x00000000 : fd00:10:244:1::2 . 8080
`},
		"masqueradeAll": {cfg: dataplane.Config{Local: byCIDRs.Local, MasqueradeAll: true}, at: "10.96.0.10:80", protocol: service.TCP, want: `
10.96.0.10:80/TCP: ClusterIP
  from pods and elsewhere: to one of 3 endpoints, at random, masqueraded
      chains prerouting > cluster > mark_masquerade > dispatch > random_3
  from this node: to one of 3 endpoints, at random, masqueraded
      chains output > mark_masquerade > dispatch > random_3
  endpoints:
      10.244.1.2:8080  (no pod known)  masqueraded when it reaches itself
      10.244.2.2:8080  default/web-2
      10.244.2.3:8080  (no pod known)
  in table ip fairlead:
      map cluster_ports has 10.96.0.10 . tcp . 80 : 0:4003, leads to chain random_3
      map endpoints has 0:4000 . 0x00000000 : 10.244.1.2 . 8080
`},
		"nothing tells pods, internal policy Local": {at: "10.96.0.10:80", protocol: service.TCP, want: `
10.96.0.10:80/TCP: ClusterIP
  from pods and elsewhere: to the one endpoint on this node, source kept
      chains prerouting > cluster > dispatch > random_1
  from this node: to the one endpoint on this node, masqueraded
      chains output > mark_masquerade > dispatch > random_1
  endpoints on this node:
      10.244.1.2:8080  (no pod known)  masqueraded when it reaches itself
  in table ip fairlead:
      map cluster_ports has 10.96.0.10 . tcp . 80 : 0:6001, leads to chain random_1
      map endpoints has 0:6000 . 0x00000000 : 10.244.1.2 . 8080
`,
			edit: func(s *service.Service) { s.InternalLocal = true }},
		"pods by bridge, affinity": {cfg: dataplane.Config{Local: dataplane.LocalTraffic{Bridge: "cni0"}}, at: "10.96.0.10:80", protocol: service.TCP, want: `
10.96.0.10:80/TCP: ClusterIP
  from pods (coming in by bridge cni0): to one of 3 endpoints, that of the client's last connection up to 10800 s ago, else at random, source kept
      chains prerouting > cluster > dispatch > affinity_10800_random_3
  from elsewhere: to one of 3 endpoints, that of the client's last connection up to 10800 s ago, else at random, masqueraded
      chains prerouting > cluster > mark_masquerade > dispatch > affinity_10800_random_3
  from this node: to one of 3 endpoints, that of the client's last connection up to 10800 s ago, else at random, masqueraded
      chains output > mark_masquerade > dispatch > affinity_10800_random_3
  endpoints:
      10.244.1.2:8080  (no pod known)  masqueraded when it reaches itself
      10.244.2.2:8080  default/web-2
      10.244.2.3:8080  (no pod known)
  in table ip fairlead:
      map cluster_ports has 10.96.0.10 . tcp . 80 : 0:4042, leads to chain affinity_10800_random_3
      map affinity_slots has 0:4000 . 0x00000000 : 0:4001
      map affinity_endpoints has 0:4001 : 10.244.1.2 . 8080
`,
			edit: func(s *service.Service) { s.Affinity = 3 * time.Hour }},
		"pods by prefix, weights in turns": {cfg: dataplane.Config{Local: dataplane.LocalTraffic{InterfacePrefix: "veth"}}, at: "10.96.0.10:80", protocol: service.TCP, want: `
10.96.0.10:80/TCP: ClusterIP
  from pods (coming in by an interface veth*): to one of 3 endpoints, in turns, source kept
      chains prerouting > cluster > dispatch > turns_4_of_2
  from elsewhere: to one of 3 endpoints, in turns, masqueraded
      chains prerouting > cluster > mark_masquerade > dispatch > turns_4_of_2
  from this node: to one of 3 endpoints, in turns, masqueraded
      chains output > mark_masquerade > dispatch > turns_4_of_2
  endpoints:
      10.244.1.2:8080  1 of 4 slots (25%)  (no pod known)  masqueraded when it reaches itself
      10.244.2.2:8080  2 of 4 slots (50%)  default/web-2
      10.244.2.3:8080  1 of 4 slots (25%)  (no pod known)
  in table ip fairlead:
      map cluster_ports has 10.96.0.10 . tcp . 80 : 0:4042, leads to chain turns_4_of_2
      map endpoints has 0:4000 . 0x00000000 : 10.244.1.2 . 8080
`,
			edit: func(s *service.Service) {
				s.Scheduler = service.RoundRobin
				s.Ports[0].Cluster[ipfamily.IPv4][1].Weight = 2
			}},
		"maglev": {cfg: byCIDRs, at: "10.96.0.10:80", protocol: service.TCP, want: `
10.96.0.10:80/TCP: ClusterIP
  from pods (source in 10.244.0.0/16): to one of 3 endpoints, by a hash of the client's address, source kept
      chains prerouting > cluster > dispatch > hash_1021
  from elsewhere: to one of 3 endpoints, by a hash of the client's address, masqueraded
      chains prerouting > cluster > mark_masquerade > dispatch > hash_1021
  from this node: to one of 3 endpoints, by a hash of the client's address, masqueraded
      chains output > mark_masquerade > dispatch > hash_1021
  endpoints:
      10.244.1.2:8080  341 of 1021 slots (33.4%)  (no pod known)  masqueraded when it reaches itself
      10.244.2.2:8080  340 of 1021 slots (33.3%)  default/web-2
      10.244.2.3:8080  340 of 1021 slots (33.3%)  (no pod known)
  in table ip fairlead:
      map cluster_ports has 10.96.0.10 . tcp . 80 : 0:4042, leads to chain hash_1021
      map endpoints has 0:4000 . 0x00000000 : 10.244.1.2 . 8080
`,
			edit: func(s *service.Service) { s.Scheduler = service.Maglev }},
		"no endpoints": {cfg: byCIDRs, at: "10.96.0.10:80", protocol: service.UDP, want: `
10.96.0.10:80/UDP: ClusterIP
  from pods (source in 10.244.0.0/16): refused with ICMP port unreachable: there are no endpoints
      chains prerouting > cluster > dispatch > refuse
  from elsewhere: refused with ICMP port unreachable: there are no endpoints
      chains prerouting > cluster > mark_masquerade > dispatch > refuse
  from this node: refused with ICMP port unreachable: there are no endpoints
      chains output > mark_masquerade > dispatch > refuse
  in table ip fairlead:
      map cluster_ports has 10.96.0.10 . udp . 80 : 0:4000, leads to chain refuse
`,
			edit: func(s *service.Service) {
				s.Ports[0].Protocol, s.Ports[0].Cluster, s.Ports[0].Local = service.UDP, service.Backends{}, service.Backends{}
			}},
		"an LB IP": {cfg: byCIDRs, at: "172.18.0.200:80", protocol: service.TCP, want: `
172.18.0.200:80/TCP: LoadBalancer or external IP
  from pods and elsewhere: to one of 3 endpoints, at random, masqueraded
      chains prerouting > external > mark_masquerade > dispatch > random_3
  from this node: to one of 3 endpoints, at random, masqueraded
      chains output > own_external > mark_masquerade > dispatch > random_3
  endpoints:
      10.244.1.2:8080  (no pod known)  masqueraded when it reaches itself
      10.244.2.2:8080  default/web-2
      10.244.2.3:8080  (no pod known)
  in table ip fairlead:
      map external_ports has 172.18.0.200 . tcp . 80 : 0:4003, leads to chain random_3
      map endpoints has 0:4000 . 0x00000000 : 10.244.1.2 . 8080
`, edit: lbIP},
		"an LB IP of policy Local with source ranges": {cfg: byCIDRs, at: "172.18.0.200:80", protocol: service.TCP, want: `
172.18.0.200:80/TCP: LoadBalancer or external IP
  from pods (source in 10.244.0.0/16): to one of 3 endpoints, at random, source kept; dropped where the source is not in 192.0.2.7/32, 198.51.100.0/24
      chains prerouting > external > external_local > dispatch > random_3
  from elsewhere: to the one endpoint on this node, source kept; dropped where the source is not in 192.0.2.7/32, 198.51.100.0/24
      chains prerouting > external > external_local > dispatch > random_1
  from this node: dropped: no address of this node is in the source ranges
      chains output > own_external
  endpoints:
      10.244.1.2:8080  (no pod known)  masqueraded when it reaches itself
      10.244.2.2:8080  default/web-2
      10.244.2.3:8080  (no pod known)
  endpoints on this node:
      10.244.1.2:8080  (no pod known)  masqueraded when it reaches itself
  in table ip fairlead:
      map external_ports has 172.18.0.200 . tcp . 80 : 0:4003, leads to chain random_3
      map local_external_ports has 172.18.0.200 . tcp . 80 : 0:6001, leads to chain random_1
      set fenced has 172.18.0.200 . tcp . 80
      set allowed_sources has 172.18.0.200 . tcp . 80 . 192.0.2.7
      set allowed_sources has 172.18.0.200 . tcp . 80 . 198.51.100.0/24
      set barred has 172.18.0.200 . tcp . 80
      map endpoints has 0:4000 . 0x00000000 : 10.244.1.2 . 8080
      map endpoints has 0:6000 . 0x00000000 : 10.244.1.2 . 8080
`,
			edit: func(s *service.Service) {
				lbIP(s)
				s.ExternalLocal, s.SourceRanges = true, prefixes("198.51.100.0/24", "192.0.2.7/32")
			}},
		"an LB IP with source ranges that this node is in": {cfg: byCIDRs, at: "172.18.0.200:80", protocol: service.TCP, want: `
172.18.0.200:80/TCP: LoadBalancer or external IP
  from pods and elsewhere: to one of 3 endpoints, at random, masqueraded; dropped where the source is not in 172.18.0.0/16
      chains prerouting > external > mark_masquerade > dispatch > random_3
  from this node: to one of 3 endpoints, at random, masqueraded; an address of this node is in the source ranges
      chains output > own_external > mark_masquerade > dispatch > random_3
  endpoints:
      10.244.1.2:8080  (no pod known)  masqueraded when it reaches itself
      10.244.2.2:8080  default/web-2
      10.244.2.3:8080  (no pod known)
  in table ip fairlead:
      map external_ports has 172.18.0.200 . tcp . 80 : 0:4003, leads to chain random_3
      set fenced has 172.18.0.200 . tcp . 80
      set allowed_sources has 172.18.0.200 . tcp . 80 . 172.18.0.0/16
      map endpoints has 0:4000 . 0x00000000 : 10.244.1.2 . 8080
`,
			edit: func(s *service.Service) {
				lbIP(s)
				s.SourceRanges = prefixes("172.18.0.0/16")
			}},
		"an LB IP with source ranges of the other family": {cfg: byCIDRs, at: "172.18.0.200:80", protocol: service.TCP, want: `
172.18.0.200:80/TCP: LoadBalancer or external IP
  from pods and elsewhere: dropped: the source ranges have none of IPv4
      chains prerouting > external
  from this node: dropped: no address of this node is in the source ranges
      chains output > own_external
  in table ip fairlead:
      map external_ports has 172.18.0.200 . tcp . 80 : 0:4003, leads to chain random_3
      set fenced has 172.18.0.200 . tcp . 80
      set barred has 172.18.0.200 . tcp . 80
`,
			edit: func(s *service.Service) {
				lbIP(s)
				s.SourceRanges = prefixes("2001:db8::/32")
			}},
		"a node port of policy Local without endpoints here": {cfg: byCIDRs, at: "172.18.0.11:30080", protocol: service.TCP, want: `
172.18.0.11:30080/TCP: node port
  from pods (source in 10.244.0.0/16): to one of 3 endpoints, at random, source kept
      chains prerouting > node_port > node_port_local > dispatch > random_3
  from elsewhere: dropped: there are endpoints, but none on this node
      chains prerouting > node_port > node_port_local > dispatch > discard
  from this node: to one of 3 endpoints, at random, masqueraded
      chains output > mark_masquerade > dispatch > random_3
  endpoints:
      10.244.1.2:8080  (no pod known)  masqueraded when it reaches itself
      10.244.2.2:8080  default/web-2
      10.244.2.3:8080  (no pod known)
  in table ip fairlead:
      map node_ports has tcp . 30080 : 0:4003, leads to chain random_3
      map local_node_ports has tcp . 30080 : 0:6041, leads to chain discard
      set node_addresses has 172.18.0.11
      map endpoints has 0:4000 . 0x00000000 : 10.244.1.2 . 8080
`,
			edit: func(s *service.Service) { s.ExternalLocal, s.Ports[0].Local = true, service.Backends{} }},
		"a node port of policy Local where nothing tells pods": {at: "172.18.0.11:30080", protocol: service.TCP, want: `
172.18.0.11:30080/TCP: node port
  from pods and elsewhere: to the one endpoint on this node, source kept
      chains prerouting > node_port > node_port_local > dispatch > random_1
  from this node: to one of 3 endpoints, at random, masqueraded
      chains output > mark_masquerade > dispatch > random_3
  endpoints on this node:
      10.244.1.2:8080  (no pod known)  masqueraded when it reaches itself
  endpoints:
      10.244.1.2:8080  (no pod known)  masqueraded when it reaches itself
      10.244.2.2:8080  default/web-2
      10.244.2.3:8080  (no pod known)
  in table ip fairlead:
      map node_ports has tcp . 30080 : 0:4003, leads to chain random_3
      map local_node_ports has tcp . 30080 : 0:6001, leads to chain random_1
      set node_addresses has 172.18.0.11
      map endpoints has 0:6000 . 0x00000000 : 10.244.1.2 . 8080
      map endpoints has 0:4000 . 0x00000000 : 10.244.1.2 . 8080
`,
			edit: func(s *service.Service) { s.ExternalLocal = true }},
		"another port of a ClusterIP": {cfg: byCIDRs, at: "10.96.0.10:81", want: `
10.96.0.10:81: another port of a ClusterIP
  from everyone: refused with a TCP RST or ICMP port unreachable: the ClusterIP has no such port
      chains prerouting or output > refuse
  in table ip fairlead:
      set cluster_ips has 10.96.0.10, leads to chain refuse
`},
		"another protocol of a ClusterIP": {cfg: byCIDRs, at: "[fd00:10:96::a]:80", protocol: service.UDP, want: `
[fd00:10:96::a]:80/UDP: another port of a ClusterIP
  from everyone: refused with ICMPv6 port unreachable: the ClusterIP has no such port
      chains prerouting or output > refuse
  in table ip6 fairlead:
      set cluster_ips has fd00:10:96::a, leads to chain refuse
`},
		"nobody's address in a ServiceCIDR": {cfg: byCIDRs, at: "10.96.0.99:80", protocol: service.TCP, want: `
10.96.0.99:80/TCP: unassigned address of a ServiceCIDR
  from everyone: dropped: no Service has this address
      chains prerouting or output
  in table ip fairlead:
      set service_cidrs has 10.96.0.0/16
`},
		"an address that no rule is about": {cfg: byCIDRs, at: "192.0.2.1:80", want: `
192.0.2.1:80: no address of a Service
  from everyone: untouched: no rule is about this address and port
      chains prerouting or output
`},
		"a node port on another node's address": {cfg: byCIDRs, at: "172.18.0.12:30080", protocol: service.TCP, want: `
172.18.0.12:30080/TCP: no address of a Service
  from everyone: untouched: no rule is about this address and port
      chains prerouting or output
`},
	} {
		t.Run(name, func(t *testing.T) {
			names := map[netip.Addr]string{netip.MustParseAddr("10.244.2.2"): "default/web-2"}
			got := installed(tc.cfg, web(tc.edit)).Explain(netip.MustParseAddrPort(tc.at), tc.protocol).Text(names)
			if diff := cmp.Diff(strings.TrimPrefix(tc.want, "\n"), got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestTable(t *testing.T) {
	in := installed(byCIDRs, web(nil),
		&service.Service{
			Name: types.NamespacedName{Namespace: "default", Name: "shop"}, ClusterIPs: addrs("10.96.0.9"), LoadBalancerIPs: addrs("172.18.0.200"),
			ExternalLocal: true, InternalLocal: true, Affinity: time.Minute, SourceRanges: prefixes("192.0.2.0/24"),
			Ports: []service.Port{{Protocol: service.UDP, Port: 53, Cluster: backends("10.244.2.2:53", "10.244.2.3:53")}},
		},
		&service.Service{
			Name: types.NamespacedName{Namespace: "default", Name: "empty"}, ClusterIPs: addrs("10.96.0.8"),
			Ports: []service.Port{{Protocol: service.SCTP, Port: 99, NodePort: 30099}},
		})
	want := `
ADDRESS                 KIND                                           ENDPOINTS                      PICKED                    SOURCES
10.96.0.8:99/SCTP       ClusterIP                                      none, refused                  -                         all
10.96.0.9:53/UDP        ClusterIP                                      none on this node, dropped     -                         all
10.96.0.10:80/TCP       ClusterIP                                      3                              at random                 all
172.18.0.11:30080/TCP   node port                                      3                              at random                 all
172.18.0.11:30099/SCTP  node port                                      none, refused                  -                         all
172.18.0.200:53/UDP     LoadBalancer or external IP                    2; none on this node, dropped  at random, affinity 60 s  192.0.2.0/24
[::]:30080/TCP          node port that no address of this node serves  1                              at random                 all
[fd00:10:96::a]:80/TCP  ClusterIP                                      1                              at random                 all
`
	if diff := cmp.Diff(strings.TrimPrefix(want, "\n"), dataplane.Table(in.All())); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestWordsOfCounters: what was counted is said of frontends, where there is counting.
func TestWordsOfCounters(t *testing.T) {
	in := installed(dataplane.Config{Counters: true}, web(nil))
	at := netip.MustParseAddrPort("172.18.0.11:30080")
	in.Counts = map[dataplane.Frontend]dataplane.Count{dataplane.FrontendOf(at, service.TCP): {Connections: 1, Packets: 20, Bytes: 3000}}
	for at, want := range map[string]string{
		"172.18.0.11:30080": "  counted: 1 connection, 20 packets, 3000 bytes\n",
		"10.96.0.10:80":     "  counted: 0 connections, 0 packets, 0 bytes\n",
	} {
		if got := in.Explain(netip.MustParseAddrPort(at), service.TCP).Text(nil); !strings.Contains(got, want) {
			t.Errorf("no %q in:\n%s", want, got)
		}
	}
	if got := in.Explain(netip.MustParseAddrPort("10.96.0.10:81"), service.TCP).Text(nil); strings.Contains(got, "counted") {
		t.Errorf("a port that nobody counts is counted:\n%s", got)
	}
}
