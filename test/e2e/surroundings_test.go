package e2e_test

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"fairlead.dev/fairlead/test/cluster"
	"fairlead.dev/fairlead/test/netlab"
)

// surroundingsTime is the promise for what is no Service: kube-proxy needs up to an hour.
const surroundingsTime = 2 * time.Second

// TestSurroundings: what rules depend on beside Services and endpoints, the ServiceCIDRs
// and the Node's zone, is in the rules at once when it changes.
func TestSurroundings(t *testing.T) {
	w := newNodeWorld(t)
	zones := w.addZonedService(t)
	w.run(t, "--node-name", "node1")
	w.answers(t)

	t.Run("a ServiceCIDR that comes and goes", func(t *testing.T) {
		w.serviceCIDRComesAndGoes(t)
	})
	t.Run("the Node's zone", func(t *testing.T) {
		for _, tc := range []struct {
			label string // JSON
			want  []string
		}{
			{`"a"`, []string{"zone-a"}},
			{`"b"`, []string{"zone-b"}},
			{`"nobody-s"`, []string{"zone-a", "zone-b"}},
			{`"a"`, []string{"zone-a"}},
			{`null`, []string{"zone-a", "zone-b"}},
		} {
			patch := fmt.Sprintf(`{"metadata":{"labels":{%q:%s}}}`, corev1.LabelTopologyZone, tc.label)
			_, err := w.Client.CoreV1().Nodes().Patch(t.Context(), "node1", types.MergePatchType, []byte(patch), metav1.PatchOptions{})
			must(t, err)
			soon(t, "zone "+tc.label, func() error { return w.answeredBy(zones, tc.want) })
		}
	})
}

// soon waits for a condition that the change before it brings about, and fails the test
// where that took longer than promised.
func soon(t *testing.T, what string, check func() error) {
	t.Helper()
	start := time.Now()
	cluster.Eventually(t, check)
	if took := time.Since(start); took > surroundingsTime {
		t.Errorf("%s: it took %s", what, took)
	}
}

// serviceCIDRComesAndGoes asks an address that somebody outside of the cluster has. While
// a ServiceCIDR claims it, packets there are dropped, since no Service has it.
func (w *nodeWorld) serviceCIDRComesAndGoes(t *testing.T) {
	t.Helper()
	outside := netip.MustParsePrefix("10.97.0.9/32")
	must(t, w.client.AddAddr(outside))
	echo, err := netlab.StartEcho(w.client, "web-1", 80)
	must(t, err)
	t.Cleanup(func() { must(t, echo.Close()) })
	must(t, w.node.AddRoute(outside, w.client.IPv4))
	answered := func() error {
		return w.askFor(200*time.Millisecond, &w.node.Host, netip.AddrPortFrom(outside.Addr(), 80))
	}
	must(t, answered())

	cidrs := w.Client.NetworkingV1().ServiceCIDRs()
	_, err = cidrs.Create(t.Context(), &networkingv1.ServiceCIDR{
		ObjectMeta: metav1.ObjectMeta{Name: "more"}, Spec: networkingv1.ServiceCIDRSpec{CIDRs: []string{"10.97.0.0/24"}},
	}, metav1.CreateOptions{})
	must(t, err)
	t.Cleanup(func() { // the control plane goes on
		ctx, cancel := timeout()
		defer cancel()
		if err := cidrs.Delete(ctx, "more", metav1.DeleteOptions{}); !apierrors.IsNotFound(err) {
			must(t, err)
		}
	})
	soon(t, "a new ServiceCIDR", func() error {
		if answered() == nil {
			return errors.New("got an answer, want silence")
		}
		return nil
	})
	must(t, w.ask(&w.node.Host, w.vip))

	must(t, cidrs.Delete(t.Context(), "more", metav1.DeleteOptions{}))
	soon(t, "a deleted ServiceCIDR", answered)
	must(t, w.ask(&w.node.Host, w.vip))
}

// addZonedService creates a Service with an endpoint in each of the zones a and b, where
// pods zone-a and zone-b answer, and returns its address.
func (w *nodeWorld) addZonedService(t *testing.T) netip.AddrPort {
	t.Helper()
	ip, _ := w.AddService(t, "zoned")
	slice := cluster.Slice("zoned", nil)
	for _, zone := range []string{"a", "b"} {
		name := "zone-" + zone
		pod, err := w.node.AddPod(name)
		must(t, err)
		echo, err := netlab.StartEcho(pod, name, 8080)
		must(t, err)
		t.Cleanup(func() { must(t, echo.Close()) })
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{
			Addresses: []string{pod.IPv4.String()}, Conditions: discoveryv1.EndpointConditions{Ready: new(true)},
			Zone: &zone, Hints: &discoveryv1.EndpointHints{ForZones: []discoveryv1.ForZone{{Name: zone}}},
		})
	}
	_, err := w.Client.DiscoveryV1().EndpointSlices("default").Update(t.Context(), slice, metav1.UpdateOptions{})
	must(t, err)
	return netip.AddrPortFrom(netip.MustParseAddr(ip), 80)
}

// answeredBy returns nil when just those answer that are wanted: of two at random, one is
// missed in 30 tries once in 500 million times.
func (w *nodeWorld) answeredBy(at netip.AddrPort, want []string) error {
	ctx, cancel := timeout()
	defer cancel()
	got := map[string]bool{}
	for range 30 {
		name, _, err := w.node.HTTP(ctx, at)
		if err != nil {
			return err
		}
		got[name] = true
	}
	if names := slices.Sorted(maps.Keys(got)); !slices.Equal(names, want) {
		return fmt.Errorf("%v answered, want %v", names, want)
	}
	return nil
}
