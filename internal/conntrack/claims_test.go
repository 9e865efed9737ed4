package conntrack

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"k8s.io/apimachinery/pkg/types"
	"pgregory.net/rapid"

	"fairlead.dev/fairlead/internal/ipfamily"
	"fairlead.dev/fairlead/internal/service"
)

// A small world, in which Services meet at the same addresses all the time. 192.0.2.1 is
// an address of the node, of pods on the host network and of Services.
var (
	someAddrs = []netip.Addr{
		netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2"),
		netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2"),
	}
	someProtocols = []service.Protocol{service.TCP, service.UDP, service.SCTP}
	somePorts     = []uint16{80, 81}
)

func drawAddrs(t *rapid.T, what string) []netip.Addr {
	return slices.DeleteFunc(slices.Clone(someAddrs), func(netip.Addr) bool { return !rapid.Bool().Draw(t, what) })
}

func drawBackends(t *rapid.T) (out service.Backends) {
	for f, addrs := range drawEndpoints(t) {
		for _, a := range addrs {
			out[f] = append(out[f], service.Backend{Addr: a, Weight: 1})
		}
	}
	return out
}

func drawEndpoints(t *rapid.T) (out [len(ipfamily.All)][]netip.AddrPort) {
	for _, a := range drawAddrs(t, "endpoint") {
		f := ipfamily.Of(a)
		out[f] = append(out[f], netip.AddrPortFrom(a, rapid.SampledFrom(somePorts).Draw(t, "target")))
	}
	return out
}

func drawService(t *rapid.T, name string) *service.Service {
	svc := &service.Service{
		Name:       types.NamespacedName{Namespace: "default", Name: name},
		ClusterIPs: drawAddrs(t, "clusterIP"), ExternalIPs: drawAddrs(t, "externalIP"), LoadBalancerIPs: drawAddrs(t, "lbIP"),
	}
	for _, p := range someProtocols {
		if rapid.Bool().Draw(t, "port") {
			svc.Ports = append(svc.Ports, service.Port{
				Protocol: p, Port: rapid.SampledFrom(somePorts).Draw(t, "number"), NodePort: rapid.SampledFrom([]uint16{0, 80, 81}).Draw(t, "nodePort"),
				Cluster: drawBackends(t), Local: drawBackends(t), Serving: drawEndpoints(t),
			})
		}
	}
	return svc
}

// drawSnapshot changes some Services of prev, and sometimes the node's addresses.
func drawSnapshot(t *rapid.T, prev *service.Snapshot) *service.Snapshot {
	edit := prev.Services.Edit()
	for i := range 3 {
		name := fmt.Sprint("s", i)
		switch rapid.SampledFrom([]string{"keep", "keep", "set", "delete"}).Draw(t, name) {
		case "set":
			edit.Set(types.NamespacedName{Namespace: "default", Name: name}, drawService(t, name))
		case "delete":
			edit.Delete(types.NamespacedName{Namespace: "default", Name: name})
		}
	}
	next := &service.Snapshot{Services: edit.Map(), NodePortAddrs: prev.NodePortAddrs}
	if rapid.Bool().Draw(t, "move") {
		next.NodePortAddrs = drawAddrs(t, "nodeAddr")
	}
	return next
}

// mayReach says in the plainest way whether somebody has f in s, and whether somebody
// who has it has the backend.
func mayReach(s *service.Snapshot, f frontend, backend netip.AddrPort) (owned, reached bool) {
	for _, svc := range s.Services.All() {
		sameFamily := func(a netip.Addr) bool { return a.Is4() == f.addr.Addr().Is4() }
		if !slices.ContainsFunc(svc.ClusterIPs, sameFamily) {
			continue
		}
		for _, p := range svc.Ports {
			vip := slices.Contains(slices.Concat(svc.ClusterIPs, svc.ExternalIPs, svc.LoadBalancerIPs), f.addr.Addr()) && p.Port == f.addr.Port()
			node := slices.Contains(s.NodePortAddrs, f.addr.Addr()) && p.NodePort == f.addr.Port()
			if p.Protocol != f.protocol || !vip && !node {
				continue
			}
			owned = true
			for _, family := range ipfamily.All {
				for _, b := range slices.Concat(p.Cluster[family], p.Local[family]) {
					reached = reached || b.Addr == backend
				}
				reached = reached || slices.Contains(p.Serving[family], backend)
			}
		}
	}
	return owned, reached
}

// TestClaims: whatever changed, in whatever steps, exactly the flows go that could be there
// and may be no more, and none that a Service still has a backend for.
func TestClaims(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := claims{by: map[frontend][]claim{}}
		touched := frontends{}
		history := []*service.Snapshot{{}}
		c.take(history[0], touched)
		for range rapid.IntRange(1, 4).Draw(t, "steps") {
			next := drawSnapshot(t, history[len(history)-1])
			history = append(history, next)
			c.take(next, touched)
		}
		now := history[len(history)-1]
		for _, a := range someAddrs {
			for _, p := range somePorts {
				for _, b := range someAddrs {
					if ipfamily.Of(a) != ipfamily.Of(b) {
						continue
					}
					for _, target := range somePorts {
						for _, protocol := range []service.Protocol{service.TCP, service.UDP} {
							fl := &flow{protocol: protocol, to: netip.AddrPortFrom(a, p), backend: netip.AddrPortFrom(b, target), opening: true}
							checkFlow(t, &c, touched, history, now, fl)
						}
					}
				}
			}
		}
	})
}

func checkFlow(t *rapid.T, c *claims, touched frontends, history []*service.Snapshot, now *service.Snapshot, fl *flow) {
	f := frontend{fl.protocol, fl.to}
	_, looking := touched[f]
	goes := looking && c.stale(fl)
	owned, reached := mayReach(now, f, fl.backend)
	couldBe, appeared, before := false, false, false
	for _, s := range history {
		had, could := mayReach(s, f, fl.backend)
		couldBe = couldBe || could
		appeared = appeared || had && !before
		before = had
	}
	untranslated := fl.backend == fl.to
	switch {
	case reached && goes:
		t.Fatalf("%+v goes, its backend is there", fl)
	case untranslated && !owned && goes:
		t.Fatalf("%+v goes, it is none of ours", fl)
	case untranslated && owned && appeared && !reached && !goes:
		t.Fatalf("%+v stays, and is served by nobody", fl)
	case !untranslated && couldBe && !reached && !goes:
		t.Fatalf("%+v stays, its backend is gone", fl)
	}
	if fl.opening = false; fl.protocol == service.TCP && c.stale(fl) {
		t.Fatalf("%+v goes, it is established", fl)
	}
	if fl.opening, fl.zone = true, []byte{0, 1}; untranslated && c.stale(fl) {
		t.Fatalf("%+v goes, it is how others see it", fl)
	}
}

// TestNothingTouched: endpoints that come, and whatever else leaves flows where they are,
// are no reason to walk through the kernel's table.
func TestNothingTouched(t *testing.T) {
	web := func(change func(*service.Service), backends ...string) *service.Service {
		svc := &service.Service{Name: types.NamespacedName{Name: "web"}, ClusterIPs: someAddrs[:1]}
		svc.Ports = []service.Port{{Protocol: service.UDP, Port: 53}}
		for _, b := range backends {
			svc.Ports[0].Cluster[ipfamily.IPv4] = append(svc.Ports[0].Cluster[ipfamily.IPv4], service.Backend{Addr: netip.MustParseAddrPort(b)})
		}
		if change != nil {
			change(svc)
		}
		return svc
	}
	drain := func(svc *service.Service) {
		svc.Ports[0].Serving[ipfamily.IPv4] = []netip.AddrPort{netip.MustParseAddrPort("10.0.0.1:53")}
	}
	old := web(nil, "10.0.0.1:53", "10.0.0.2:53")
	vip := netip.AddrPortFrom(someAddrs[0], 53)
	for name, tc := range map[string]struct {
		next *service.Service
		want bool
	}{
		"an endpoint comes":   {next: web(nil, "10.0.0.1:53", "10.0.0.2:53", "10.0.0.3:53")},
		"an endpoint drains":  {next: web(drain, "10.0.0.2:53")},
		"its scheduler":       {next: web(func(s *service.Service) { s.Scheduler = service.Maglev }, "10.0.0.1:53", "10.0.0.2:53")},
		"an endpoint goes":    {next: web(nil, "10.0.0.2:53"), want: true},
		"all endpoints go":    {next: web(nil), want: true},
		"another target port": {next: web(nil, "10.0.0.1:54", "10.0.0.2:54"), want: true},
	} {
		t.Run(name, func(t *testing.T) {
			c := claims{by: map[frontend][]claim{}}
			c.take(snapshot(nil, old), frontends{})
			touched := frontends{}
			edit := c.snapshot.Services.Edit()
			edit.Set(tc.next.Name, tc.next)
			c.take(&service.Snapshot{Services: edit.Map()}, touched)
			if _, got := touched[frontend{service.UDP, vip}]; got != tc.want || len(touched) > 1 {
				t.Errorf("got %v touched", touched)
			}
		})
	}
}

// TestQueries: the kernel is asked for what all frontends have in common.
func TestQueries(t *testing.T) {
	at := func(p service.Protocol, a string) frontend { return frontend{p, netip.MustParseAddrPort(a)} }
	for name, tc := range map[string]struct {
		looking []frontend
		want    []query
	}{
		"one": {
			looking: []frontend{at(service.UDP, "192.0.2.1:53")},
			want:    []query{{family: ipfamily.IPv4, protocol: service.UDP, addr: netip.MustParseAddr("192.0.2.1"), port: 53}},
		},
		"one port": {
			looking: []frontend{at(service.UDP, "192.0.2.1:53"), at(service.UDP, "192.0.2.2:53")},
			want:    []query{{family: ipfamily.IPv4, protocol: service.UDP, port: 53}},
		},
		"one address": {
			looking: []frontend{at(service.TCP, "[2001:db8::1]:53"), at(service.TCP, "[2001:db8::1]:54"), at(service.TCP, "[2001:db8::1]:53")},
			want:    []query{{family: ipfamily.IPv6, protocol: service.TCP, addr: netip.MustParseAddr("2001:db8::1")}},
		},
		"nothing": {},
	} {
		t.Run(name, func(t *testing.T) {
			looking := frontends{}
			for _, f := range tc.looking {
				looking[f] = struct{}{}
			}
			if got := queries(looking); !slices.Equal(got, tc.want) {
				t.Errorf("got %+v, want %+v", got, tc.want)
			}
		})
	}
}
