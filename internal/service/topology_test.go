package service_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"

	"fairlead.dev/fairlead/internal/ipfamily"
	"fairlead.dev/fairlead/internal/service"
)

// at returns an endpoint in words: an address, then any of "ready" (the default),
// "unready", "draining", "gone" (terminating, not serving), "here", "nowhere" (else on
// another node), "node=NAME" and "zone=NAME" hints.
func at(words string) discoveryv1.Endpoint {
	split := strings.Fields(words)
	e := endpoint(split[0], yes, yes, no)
	for _, w := range split[1:] {
		key, value, _ := strings.Cut(w, "=")
		switch key {
		case "unready":
			e.Conditions.Ready, e.Conditions.Serving = no, no
		case "draining":
			e.Conditions.Ready, e.Conditions.Terminating = no, yes
		case "gone":
			e.Conditions.Ready, e.Conditions.Serving, e.Conditions.Terminating = no, no, yes
		case "here":
			e.NodeName = new("node1")
		case "nowhere":
			e.NodeName = nil
		case "node", "zone":
			if e.Hints == nil {
				e.Hints = &discoveryv1.EndpointHints{}
			}
			if key == "node" {
				e.Hints.ForNodes = append(e.Hints.ForNodes, discoveryv1.ForNode{Name: value})
			} else {
				e.Hints.ForZones = append(e.Hints.ForZones, discoveryv1.ForZone{Name: value})
			}
		}
	}
	return e
}

// seen returns the addresses of one family in the three sets of port 0.
func seen(s *service.Service, f ipfamily.Family) (cluster, local, serving string) {
	join := func(backends []service.Backend) string {
		var out []string
		for _, b := range backends {
			out = append(out, b.Addr.Addr().String())
		}
		return strings.Join(out, " ")
	}
	var rest []service.Backend
	for _, addr := range s.Ports[0].Serving[f] {
		rest = append(rest, service.Backend{Addr: addr})
	}
	return join(s.Ports[0].Cluster[f]), join(s.Ports[0].Local[f]), join(rest)
}

func bothLocal(s *corev1.Service) {
	s.Spec.Type, s.Spec.ExternalTrafficPolicy = corev1.ServiceTypeLoadBalancer, corev1.ServiceExternalTrafficPolicyLocal
	s.Spec.InternalTrafficPolicy = new(corev1.ServiceInternalTrafficPolicyLocal)
	s.Spec.HealthCheckNodePort = 30000
}

// TestTopology: which endpoints are used from node1 in zone a, under a policy Local
// beside the cluster's.
func TestTopology(t *testing.T) {
	for name, tc := range map[string]struct {
		endpoints               []string
		cluster, local, serving string
	}{
		"ready ones here and elsewhere": {
			[]string{"10.1.0.1 here", "10.1.0.2"}, "10.1.0.1 10.1.0.2", "10.1.0.1", ""},
		"none here": {
			[]string{"10.1.0.1", "10.1.0.2"}, "10.1.0.1 10.1.0.2", "", ""},
		"one that does not say where it is, is not here": {
			[]string{"10.1.0.1 nowhere"}, "10.1.0.1", "", ""},
		"the one here drains, ready ones elsewhere": {
			[]string{"10.1.0.1 here draining", "10.1.0.2"}, "10.1.0.2", "10.1.0.1", ""},
		"a ready one here, draining ones are left to end": {
			[]string{"10.1.0.1 here", "10.1.0.2 here draining", "10.1.0.3 draining"}, "10.1.0.1", "10.1.0.1", "10.1.0.2 10.1.0.3"},
		"all drain": {
			[]string{"10.1.0.1 here draining", "10.1.0.2 draining", "10.1.0.3 gone"}, "10.1.0.1 10.1.0.2", "10.1.0.1", ""},
		"what is not serving is nowhere": {
			[]string{"10.1.0.1 here gone", "10.1.0.2 here unready"}, "", "", ""},

		"all are hinted for nodes, one for this": {
			[]string{"10.1.0.1 node=node1", "10.1.0.2 node=node2", "10.1.0.3 node=node1 node=node2"}, "10.1.0.1 10.1.0.3", "", "10.1.0.2"},
		"all are hinted for nodes, none for this": {
			[]string{"10.1.0.1 node=node2", "10.1.0.2 node=node3"}, "10.1.0.1 10.1.0.2", "", ""},
		"one is not hinted for a node": {
			[]string{"10.1.0.1 node=node1", "10.1.0.2"}, "10.1.0.1 10.1.0.2", "", ""},
		"one that is not ready needs no hint": {
			[]string{"10.1.0.1 node=node1", "10.1.0.2 node=node2", "10.1.0.3 draining"}, "10.1.0.1", "", "10.1.0.2 10.1.0.3"},
		"only one that is not ready is hinted for this node": {
			[]string{"10.1.0.1 draining node=node1", "10.1.0.2 node=node2"}, "10.1.0.2", "", "10.1.0.1"},
		"all are hinted for zones, one for this": {
			[]string{"10.1.0.1 zone=a", "10.1.0.2 zone=b", "10.1.0.3 zone=b zone=a"}, "10.1.0.1 10.1.0.3", "", "10.1.0.2"},
		"all are hinted for zones, none for this": {
			[]string{"10.1.0.1 zone=b", "10.1.0.2 zone=ab"}, "10.1.0.1 10.1.0.2", "", ""},
		"one is not hinted for a zone": {
			[]string{"10.1.0.1 zone=a", "10.1.0.2 node=node2"}, "10.1.0.1 10.1.0.2", "", ""},
		"hints for nodes win over those for zones": {
			[]string{"10.1.0.1 node=node1 zone=b", "10.1.0.2 node=node2 zone=a"}, "10.1.0.1", "", "10.1.0.2"},
		"no hint for this node, then the zone's": {
			[]string{"10.1.0.1 node=node2 zone=a", "10.1.0.2 node=node3 zone=b"}, "10.1.0.1", "", "10.1.0.2"},
		"none is ready, so hints do not count": {
			[]string{"10.1.0.1 draining node=node1 zone=a", "10.1.0.2 draining node=node2 zone=b"}, "10.1.0.1 10.1.0.2", "", ""},
		"hints say nothing to a policy Local": {
			[]string{"10.1.0.1 here node=node2 zone=b", "10.1.0.2 node=node1 zone=a"}, "10.1.0.2", "10.1.0.1", ""},
	} {
		t.Run(name, func(t *testing.T) {
			for _, f := range ipfamily.All {
				st := service.NewStore("node1")
				st.SetZone("a")
				st.SetService(webService(bothLocal))
				slice := webSlice("a")
				for _, words := range tc.endpoints {
					if f == ipfamily.IPv6 {
						words = strings.ReplaceAll(words, "10.1.0.", "fd00::")
					}
					slice.Endpoints = append(slice.Endpoints, at(words))
				}
				st.SetSlice(slice)
				got, _ := st.Snapshot().Services.Get(web)
				cluster, local, serving := seen(got, f)
				ip := func(s string) string { return strings.ReplaceAll(s, "fd00::", "10.1.0.") }
				if ip(cluster) != tc.cluster || ip(local) != tc.local || ip(serving) != tc.serving {
					t.Errorf("%s: cluster %q, local %q, serving %q; want %q, %q, %q", f, cluster, local, serving, tc.cluster, tc.local, tc.serving)
				}
			}
		})
	}
}

// TestFamiliesAreJudgedSeparately: hints of one family say nothing about the other.
func TestFamiliesAreJudgedSeparately(t *testing.T) {
	st := service.NewStore("node1")
	st.SetZone("a")
	st.SetService(webService(nil))
	st.SetSlice(webSlice("a", at("10.1.0.1 zone=a"), at("10.1.0.2 zone=b"), at("10.1.0.3 draining")))
	st.SetSlice(webSlice("b", at("fd00::1"), at("fd00::2 zone=b"), at("fd00::3 draining")))
	got, _ := st.Snapshot().Services.Get(web)
	if cluster, _, serving := seen(got, ipfamily.IPv4); cluster != "10.1.0.1" || serving != "10.1.0.2 10.1.0.3" {
		t.Errorf("IPv4: cluster %q, serving %q", cluster, serving)
	}
	if cluster, _, serving := seen(got, ipfamily.IPv6); cluster != "fd00::1 fd00::2" || serving != "fd00::3" {
		t.Errorf("IPv6: cluster %q, serving %q", cluster, serving)
	}
}

// TestNoLocalWithoutAPolicy: nobody looks at Local then.
func TestNoLocalWithoutAPolicy(t *testing.T) {
	st := service.NewStore("node1")
	st.SetService(webService(nil))
	st.SetSlice(webSlice("a", at("10.1.0.1 here"), at("10.1.0.2 here draining")))
	got, _ := st.Snapshot().Services.Get(web)
	if cluster, local, serving := seen(got, ipfamily.IPv4); cluster != "10.1.0.1" || local != "" || serving != "10.1.0.2" {
		t.Errorf("cluster %q, local %q, serving %q", cluster, local, serving)
	}
}

// TestZoneChange: a node that moves judges the Services anew that have hints for zones,
// and only these.
func TestZoneChange(t *testing.T) {
	st := service.NewStore("node1")
	hinted, plain := webService(nil), webService(func(s *corev1.Service) { s.Name, s.Spec.ClusterIPs = "plain", []string{"10.0.0.2"} })
	st.SetService(hinted)
	st.SetService(plain)
	st.SetSlice(webSlice("a", at("10.1.0.1 zone=a"), at("10.1.0.2 zone=b")))
	st.SetSlice(changed(webSlice("b", at("10.1.0.3 node=node1")), func(s *discoveryv1.EndpointSlice) {
		s.Labels[discoveryv1.LabelServiceName] = "plain"
	}))
	look := func(wantPending bool, want string) *service.Service {
		t.Helper()
		if st.Pending() != wantPending {
			t.Fatalf("Pending() = %t, want %t", st.Pending(), wantPending)
		}
		s := st.Snapshot().Services
		got, _ := s.Get(web)
		if cluster, _, _ := seen(got, ipfamily.IPv4); cluster != want {
			t.Errorf("cluster %q, want %q", cluster, want)
		}
		other := web
		other.Name = "plain"
		without, _ := s.Get(other)
		return without
	}
	before := look(true, "10.1.0.1 10.1.0.2")
	st.SetZone("b")
	if after := look(true, "10.1.0.2"); after != before {
		t.Error("a Service without hints for zones was judged anew")
	}
	st.SetZone("b")
	look(false, "10.1.0.2")
	st.SetZone("")
	look(true, "10.1.0.1 10.1.0.2")
}

// TestReadyLocal: how many endpoints the health check tells of.
func TestReadyLocal(t *testing.T) {
	twoPorts := func(s *corev1.Service) {
		bothLocal(s)
		s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Name: "https", Port: 443})
	}
	for name, tc := range map[string]struct {
		change    func(*corev1.Service)
		endpoints []string
		want      [2]int
	}{
		"ready here, of both families":                 {bothLocal, []string{"10.1.0.1 here", "10.1.0.2 here", "fd00::1 here", "10.1.0.3"}, [2]int{2, 1}},
		"an address with two ports counts once":        {twoPorts, []string{"10.1.0.1 here", "10.1.0.2 here"}, [2]int{2, 0}},
		"those that drain do not count":                {bothLocal, []string{"10.1.0.1 here draining", "10.1.0.2"}, [2]int{}},
		"those that do not say where they are neither": {bothLocal, []string{"10.1.0.1 nowhere"}, [2]int{}},
		"hints say nothing":                            {bothLocal, []string{"10.1.0.1 here node=node2", "10.1.0.2 node=node1"}, [2]int{1, 0}},
		"without a health check there is nobody to tell": {func(s *corev1.Service) {
			bothLocal(s)
			s.Spec.Type = corev1.ServiceTypeNodePort
		}, []string{"10.1.0.1 here"}, [2]int{}},
	} {
		t.Run(name, func(t *testing.T) {
			st := service.NewStore("node1")
			st.SetService(webService(tc.change))
			slice := webSlice("a")
			slice.Ports = append(slice.Ports, discoveryv1.EndpointPort{Name: new("https"), Port: new(int32(8443))})
			for _, words := range tc.endpoints {
				slice.Endpoints = append(slice.Endpoints, at(words))
			}
			st.SetSlice(slice)
			if got, _ := st.Snapshot().Services.Get(web); got.ReadyLocal != tc.want {
				t.Errorf("ReadyLocal = %v, want %v", got.ReadyLocal, tc.want)
			}
		})
	}
}

// TestWeights: the share of each endpoint.
func TestWeights(t *testing.T) {
	for name, tc := range map[string]struct {
		annotation string
		want       [2]uint16 // of 10.1.0.1 and 10.1.0.2
		faults     []string
	}{
		"none":                           {want: [2]uint16{1, 1}},
		"of one":                         {annotation: `{"10.1.0.1":3}`, want: [2]uint16{3, 1}},
		"of both, and one that is gone":  {annotation: `{"10.1.0.1":100,"10.1.0.2":1,"10.9.9.9":7}`, want: [2]uint16{100, 1}},
		"no object":                      {annotation: `[3]`, want: [2]uint16{1, 1}, faults: []string{`EndpointSlice a: metadata.annotations[fairlead.dev/weights]: Invalid value: "[3]": must be a JSON object of weights by address, such as {"10.244.1.2":3}`}},
		"a bad one leaves the others":    {annotation: `{"10.1.0.1":3,"10.1.0.2":101}`, want: [2]uint16{3, 1}, faults: []string{`EndpointSlice a: metadata.annotations[fairlead.dev/weights][10.1.0.2]: Invalid value: "101": must be a whole number between 1 and 100`}},
		"none is zero, broken or a word": {annotation: `{"10.1.0.1":0,"10.1.0.2":1.5,"10.1.0.3":"many"}`, want: [2]uint16{1, 1}, faults: []string{`EndpointSlice a: metadata.annotations[fairlead.dev/weights][10.1.0.1]: Invalid value: "0": must be a whole number between 1 and 100`, `EndpointSlice a: metadata.annotations[fairlead.dev/weights][10.1.0.2]: Invalid value: "1.5": must be a whole number between 1 and 100`, `EndpointSlice a: metadata.annotations[fairlead.dev/weights][10.1.0.3]: Invalid value: "\"many\"": must be a whole number between 1 and 100`}},
		"of a pod's name":                {annotation: `{"pod":3}`, want: [2]uint16{1, 1}, faults: []string{`EndpointSlice a: metadata.annotations[fairlead.dev/weights]: Invalid value: "pod": must have IP addresses as its keys`}},
	} {
		t.Run(name, func(t *testing.T) {
			st := service.NewStore("node1")
			st.SetService(webService(nil))
			slice := webSlice("a", at("10.1.0.1"), at("10.1.0.2"))
			if tc.annotation != "" {
				slice.Annotations = map[string]string{"fairlead.dev/weights": tc.annotation}
			}
			st.SetSlice(slice)
			got, _ := st.Snapshot().Services.Get(web)
			backends := got.Ports[0].Cluster[ipfamily.IPv4]
			if len(backends) != 2 || [2]uint16{backends[0].Weight, backends[1].Weight} != tc.want {
				t.Errorf("backends %v, want weights %v", backends, tc.want)
			}
			wantFaults(t, got, tc.faults...)
			st.DeleteSlice(types.NamespacedName{Namespace: "default", Name: "a"})
			if got, _ = st.Snapshot().Services.Get(web); len(got.Faults) != 0 {
				t.Errorf("faults %v of a slice that is gone", got.Faults)
			}
		})
	}
}

// TestSliceFaults: what of a slice cannot be used is named.
func TestSliceFaults(t *testing.T) {
	st := service.NewStore("node1")
	st.SetService(webService(nil))
	slice := webSlice("a", at("nonsense"), at("10.1.0.1"))
	slice.Ports = append(slice.Ports, discoveryv1.EndpointPort{Name: new("x"), Port: new(int32(70000))},
		discoveryv1.EndpointPort{Name: new("y"), Port: new(int32(1)), Protocol: new(corev1.Protocol("ICMP"))})
	st.SetSlice(slice)
	got, _ := st.Snapshot().Services.Get(web)
	wantFaults(t, got,
		`EndpointSlice a: ports[1].port: Invalid value: 70000: must be a port between 1 and 65535`,
		`EndpointSlice a: ports[2].protocol: Invalid value: "ICMP": must be TCP, UDP or SCTP`,
		`EndpointSlice a: endpoints[0].addresses[0]: Invalid value: "nonsense": must be an IP address`,
	)
	if cluster, _, _ := seen(got, ipfamily.IPv4); cluster != "10.1.0.1" {
		t.Errorf("cluster %q", cluster)
	}
}

// TestNodeFacts: what the node is told by reaches the Snapshot, in order and each once,
// and only a difference is news.
func TestNodeFacts(t *testing.T) {
	a, b := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")
	p, q := netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:96::/112")
	addrs := func(get func(*service.Snapshot) []netip.Addr, set func(*service.Store, []netip.Addr)) func(*testing.T) {
		return func(t *testing.T) { checkFact(t, []netip.Addr{a, b}, get, set) }
	}
	cidrs := func(get func(*service.Snapshot) []netip.Prefix, set func(*service.Store, []netip.Prefix)) func(*testing.T) {
		return func(t *testing.T) { checkFact(t, []netip.Prefix{p, q}, get, set) }
	}
	t.Run("NodePortAddrs", addrs(func(s *service.Snapshot) []netip.Addr { return s.NodePortAddrs }, (*service.Store).SetNodePortAddrs))
	t.Run("NodeAddrs", addrs(func(s *service.Snapshot) []netip.Addr { return s.NodeAddrs }, (*service.Store).SetNodeAddrs))
	t.Run("PodCIDRs", cidrs(func(s *service.Snapshot) []netip.Prefix { return s.PodCIDRs }, (*service.Store).SetPodCIDRs))
	t.Run("ServiceCIDRs", cidrs(func(s *service.Snapshot) []netip.Prefix { return s.ServiceCIDRs }, (*service.Store).SetServiceCIDRs))
}

func checkFact[T comparable](t *testing.T, sorted []T, get func(*service.Snapshot) []T, set func(*service.Store, []T)) {
	t.Helper()
	st := service.NewStore("node1")
	mixed := []T{sorted[1], sorted[0], sorted[1]}
	set(st, mixed)
	if !st.Pending() {
		t.Error("nothing is pending after a change")
	}
	first := st.Snapshot()
	mixed[0] = *new(T)
	if diff := cmp.Diff(sorted, get(first), cmp.Comparer(func(a, b T) bool { return a == b })); diff != "" {
		t.Errorf("mismatch (-want +got):\n%s", diff)
	}
	set(st, sorted)
	if st.Pending() {
		t.Error("the same in another order is pending")
	}
	set(st, nil)
	if !st.Pending() || len(get(st.Snapshot())) != 0 || len(get(first)) != 2 {
		t.Error("what went is still there, or went from an older Snapshot too")
	}
}
