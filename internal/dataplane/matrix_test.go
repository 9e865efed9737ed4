package dataplane_test

import (
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"fairlead.dev/fairlead/internal/ipfamily"
	"fairlead.dev/fairlead/test/netlab"
)

// matrix is the table of the specification: who asks, at which kind of address, and who
// answers under which policy. C are the endpoints of the cluster, L those on the node
// that the packet passes; then what the endpoint sees of the client's address. Every cell
// is tried over all protocols and both families.
var matrix = []struct {
	client, vip                             string
	byDefault, externalLocal, internalLocal string
}{
	{"pod", clusterIP, "C kept", "C kept", "L kept"},
	{"pod", nodePort, "C masqueraded", "C kept", "C masqueraded"},
	{"pod", loadBalancerIP, "C masqueraded", "C kept", "C masqueraded"},
	{"pod", externalIP, "C masqueraded", "C kept", "C masqueraded"},

	{"remote pod", clusterIP, "C kept", "C kept", "L kept"},
	{"remote pod", nodePort, "C masqueraded", "C kept", "C masqueraded"},
	{"remote pod", loadBalancerIP, "C masqueraded", "C kept", "C masqueraded"},
	{"remote pod", externalIP, "C masqueraded", "C kept", "C masqueraded"},

	{"node", clusterIP, "C masqueraded", "C masqueraded", "L masqueraded"},
	{"node", nodePort, "C masqueraded", "C masqueraded", "C masqueraded"},
	{"node", loadBalancerIP, "C masqueraded", "C masqueraded", "C masqueraded"},
	{"node", externalIP, "C masqueraded", "C masqueraded", "C masqueraded"},

	{"outside", clusterIP, "C masqueraded", "C masqueraded", "L masqueraded"},
	{"outside", nodePort, "C masqueraded", "L kept", "C masqueraded"},
	{"outside", loadBalancerIP, "C masqueraded", "L kept", "C masqueraded"},
	{"outside", externalIP, "C masqueraded", "L kept", "C masqueraded"},
}

// each runs a test for every protocol and family.
func each(t *testing.T, name string, run func(t *testing.T, ask request, f ipfamily.Family, refusal string)) {
	t.Helper()
	for _, p := range protocols {
		for _, f := range ipfamily.All {
			t.Run(strings.TrimPrefix(fmt.Sprintf("%s/%s %s", name, p.name, f), "/"), func(t *testing.T) { run(t, p.ask, f, p.refusal) })
		}
	}
}

func TestMatrix(t *testing.T) {
	s := newScene(t, 2, byCIDRs)
	web := []*netlab.Host{s.world.pod(t, 0, "web-1"), s.world.pod(t, 0, "web-2"), s.world.pod(t, 1, "web-3")}
	s.apply(
		numbered(1, web...),
		numbered(2, web...).with(externalLocal),
		numbered(3, web...).with(internalLocal),
	)
	for _, row := range matrix {
		for i, cell := range []string{1: row.byDefault, 2: row.externalLocal, 3: row.internalLocal} {
			if i == 0 {
				continue
			}
			client := s.clients()[row.client]
			set, source, _ := strings.Cut(cell, " ")
			endpoints := web
			switch {
			case set == "L" && client == s.remote:
				endpoints = web[2:]
			case set == "L":
				endpoints = web[:2]
			}
			policy := []string{1: "default", 2: "externalTrafficPolicy Local", 3: "internalTrafficPolicy Local"}[i]
			each(t, fmt.Sprintf("%s to %s, %s", row.client, row.vip, policy), func(t *testing.T, ask request, f ipfamily.Family, _ string) {
				s.want(t, ask, client, s.vip(f, client, row.vip, i), seenBy(source, endpoints...)...)
			})
		}
	}
}

// nothingHere is what comes of Services that have no endpoints on the nodes that are
// asked: "none" has none at all; the endpoint of "far" is on a third node. Both have both
// policies Local; "none" is the same by default.
var nothingHere = []struct {
	client, vip string
	none, far   string
}{
	{"pod", clusterIP, "refused", "silence"},
	{"pod", nodePort, "refused", "far kept"},
	{"pod", loadBalancerIP, "refused", "far kept"},
	{"pod", externalIP, "refused", "far kept"},

	{"remote pod", clusterIP, "refused", "silence"},
	{"remote pod", nodePort, "refused", "far kept"},
	{"remote pod", loadBalancerIP, "refused", "far kept"},
	{"remote pod", externalIP, "refused", "far kept"},

	{"node", clusterIP, "refused", "silence"},
	{"node", nodePort, "refused", "far masqueraded"},
	{"node", loadBalancerIP, "refused", "far masqueraded"},
	{"node", externalIP, "refused", "far masqueraded"},

	{"outside", clusterIP, "refused", "silence"},
	{"outside", nodePort, "refused", "silence"},
	{"outside", loadBalancerIP, "refused", "silence"},
	{"outside", externalIP, "refused", "silence"},
}

// notServed is what comes of addresses that no Service has.
var notServed = map[string]string{
	"another port of a ClusterIP":                   "refused",
	"an unassigned address in a ServiceCIDR":        "silence",
	"a node port at an address that does not serve": "itself",
}

func TestNothingHere(t *testing.T) {
	s := newScene(t, 3, byCIDRs)
	far := s.world.pod(t, 2, "far")
	s.apply(
		numbered(1).with(externalLocal, internalLocal),
		numbered(2, far).with(externalLocal, internalLocal),
		numbered(3),
	)
	// What the node itself serves on the number of a node port.
	itself, err := netlab.StartEcho(&s.nodes[0].Host, "itself", 30002)
	must(t, err)
	t.Cleanup(func() { must(t, itself.Close()) })

	quiet := &quiet{t: t}
	defer quiet.wait()
	try := func(name string, client *netlab.Host, want string, vip func(ipfamily.Family) netip.AddrPort) {
		each(t, name, func(t *testing.T, ask request, f ipfamily.Family, refusal string) {
			switch want {
			case "silence":
				quiet.check(t.Name(), func() string { return s.outcome(ask, client, vip(f), silence) })
			case "refused":
				s.want(t, ask, client, vip(f), refusal)
			case "itself": // what it sees of its own addresses is no matter of Services
				if got := s.outcome(ask, client, vip(f), testTimeout); !strings.HasPrefix(got, "itself ") {
					t.Errorf("%s, want the node itself", got)
				}
			default:
				s.want(t, ask, client, vip(f), want)
			}
		})
	}
	for _, row := range nothingHere {
		client := s.clients()[row.client]
		for i, want := range []string{1: row.none, 2: row.far, 3: row.none} {
			if i == 0 {
				continue
			}
			what := []string{1: "no endpoints, both policies Local", 2: "endpoints elsewhere, both policies Local", 3: "no endpoints"}[i]
			try(fmt.Sprintf("%s to %s, %s", row.client, row.vip, what), client, want,
				func(f ipfamily.Family) netip.AddrPort { return s.vip(f, client, row.vip, i) })
		}
	}
	for who, client := range s.clients() {
		for what, want := range notServed {
			try(who+" to "+what, client, want, func(f ipfamily.Family) netip.AddrPort {
				switch what {
				case "another port of a ClusterIP":
					return netip.AddrPortFrom(vipOf(f, clusterIP, 2), 81)
				case "an unassigned address in a ServiceCIDR":
					return netip.AddrPortFrom(vipOf(f, clusterIP, 99), 80)
				default:
					return netip.AddrPortFrom(secondAddr[f].Addr(), 30002)
				}
			})
		}
	}
}

// quiet waits for silence in many places at once.
type quiet struct {
	t    testing.TB
	asks sync.WaitGroup
}

func (q *quiet) check(name string, outcome func() string) {
	q.asks.Go(func() {
		if got := outcome(); got != "silence" {
			q.t.Errorf("%s: %s, want silence", name, got)
		}
	})
}

func (q *quiet) wait() { q.asks.Wait() }

// hostNetwork is what endpoints on the nodes' own addresses see: host-1 on node1, which
// the packets pass, host-2 on node2. What is delivered on the node itself is not
// masqueraded on its way in: it needs no way back through the node.
var hostNetwork = []struct {
	client, vip      string
	byDefault, local []string // both policies Local
}{
	{"pod", clusterIP, []string{"host-1 kept", "host-2 kept"}, []string{"host-1 kept"}},
	{"pod", nodePort, []string{"host-1 kept", "host-2 masqueraded"}, []string{"host-1 kept", "host-2 kept"}},
	{"pod", loadBalancerIP, []string{"host-1 kept", "host-2 masqueraded"}, []string{"host-1 kept", "host-2 kept"}},
	{"node", clusterIP, []string{"host-1 masqueraded", "host-2 masqueraded"}, []string{"host-1 masqueraded"}},
	{"node", nodePort, []string{"host-1 masqueraded", "host-2 masqueraded"}, []string{"host-1 masqueraded", "host-2 masqueraded"}},
	{"node", loadBalancerIP, []string{"host-1 masqueraded", "host-2 masqueraded"}, []string{"host-1 masqueraded", "host-2 masqueraded"}},
	{"outside", clusterIP, []string{"host-1 kept", "host-2 masqueraded"}, []string{"host-1 kept"}},
	{"outside", nodePort, []string{"host-1 kept", "host-2 masqueraded"}, []string{"host-1 kept"}},
	{"outside", loadBalancerIP, []string{"host-1 kept", "host-2 masqueraded"}, []string{"host-1 kept"}},
}

func TestHostNetwork(t *testing.T) {
	s := newScene(t, 2, byCIDRs)
	var hosts []*netlab.Host
	for i, n := range s.nodes {
		echo, err := netlab.StartEcho(&n.Host, fmt.Sprint("host-", i+1), 8080)
		must(t, err)
		t.Cleanup(func() { must(t, echo.Close()) })
		hosts = append(hosts, &n.Host)
	}
	s.apply(numbered(1, hosts...), numbered(2, hosts...).with(externalLocal, internalLocal))
	for _, row := range hostNetwork {
		client := s.clients()[row.client]
		for i, want := range [][]string{1: row.byDefault, 2: row.local} {
			if i == 0 {
				continue
			}
			policy := []string{1: "default", 2: "both policies Local"}[i]
			each(t, fmt.Sprintf("%s to %s, %s", row.client, row.vip, policy), func(t *testing.T, ask request, f ipfamily.Family, _ string) {
				s.want(t, ask, client, s.vip(f, client, row.vip, i), want...)
			})
		}
	}
}

// TestHairpin shows that a pod can reach itself through its own Service, at every address
// and under every policy: masqueraded, or the answer would not come back the same way.
func TestHairpin(t *testing.T) {
	s := newScene(t, 1, byCIDRs)
	pod := s.world.pod(t, 0, "alone")
	s.apply(numbered(1, pod), numbered(2, pod).with(externalLocal, internalLocal))
	for i, policy := range []string{1: "default", 2: "both policies Local"} {
		for _, kind := range vipKinds {
			if i == 0 {
				continue
			}
			each(t, fmt.Sprintf("%s, %s", kind, policy), func(t *testing.T, ask request, f ipfamily.Family, _ string) {
				s.want(t, ask, pod, s.vip(f, pod, kind, i), "alone masqueraded")
			})
		}
	}
}
