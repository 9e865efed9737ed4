package service_test

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"fairlead.dev/fairlead/internal/ipfamily"
	"fairlead.dev/fairlead/internal/service"
)

var web = types.NamespacedName{Namespace: "default", Name: "web"}

// webService returns a Service with port 80, changed by change.
func webService(change func(*corev1.Service)) *corev1.Service {
	s := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: web.Namespace, Name: web.Name},
		Spec: corev1.ServiceSpec{
			ClusterIP: "10.0.0.1", ClusterIPs: []string{"10.0.0.1"},
			Ports: []corev1.ServicePort{{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP}},
		},
	}
	if change != nil {
		change(s)
	}
	return s
}

// webSlice returns a slice of the Service with port 8080.
func webSlice(name string, endpoints ...discoveryv1.Endpoint) *discoveryv1.EndpointSlice {
	return &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Namespace: web.Namespace, Name: name, Labels: map[string]string{
			discoveryv1.LabelServiceName: web.Name,
		}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: new("http"), Port: new(int32(8080)), Protocol: new(corev1.ProtocolTCP)}},
		Endpoints:   endpoints,
	}
}

func endpoint(addr string, ready, serving, terminating *bool) discoveryv1.Endpoint {
	return discoveryv1.Endpoint{Addresses: []string{addr}, NodeName: new("node2"),
		Conditions: discoveryv1.EndpointConditions{Ready: ready, Serving: serving, Terminating: terminating}}
}

var (
	yes, no  = new(true), new(false)
	draining = func(a string) discoveryv1.Endpoint { return endpoint(a, no, yes, yes) }
)

// TestBackends: which endpoints of a Service get new connections.
func TestBackends(t *testing.T) {
	for name, tc := range map[string]struct {
		slices []*discoveryv1.EndpointSlice
		want   []string
	}{
		"no slices":                          {},
		"nil conditions are ready":           {slices: only(webSlice("a", endpoint("10.1.0.1", nil, nil, nil))), want: []string{"10.1.0.1:8080"}},
		"all slices count, in address order": {slices: only(webSlice("a", endpoint("10.1.0.9", yes, yes, no)), webSlice("b", endpoint("10.1.0.1", yes, yes, no))), want: []string{"10.1.0.1:8080", "10.1.0.9:8080"}},
		"ready wins over draining":           {slices: only(webSlice("a", draining("10.1.0.1"), endpoint("10.1.0.2", yes, yes, no))), want: []string{"10.1.0.2:8080"}},
		"none ready falls back to draining":  {slices: only(webSlice("a", draining("10.1.0.1"), endpoint("10.1.0.2", no, no, no))), want: []string{"10.1.0.1:8080"}},
		"terminating and not serving is out": {slices: only(webSlice("a", endpoint("10.1.0.1", no, no, yes)))},
		"serving defaults to serving":        {slices: only(webSlice("a", endpoint("10.1.0.1", no, nil, yes))), want: []string{"10.1.0.1:8080"}},
		"the same address twice: the non-terminating one": {
			slices: only(webSlice("a", draining("10.1.0.1")), webSlice("b", endpoint("10.1.0.1", yes, yes, no))), want: []string{"10.1.0.1:8080"}},
		"FQDN slices are ignored": {slices: only(changed(webSlice("a", endpoint("web.example.com", yes, yes, no)), func(s *discoveryv1.EndpointSlice) {
			s.AddressType = discoveryv1.AddressTypeFQDN
		}))},
		"slices labelled headless are ignored": {slices: only(changed(webSlice("a", endpoint("10.1.0.1", yes, yes, no)), func(s *discoveryv1.EndpointSlice) {
			s.Labels[corev1.IsHeadlessService] = ""
		}))},
		"a nil port is ignored":                     {slices: only(changed(webSlice("a", endpoint("10.1.0.1", yes, yes, no)), func(s *discoveryv1.EndpointSlice) { s.Ports[0].Port = nil }))},
		"port 0 is ignored":                         {slices: only(changed(webSlice("a", endpoint("10.1.0.1", yes, yes, no)), func(s *discoveryv1.EndpointSlice) { s.Ports[0].Port = new(int32(0)) }))},
		"another port name is another port":         {slices: only(changed(webSlice("a", endpoint("10.1.0.1", yes, yes, no)), func(s *discoveryv1.EndpointSlice) { s.Ports[0].Name = new("other") }))},
		"another protocol is another port":          {slices: only(changed(webSlice("a", endpoint("10.1.0.1", yes, yes, no)), func(s *discoveryv1.EndpointSlice) { s.Ports[0].Protocol = new(corev1.ProtocolUDP) }))},
		"an address that is none leaves the others": {slices: only(webSlice("a", endpoint("nonsense", yes, yes, no), endpoint("10.1.0.2", yes, yes, no))), want: []string{"10.1.0.2:8080"}},
	} {
		t.Run(name, func(t *testing.T) {
			st := service.NewStore("node1")
			for _, s := range tc.slices {
				st.SetSlice(s)
			}
			st.SetService(webService(nil))
			got, _ := st.Snapshot().Services.Get(web)
			var addrs []string
			for _, b := range got.Ports[0].Cluster[ipfamily.IPv4] {
				addrs = append(addrs, b.Addr.String())
			}
			if diff := cmp.Diff(tc.want, addrs); diff != "" {
				t.Errorf("backends mismatch (-want +got):\n%s", diff)
			}
		})
	}
}

func only(s ...*discoveryv1.EndpointSlice) []*discoveryv1.EndpointSlice { return s }

func changed(s *discoveryv1.EndpointSlice, change func(*discoveryv1.EndpointSlice)) *discoveryv1.EndpointSlice {
	change(s)
	return s
}

// TestServices: which Services have rules, and at which addresses.
func TestServices(t *testing.T) {
	addr := func(s ...string) (out []netip.Addr) {
		for _, a := range s {
			out = append(out, netip.MustParseAddr(a))
		}
		return out
	}
	ports := []service.Port{{Name: "http", Protocol: service.TCP, Port: 80}}
	for name, tc := range map[string]struct {
		change func(*corev1.Service)
		want   *service.Service
	}{
		"ClusterIP":              {want: &service.Service{Name: web, ClusterIPs: addr("10.0.0.1"), Ports: ports}},
		"headless":               {change: func(s *corev1.Service) { s.Spec.ClusterIP, s.Spec.ClusterIPs = "None", []string{"None"} }},
		"ExternalName":           {change: func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeExternalName }},
		"without an address yet": {change: func(s *corev1.Service) { s.Spec.ClusterIP, s.Spec.ClusterIPs = "", nil }},
		"of another proxy": {change: func(s *corev1.Service) {
			s.Labels = map[string]string{"service.kubernetes.io/service-proxy-name": "other"}
		}},
		"written by a client that knows one family only": {
			change: func(s *corev1.Service) { s.Spec.ClusterIPs = nil },
			want:   &service.Service{Name: web, ClusterIPs: addr("10.0.0.1"), Ports: ports},
		},
		"all kinds of addresses": {
			change: func(s *corev1.Service) {
				s.Spec.ClusterIPs = []string{"10.0.0.1", "fd00::1"}
				s.Spec.ExternalIPs = []string{"192.0.2.1"}
				s.Spec.Ports[0].NodePort = 30080
				s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{
					{IP: "192.0.2.2"}, {IP: "2001:db8::2", IPMode: new(corev1.LoadBalancerIPModeVIP)},
					{IP: "192.0.2.3", IPMode: new(corev1.LoadBalancerIPModeProxy)}, {Hostname: "lb.example.com"},
				}
			},
			want: &service.Service{Name: web, ClusterIPs: addr("10.0.0.1", "fd00::1"), ExternalIPs: addr("192.0.2.1"),
				LoadBalancerIPs: addr("192.0.2.2", "2001:db8::2"),
				Ports:           []service.Port{{Name: "http", Protocol: service.TCP, Port: 80, NodePort: 30080}}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			st := service.NewStore("node1")
			st.SetService(webService(nil))
			st.Snapshot()
			st.SetService(webService(tc.change))
			got, _ := st.Snapshot().Services.Get(web)
			if diff := cmp.Diff(tc.want, got, cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{})); diff != "" {
				t.Errorf("Service mismatch (-want +got):\n%s", diff)
			}
		})
	}
}

// TestStoreFollowsEvents: a slice that changes hands, Services and slices in any order,
// and that what did not change stays the same pointer.
func TestStoreFollowsEvents(t *testing.T) {
	st := service.NewStore("node1")
	other := webService(func(s *corev1.Service) {
		s.Name, s.Spec.ClusterIP, s.Spec.ClusterIPs = "other", "10.0.0.2", []string{"10.0.0.2"}
	})
	st.SetSlice(webSlice("a", endpoint("10.1.0.1", yes, yes, no)))
	st.SetService(webService(nil))
	st.SetService(other)
	first := st.Snapshot()
	backends := func(s *service.Snapshot, name string) int {
		svc, ok := s.Services.Get(types.NamespacedName{Namespace: "default", Name: name})
		if !ok {
			return -1
		}
		return len(svc.Ports[0].Cluster[ipfamily.IPv4])
	}
	if backends(first, "web") != 1 || backends(first, "other") != 0 {
		t.Fatalf("web has %d backends, other %d; want 1 and 0", backends(first, "web"), backends(first, "other"))
	}

	st.SetSlice(changed(webSlice("a", endpoint("10.1.0.1", yes, yes, no)), func(s *discoveryv1.EndpointSlice) {
		s.Labels[discoveryv1.LabelServiceName] = "other"
	}))
	second := st.Snapshot()
	if backends(second, "web") != 0 || backends(second, "other") != 1 {
		t.Errorf("after the slice changed hands, web has %d backends, other %d; want 0 and 1", backends(second, "web"), backends(second, "other"))
	}
	if backends(first, "web") != 1 {
		t.Error("a Snapshot changed after it was made")
	}

	st.DeleteSlice(types.NamespacedName{Namespace: "default", Name: "a"})
	st.DeleteService(web)
	third := st.Snapshot()
	if backends(third, "web") != -1 || backends(third, "other") != 0 {
		t.Errorf("at the end, web has %d backends, other %d; want -1 for gone and 0", backends(third, "web"), backends(third, "other"))
	}
	if st.Pending() || len(st.SliceNames()) != 0 || len(st.ServiceNames()) != 1 {
		t.Errorf("pending %t, slices %v, Services %v", st.Pending(), st.SliceNames(), st.ServiceNames())
	}
	a, _ := third.Services.Get(types.NamespacedName{Namespace: "default", Name: "other"})
	b, _ := st.Snapshot().Services.Get(types.NamespacedName{Namespace: "default", Name: "other"})
	if a != b {
		t.Error("a Service that did not change is another pointer")
	}
}

// TestLocal: an endpoint may be local when it says so, or does not say where it is.
func TestLocal(t *testing.T) {
	for name, tc := range map[string]struct {
		node *string
		want bool
	}{
		"on this node": {new("node1"), true}, "on another": {new("node2"), false}, "nowhere": {nil, true},
	} {
		t.Run(name, func(t *testing.T) {
			st := service.NewStore("node1")
			st.SetService(webService(nil))
			e := endpoint("10.1.0.1", yes, yes, no)
			e.NodeName = tc.node
			st.SetSlice(webSlice("a", e))
			got, _ := st.Snapshot().Services.Get(web)
			if local := got.Ports[0].Cluster[ipfamily.IPv4][0].Local; local != tc.want {
				t.Errorf("Local = %t, want %t", local, tc.want)
			}
		})
	}
}

// TestNothingNewIsNoNews: objects that say what they said before change nothing, nor do
// slices of a Service that has no rules.
func TestNothingNewIsNoNews(t *testing.T) {
	st := service.NewStore("node1")
	slice := webSlice("a", endpoint("10.1.0.1", yes, yes, no))
	st.SetSlice(slice)
	if st.Pending() {
		t.Error("a slice without a Service is pending")
	}
	st.SetService(webService(nil))
	before, _ := st.Snapshot().Services.Get(web)
	st.SetService(webService(func(s *corev1.Service) {
		s.ResourceVersion, s.Annotations = "2", map[string]string{"note": "x"}
	}))
	noted := slice.DeepCopy()
	noted.ResourceVersion, noted.Endpoints[0].Hostname = "2", new("pod")
	st.SetSlice(noted)
	if st.Pending() {
		t.Error("objects that say nothing new are pending")
	}
	if after, _ := st.Snapshot().Services.Get(web); after != before {
		t.Error("a Service that did not change is another pointer")
	}
	noted.Endpoints[0] = draining("10.1.0.1")
	st.SetSlice(noted)
	if !st.Pending() {
		t.Error("an endpoint that drains is not pending")
	}
}
