package node

import (
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	clocktesting "k8s.io/utils/clock/testing"

	"fairlead.dev/fairlead/api/config/v1alpha1"
	"fairlead.dev/fairlead/internal/service"
)

func cidrs(s ...string) []netip.Prefix { return prefixes(s) }

func wantSame(t *testing.T, what string, want, got any) {
	t.Helper()
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}), cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("%s mismatch (-want +got):\n%s", what, diff)
	}
}

func newModel(local v1alpha1.LocalTraffic) *model {
	m := &model{store: service.NewStore("node1")}
	m.configure(&v1alpha1.NodeConfiguration{LocalTraffic: local, NodePortAddresses: []string{v1alpha1.NodePortPrimary}})
	return m
}

func withPodCIDRs(cidrs ...string) *corev1.Node {
	n := nodeWith()
	n.Spec.PodCIDRs = cidrs
	return n
}

// TestPodCIDRs: by which ranges pods are told.
func TestPodCIDRs(t *testing.T) {
	byNode := v1alpha1.LocalTraffic{NodeCIDR: true}
	old := nodeWith()
	old.Spec.PodCIDR = "10.244.1.0/24"
	for name, tc := range map[string]struct {
		local   v1alpha1.LocalTraffic
		nodes   []*corev1.Node
		want    []netip.Prefix
		unknown bool
	}{
		"the cluster's, whatever the Node says":   {v1alpha1.LocalTraffic{ClusterCIDRs: []string{"10.244.0.0/16"}}, []*corev1.Node{withPodCIDRs("10.244.1.0/24")}, cidrs("10.244.0.0/16"), false},
		"none are asked for":                      {v1alpha1.LocalTraffic{Bridge: "cni0"}, []*corev1.Node{withPodCIDRs("10.244.1.0/24")}, nil, false},
		"the Node's":                              {byNode, []*corev1.Node{withPodCIDRs("10.244.1.0/24", "fd00:1::/64")}, cidrs("10.244.1.0/24", "fd00:1::/64"), false},
		"the Node's, of an old API server":        {byNode, []*corev1.Node{old}, cidrs("10.244.1.0/24"), false},
		"the Node has none yet":                   {byNode, []*corev1.Node{nodeWith()}, nil, true},
		"the Node got some":                       {byNode, []*corev1.Node{nodeWith(), withPodCIDRs("10.244.1.0/24")}, cidrs("10.244.1.0/24"), false},
		"a Node that goes leaves its pods behind": {byNode, []*corev1.Node{withPodCIDRs("10.244.1.0/24"), nil}, cidrs("10.244.1.0/24"), false},
		"a Node that comes back with others":      {byNode, []*corev1.Node{withPodCIDRs("10.244.1.0/24"), nil, withPodCIDRs("10.244.2.0/24")}, cidrs("10.244.2.0/24"), false},
	} {
		t.Run(name, func(t *testing.T) {
			m := newModel(tc.local)
			for _, n := range tc.nodes {
				m.setNode(n)
			}
			wantSame(t, "PodCIDRs", tc.want, m.store.Snapshot().PodCIDRs)
			if m.podsUnknown() != tc.unknown {
				t.Errorf("podsUnknown() = %t, want %t", m.podsUnknown(), tc.unknown)
			}
		})
	}
}

// TestNodeAddrs: an address that comes or goes is in the next Snapshot.
func TestNodeAddrs(t *testing.T) {
	m := newModel(v1alpha1.LocalTraffic{})
	look := func(want ...string) {
		t.Helper()
		if !m.store.Pending() {
			t.Error("nothing is pending")
		}
		wantSame(t, "NodeAddrs", addrs(want...), m.store.Snapshot().NodeAddrs)
	}
	m.setLocalAddrs(addrs("192.0.2.1", "fd00::1"))
	look("192.0.2.1", "fd00::1")
	m.setNode(nodeWith("10.0.0.9", "192.0.2.1"))
	look("10.0.0.9", "192.0.2.1", "fd00::1")
	m.setLocalAddrs(addrs("192.0.2.1"))
	look("10.0.0.9", "192.0.2.1")
	m.setNode(nil)
	look("192.0.2.1")
}

// TestServiceCIDRs: those of all ServiceCIDR objects, each once, as they come and go.
func TestServiceCIDRs(t *testing.T) {
	m, in := newModel(v1alpha1.LocalTraffic{}), newIntake(clocktesting.NewFakePassiveClock(time.Unix(1, 0)))
	in.unsynced = 1
	feed := &feed[*networkingv1.ServiceCIDR]{in: in, kind: serviceCIDRs()}
	object := func(name string, cidrs ...string) *networkingv1.ServiceCIDR {
		return &networkingv1.ServiceCIDR{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: networkingv1.ServiceCIDRSpec{CIDRs: cidrs}}
	}
	look := func(want ...string) {
		t.Helper()
		events, _ := in.take()
		for _, e := range events {
			e.apply(m)
		}
		if !m.store.Pending() {
			t.Error("nothing is pending")
		}
		wantSame(t, "ServiceCIDRs", cidrs(want...), m.store.Snapshot().ServiceCIDRs)
	}
	must(t, feed.Replace([]any{object("kubernetes", "10.96.0.0/16", "fd00:96::/112")}, ""))
	look("10.96.0.0/16", "fd00:96::/112")
	must(t, feed.Add(object("more", "10.97.0.0/16", "10.96.0.0/16")))
	look("10.96.0.0/16", "10.97.0.0/16", "fd00:96::/112")
	must(t, feed.Delete(object("kubernetes")))
	look("10.96.0.0/16", "10.97.0.0/16")
	must(t, feed.Replace([]any{object("other", "10.98.0.0/16")}, ""))
	look("10.98.0.0/16")
}

// TestZone: a node that moves is judged by its new zone, also while its Node is away.
func TestZone(t *testing.T) {
	m := newModel(v1alpha1.LocalTraffic{})
	m.store.SetService(clusterIP("web", "10.0.0.1"))
	slice := sliceOf("web", "10.1.0.1", time.Unix(1, 0))
	slice.Endpoints = nil
	for zone, addr := range map[string]string{"a": "10.1.0.1", "b": "10.1.0.2"} {
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{Addresses: []string{addr},
			Hints: &discoveryv1.EndpointHints{ForZones: []discoveryv1.ForZone{{Name: zone}}}})
	}
	m.store.SetSlice(slice)
	in := func(zone string) *corev1.Node {
		n := nodeWith()
		n.Labels = map[string]string{corev1.LabelTopologyZone: zone}
		return n
	}
	for _, step := range []struct {
		node *corev1.Node
		want []string
	}{
		{in("a"), []string{"10.1.0.1"}}, {in("b"), []string{"10.1.0.2"}}, {nil, []string{"10.1.0.2"}}, {nodeWith(), []string{"10.1.0.1", "10.1.0.2"}},
	} {
		m.setNode(step.node)
		svc, _ := m.store.Snapshot().Services.Get(nameOf(clusterIP("web", "")))
		var got []netip.Addr
		for _, b := range svc.Ports[0].Cluster[0] {
			got = append(got, b.Addr.Addr())
		}
		wantSame(t, "endpoints", addrs(step.want...), got)
	}
}
