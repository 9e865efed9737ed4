package dataplane_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"fairlead.dev/fairlead/internal/dataplane"
	"fairlead.dev/fairlead/internal/ipfamily"
	"fairlead.dev/fairlead/test/netlab"
)

// modes are the ways to tell pods, and what comes of them. Each cell is what the endpoint
// on node1 sees of who asks at a ClusterIP, and at a load balancer's address under
// externalTrafficPolicy Local: "C" there where the client counts as a pod, so that both
// endpoints answer, "L" where the one on node1 alone does.
var modes = []struct {
	name             string
	cfg              dataplane.Config
	nodeCIDR, bridge bool
	pod, outside     string // at the ClusterIP
	node             string
	podLB, outsideLB string
}{
	{name: "cluster CIDR", cfg: byCIDRs, pod: "kept", outside: "masqueraded", node: "masqueraded", podLB: "C", outsideLB: "L"},
	{name: "node CIDR", cfg: byCIDRs, nodeCIDR: true, pod: "kept", outside: "masqueraded", node: "masqueraded", podLB: "C", outsideLB: "L"},
	{name: "bridge", cfg: dataplane.Config{Local: dataplane.LocalTraffic{Bridge: "cbr0"}}, bridge: true,
		pod: "kept", outside: "masqueraded", node: "masqueraded", podLB: "C", outsideLB: "L"},
	{name: "another bridge", cfg: dataplane.Config{Local: dataplane.LocalTraffic{Bridge: "cbr"}}, bridge: true,
		pod: "masqueraded", outside: "masqueraded", node: "masqueraded", podLB: "L", outsideLB: "L"},
	{name: "interface prefix", cfg: dataplane.Config{Local: dataplane.LocalTraffic{InterfacePrefix: "po"}},
		pod: "kept", outside: "masqueraded", node: "masqueraded", podLB: "C", outsideLB: "L"},
	{name: "another prefix", cfg: dataplane.Config{Local: dataplane.LocalTraffic{InterfacePrefix: "veth"}},
		pod: "masqueraded", outside: "masqueraded", node: "masqueraded", podLB: "L", outsideLB: "L"},
	{name: "nothing", pod: "kept", outside: "kept", node: "masqueraded", podLB: "L", outsideLB: "L"},
	{name: "masquerade all", cfg: dataplane.Config{Local: byCIDRs.Local, MasqueradeAll: true},
		pod: "masqueraded", outside: "masqueraded", node: "masqueraded", podLB: "C", outsideLB: "L"},
	{name: "masquerade all, and nothing tells pods", cfg: dataplane.Config{MasqueradeAll: true},
		pod: "masqueraded", outside: "masqueraded", node: "masqueraded", podLB: "L", outsideLB: "L"},
}

func TestLocalTraffic(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode.name, func(t *testing.T) {
			s := newScene(t, 2, mode.cfg)
			if mode.bridge {
				must(t, s.nodes[0].UseBridge("cbr0"))
				var err error
				s.pod, err = s.nodes[0].AddPod("bridged")
				must(t, err)
			}
			if mode.nodeCIDR {
				for i, n := range s.nodes {
					s.around[i].podCIDRs = n.PodCIDRs
				}
			}
			near, far := s.world.pod(t, 0, "near"), s.world.pod(t, 1, "far")
			s.apply(numbered(1, near), numbered(2, near, far).with(externalLocal))
			each(t, "", func(t *testing.T, ask request, f ipfamily.Family, _ string) {
				s.want(t, ask, s.pod, s.vip(f, s.pod, clusterIP, 1), "near "+mode.pod)
				s.want(t, ask, s.client, s.vip(f, s.client, clusterIP, 1), "near "+mode.outside)
				node := &s.nodes[0].Host
				s.want(t, ask, node, s.vip(f, node, clusterIP, 1), "near "+mode.node)
				for client, set := range map[*netlab.Host]string{s.pod: mode.podLB, s.client: mode.outsideLB} {
					want := []string{"near kept", "far kept"}[:map[string]int{"L": 1, "C": 2}[set]]
					s.want(t, ask, client, s.vip(f, client, loadBalancerIP, 2), want...)
					s.want(t, ask, client, s.vip(f, client, nodePort, 2), want...)
				}
			})
		})
	}
}

// TestPodsOfOtherNodes shows that with the node's own ranges a pod of another node counts
// as outside.
func TestPodsOfOtherNodes(t *testing.T) {
	s := newScene(t, 2, byCIDRs)
	for i, n := range s.nodes {
		s.around[i].podCIDRs = n.PodCIDRs
	}
	near, far := s.world.pod(t, 0, "near"), s.world.pod(t, 1, "far")
	s.apply(numbered(1, near, far).with(externalLocal))
	each(t, "", func(t *testing.T, ask request, f ipfamily.Family, _ string) {
		s.want(t, ask, s.remote, netip.AddrPortFrom(addrOf(&s.nodes[0].Host, f), 30001), "near kept")
		s.want(t, ask, s.pod, netip.AddrPortFrom(addrOf(&s.nodes[1].Host, f), 30001), "far kept")
	})
}

// TestPodsOfOneFamily shows that a family without ranges of pods is as if nothing told
// them, and that ranges which come later count at once.
func TestPodsOfOneFamily(t *testing.T) {
	s := newScene(t, 1, byCIDRs)
	near := s.world.pod(t, 0, "near")
	want := func(ranges []netip.Prefix, outside [2]string) {
		t.Helper()
		s.around[0].podCIDRs = ranges
		s.apply(numbered(1, near))
		for _, f := range ipfamily.All {
			s.want(t, (*netlab.Host).HTTP, s.pod, s.vip(f, s.pod, clusterIP, 1), "near kept")
			s.want(t, (*netlab.Host).HTTP, s.client, s.vip(f, s.client, clusterIP, 1), "near "+outside[f])
		}
	}
	want(podCIDRs[:1], [2]string{"masqueraded", "kept"})
	want(podCIDRs, [2]string{"masqueraded", "masqueraded"})
	want(nil, [2]string{"kept", "kept"})
}

// TestHairpinModes shows that a pod reaches itself however pods are told, or not.
func TestHairpinModes(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode.name, func(t *testing.T) {
			s := newScene(t, 1, mode.cfg)
			if mode.bridge {
				must(t, s.nodes[0].UseBridge("cbr0"))
			}
			pod := s.world.pod(t, 0, "alone")
			s.apply(numbered(1, pod).with(externalLocal, internalLocal))
			each(t, "", func(t *testing.T, ask request, f ipfamily.Family, _ string) {
				for _, kind := range vipKinds {
					s.want(t, ask, pod, s.vip(f, pod, kind, 1), "alone masqueraded")
				}
			})
		})
	}
}

// TestComeAndGo shows that node addresses and ServiceCIDRs that appear or go, and pods'
// ranges, make their difference at once, whatever Services do.
func TestComeAndGo(t *testing.T) {
	s := newScene(t, 1, byCIDRs)
	web := numbered(1, s.world.pod(t, 0, "web"))
	// What the node itself serves where no Service does: at another of its addresses on
	// the number of a node port, and at an address of the ServiceCIDR.
	for _, port := range []uint16{30001, 80} {
		echo, err := netlab.StartEcho(&s.nodes[0].Host, "itself", port)
		must(t, err)
		t.Cleanup(func() { must(t, echo.Close()) })
	}
	// Neither is an address that masquerading may choose.
	s.ip("addr", "add", vipOf(ipfamily.IPv4, clusterIP, 99).String()+"/32", "dev", "lo", "scope", "link")
	s.ip("addr", "add", vipOf(ipfamily.IPv6, clusterIP, 99).String()+"/128", "dev", "lo", "nodad", "preferred_lft", "0")
	plain := s.around[0]
	more := plain
	more.nodePortAddrs = append(more.nodePortAddrs[:2:2], secondAddr[0].Addr(), secondAddr[1].Addr())
	noCIDRs, noPods := plain, plain
	noCIDRs.serviceCIDRs = nil
	noPods.podCIDRs = []netip.Prefix{netip.MustParsePrefix("10.9.0.0/16"), netip.MustParsePrefix("fd00:9::/64")}
	for n, step := range []struct {
		around                        surroundings
		secondAddr, unassigned, asPod string
	}{
		{plain, "itself kept", "silence", "web kept"},
		{more, "web masqueraded", "silence", "web kept"},
		{noCIDRs, "itself kept", "itself kept", "web kept"},
		{noPods, "itself kept", "silence", "web masqueraded"},
		{plain, "itself kept", "silence", "web kept"},
	} {
		s.around[0] = step.around
		s.apply(web)
		quiet := &quiet{t: t}
		each(t, fmt.Sprint("step ", n), func(t *testing.T, ask request, f ipfamily.Family, _ string) {
			s.want(t, ask, s.pod, s.vip(f, s.pod, clusterIP, 1), step.asPod)
			s.want(t, ask, s.client, netip.AddrPortFrom(secondAddr[f].Addr(), 30001), step.secondAddr)
			unassigned := s.vip(f, s.client, clusterIP, 99)
			if step.unassigned == "silence" {
				quiet.check(t.Name(), func() string { return s.outcome(ask, s.client, unassigned, silence) })
			} else {
				s.want(t, ask, s.client, unassigned, step.unassigned)
			}
		})
		quiet.wait()
	}
	if rules := s.sinks[0].nft("list", "ruleset"); strings.Contains(rules, "172.18.0.61") {
		t.Error("an address that is gone is still in the rules")
	}
}
