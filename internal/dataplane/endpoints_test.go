package dataplane_test

import (
	"net"
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"fairlead.dev/fairlead/internal/ipfamily"
	"fairlead.dev/fairlead/test/netlab"
)

func udpAddr(a netip.AddrPort) *net.UDPAddr { return net.UDPAddrFromAddrPort(a) }

// TestDraining shows that endpoints which are going still serve where nothing is ready,
// and that this is judged apart for the cluster and for this node.
func TestDraining(t *testing.T) {
	s := newScene(t, 2, byCIDRs)
	near, far := s.world.pod(t, 0, "near"), s.world.pod(t, 1, "far")
	draining := func(i int, hosts ...*netlab.Host) svc {
		out := numbered(i)
		out.terminating = hostAddrs(hosts)
		return out
	}
	mixed := draining(1, near)
	mixed.endpoints = hostAddrs([]*netlab.Host{far})
	unready := numbered(3)
	unready.notReady = hostAddrs([]*netlab.Host{near, far})
	s.apply(mixed.with(externalLocal), draining(2, near, far), unready)
	each(t, "", func(t *testing.T, ask request, f ipfamily.Family, refusal string) {
		s.want(t, ask, s.client, s.vip(f, s.client, loadBalancerIP, 1), "near kept")
		s.want(t, ask, s.pod, s.vip(f, s.pod, loadBalancerIP, 1), "far kept")
		s.want(t, ask, s.pod, s.vip(f, s.pod, clusterIP, 1), "far kept")
		s.want(t, ask, s.pod, s.vip(f, s.pod, clusterIP, 2), "near kept", "far kept")
		s.want(t, ask, s.pod, s.vip(f, s.pod, clusterIP, 3), refusal)
	})
}

// TestHints shows that endpoints are kept to the node, or to the zone, where every one
// that is ready has hints and one of them is for here.
func TestHints(t *testing.T) {
	s := newScene(t, 2, byCIDRs)
	s.around[0].zone, s.around[1].zone = "a", "b"
	webs := []*netlab.Host{s.world.pod(t, 0, "web-1"), s.world.pod(t, 0, "web-2"), s.world.pod(t, 1, "web-3")}
	hinted := func(i int, hints map[string]*discoveryv1.EndpointHints) svc {
		out := numbered(i, webs...)
		out.editSlices = append(out.editSlices, func(slice *discoveryv1.EndpointSlice) {
			for n := range slice.Endpoints {
				for _, w := range webs {
					if a := slice.Endpoints[n].Addresses[0]; a == w.IPv4.String() || a == w.IPv6.String() {
						slice.Endpoints[n].Hints = hints[w.Name]
					}
				}
			}
		})
		return out
	}
	zone := func(names ...string) *discoveryv1.EndpointHints {
		out := &discoveryv1.EndpointHints{}
		for _, n := range names {
			out.ForZones = append(out.ForZones, discoveryv1.ForZone{Name: n})
		}
		return out
	}
	node := func(name string, zones ...string) *discoveryv1.EndpointHints {
		out := zone(zones...)
		out.ForNodes = []discoveryv1.ForNode{{Name: name}}
		return out
	}
	type hints = map[string]*discoveryv1.EndpointHints
	s.apply(
		hinted(1, hints{"web-1": zone("a"), "web-2": zone("a", "c"), "web-3": zone("b")}),
		hinted(2, hints{"web-1": zone("a"), "web-2": nil, "web-3": zone("b")}),       // one without
		hinted(3, hints{"web-1": zone("c"), "web-2": zone("c"), "web-3": zone("b")}), // none for a
		hinted(4, hints{"web-1": node("node1", "a"), "web-2": node("node2", "a"), "web-3": node("node2", "b")}),
		hinted(5, hints{"web-1": node("node9", "a"), "web-2": node("node9", "a"), "web-3": node("node9", "b")}),
		hinted(6, hints{"web-1": zone("b"), "web-2": zone("b"), "web-3": zone("a")}).with(externalLocal),
	)
	each(t, "", func(t *testing.T, ask request, f ipfamily.Family, _ string) {
		for i, want := range [][2][]string{
			1: {{"web-1 kept", "web-2 kept"}, {"web-3 kept"}},
			2: {{"web-1 kept", "web-2 kept", "web-3 kept"}, {"web-1 kept", "web-2 kept", "web-3 kept"}},
			3: {{"web-1 kept", "web-2 kept", "web-3 kept"}, {"web-3 kept"}},
			4: {{"web-1 kept"}, {"web-2 kept", "web-3 kept"}},
			5: {{"web-1 kept", "web-2 kept"}, {"web-3 kept"}},
			6: {{"web-3 kept"}, {"web-1 kept", "web-2 kept"}},
		} {
			if i > 0 {
				s.want(t, ask, s.pod, s.vip(f, s.pod, clusterIP, i), want[0]...)
				s.want(t, ask, s.remote, s.vip(f, s.remote, clusterIP, i), want[1]...)
			}
		}
		// Those on this node are all of them, whatever they are hinted for.
		s.want(t, ask, s.client, s.vip(f, s.client, loadBalancerIP, 6), "web-1 kept", "web-2 kept")
	})
}

// TestProtocolsApart shows that TCP, UDP and SCTP on one port of one address lead where
// each of them says.
func TestProtocolsApart(t *testing.T) {
	s := newScene(t, 1, byCIDRs)
	shared := numbered(9).externals
	webs := s.webs(t, 3)
	var services []svc
	for i, p := range protocols {
		one := numbered(i+1, webs[i])
		one.protocols, one.externals = []corev1.Protocol{p.name}, shared
		one.nodePort = 30009
		services = append(services, one)
	}
	s.apply(services...)
	for i, p := range protocols {
		for _, f := range ipfamily.All {
			s.want(t, p.ask, s.pod, s.vip(f, s.pod, nodePort, 9), webs[i].Name+" masqueraded")
			s.want(t, p.ask, s.client, s.vip(f, s.client, externalIP, 9), webs[i].Name+" masqueraded")
			for n := range protocols {
				want := p.refusal // of a ClusterIP with ports of other protocols
				if n == i {
					want = webs[i].Name + " kept"
				}
				s.want(t, p.ask, s.pod, s.vip(f, s.pod, clusterIP, n+1), want)
			}
		}
	}
}

// TestNotOurs shows what is left alone: load balancers that deliver to node ports, and
// Services of other proxies, whose addresses nobody has then.
func TestNotOurs(t *testing.T) {
	s := newScene(t, 1, byCIDRs)
	web := s.world.pod(t, 0, "web")
	proxy := numbered(1, web).with(func(o *corev1.Service) {
		for i := range o.Status.LoadBalancer.Ingress {
			o.Status.LoadBalancer.Ingress[i].IPMode = new(corev1.LoadBalancerIPModeProxy)
		}
	})
	other := numbered(2, web).with(func(o *corev1.Service) {
		o.Labels = map[string]string{"service.kubernetes.io/service-proxy-name": "other"}
	})
	s.apply(proxy, other)
	balancer := s.lab.Gateway()
	for _, a := range proxy.lbIPs {
		a := netip.MustParseAddr(a)
		must(t, balancer.AddAddr(netip.PrefixFrom(a, a.BitLen())))
	}
	echo, err := netlab.StartEcho(balancer, "balancer", 80)
	must(t, err)
	t.Cleanup(func() { must(t, echo.Close()) })
	quiet := &quiet{t: t}
	defer quiet.wait()
	each(t, "", func(t *testing.T, ask request, f ipfamily.Family, _ string) {
		for _, client := range []*netlab.Host{&s.nodes[0].Host, s.client} {
			s.want(t, ask, client, s.vip(f, client, nodePort, 1), "web masqueraded")
			s.want(t, ask, client, s.vip(f, client, externalIP, 1), "web masqueraded")
			s.want(t, ask, client, s.vip(f, client, loadBalancerIP, 1), "balancer kept")
			quiet.check(t.Name(), func() string { return s.outcome(ask, client, s.vip(f, client, clusterIP, 2), silence) })
		}
	})
}

// TestSameEndpointTwice shows that of one address in two slices the one counts that is
// not terminating.
func TestSameEndpointTwice(t *testing.T) {
	s := newScene(t, 1, byCIDRs)
	webs := s.webs(t, 2)
	twice := numbered(1, webs...)
	twice.terminating = hostAddrs(webs[:1])
	s.apply(twice)
	each(t, "", func(t *testing.T, ask request, f ipfamily.Family, _ string) {
		s.want(t, ask, s.pod, s.vip(f, s.pod, clusterIP, 1), "web-1 kept", "web-2 kept")
	})
}
