package endpointslice_test

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"fairlead.dev/fairlead/internal/endpointslice"
)

const managedBy = "endpointslice-controller.k8s.io"

var (
	both     = []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol}
	families = []discoveryv1.AddressType{discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6}
)

// fatal is *testing.T or *rapid.T.
type fatal interface {
	Helper()
	Fatalf(format string, args ...any)
}

// dualStack returns the Service web/web with one numeric port, changed by edit.
func dualStack(edit ...func(*corev1.Service)) *corev1.Service {
	svc := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "shop", Name: "web", UID: "web-uid", CreationTimestamp: metav1.Unix(1000, 0),
		},
		Spec: corev1.ServiceSpec{
			Type:       corev1.ServiceTypeClusterIP,
			ClusterIP:  "10.96.0.10",
			IPFamilies: both,
			Selector:   map[string]string{"app": "web"},
			Ports: []corev1.ServicePort{{
				Name: "http", Port: 80, Protocol: corev1.ProtocolTCP, TargetPort: intstr.FromInt32(8080),
			}},
		},
	}
	for _, f := range edit {
		f(svc)
	}
	return svc
}

// pod returns a ready pod of the Service on node-a, with an address of each family that
// follows from its number, changed by edit.
func pod(number int, edit ...func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "shop", Name: fmt.Sprintf("pod-%03d", number), UID: types.UID(fmt.Sprintf("pod-uid-%d", number)),
			Labels: map[string]string{"app": "web"},
		},
		Spec: corev1.PodSpec{NodeName: "node-a"},
		Status: corev1.PodStatus{
			Phase:      corev1.PodRunning,
			PodIP:      address(number, discoveryv1.AddressTypeIPv4),
			PodIPs:     []corev1.PodIP{{IP: address(number, discoveryv1.AddressTypeIPv4)}, {IP: address(number, discoveryv1.AddressTypeIPv6)}},
			Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}},
		},
	}
	for _, f := range edit {
		f(p)
	}
	return p
}

func address(number int, family discoveryv1.AddressType) string {
	if family == discoveryv1.AddressTypeIPv6 {
		return fmt.Sprintf("fd00::%x", number+1)
	}
	return fmt.Sprintf("10.0.%d.%d", number/256, number%256)
}

func pods(from, to int, edit ...func(*corev1.Pod)) []*corev1.Pod {
	var all []*corev1.Pod
	for n := from; n < to; n++ {
		all = append(all, pod(n, edit...))
	}
	return all
}

func notReady(p *corev1.Pod) { p.Status.Conditions[0].Status = corev1.ConditionFalse }

func terminating(p *corev1.Pod) { p.DeletionTimestamp = new(metav1.Unix(2000, 0)) }

func publishNotReady(svc *corev1.Service) { svc.Spec.PublishNotReadyAddresses = true }

func headless(svc *corev1.Service) { svc.Spec.ClusterIP = corev1.ClusterIPNone }

func singleStack(svc *corev1.Service) { svc.Spec.IPFamilies = both[:1] }

// nodes returns node-a in zone-a and node-b in zone-b.
func nodes() map[string]*corev1.Node {
	all := map[string]*corev1.Node{}
	for _, x := range []string{"a", "b"} {
		all["node-"+x] = &corev1.Node{ObjectMeta: metav1.ObjectMeta{
			Name: "node-" + x, Labels: map[string]string{corev1.LabelTopologyZone: "zone-" + x},
		}}
	}
	return all
}

// world is the API server's side of the slices.
type world struct {
	svc    *corev1.Service
	pods   []*corev1.Pod
	nodes  map[string]*corev1.Node
	slices []*discoveryv1.EndpointSlice
	limit  int
	writes int // of all plans together, and versions of objects
}

func newWorld(svc *corev1.Service, pods ...*corev1.Pod) *world {
	return &world{svc: svc, pods: pods, nodes: nodes(), limit: 100}
}

func (w *world) plan() endpointslice.Plan {
	return endpointslice.Compute(
		endpointslice.Input{Service: w.svc, Pods: w.pods, Nodes: w.nodes, Slices: w.slices},
		endpointslice.Options{ManagedBy: managedBy, MaxEndpointsPerSlice: w.limit})
}

// sync plans and applies the plan as the API server would.
func (w *world) sync(t fatal) endpointslice.Plan {
	t.Helper()
	plan := w.plan()
	for _, slice := range plan.Create {
		if w.find(slice.Name) >= 0 {
			t.Fatalf("create of %s, which exists", slice.Name)
		}
		w.writes++
		created := slice.DeepCopy()
		created.UID, created.ResourceVersion = types.UID(fmt.Sprint("slice-uid-", w.writes)), fmt.Sprint(w.writes)
		w.slices = append(w.slices, created)
	}
	for _, slice := range plan.Update {
		i := w.find(slice.Name)
		if i < 0 || w.slices[i].ResourceVersion != slice.ResourceVersion || w.slices[i].AddressType != slice.AddressType {
			t.Fatalf("update of %s, which is not there, is newer or of another family", slice.Name)
		}
		w.writes++
		w.slices[i] = slice.DeepCopy()
		w.slices[i].ResourceVersion = fmt.Sprint(w.writes)
	}
	for _, slice := range plan.Delete {
		i := w.find(slice.Name)
		if i < 0 {
			t.Fatalf("delete of %s, which is not there", slice.Name)
		}
		w.writes++
		w.slices = slices.Delete(w.slices, i, i+1)
	}
	return plan
}

func (w *world) find(name string) int {
	return slices.IndexFunc(w.slices, func(s *discoveryv1.EndpointSlice) bool { return s.Name == name })
}

// endpoints returns those of all slices of a family, by pod.
func (w *world) endpoints(family discoveryv1.AddressType) []discoveryv1.Endpoint {
	var all []discoveryv1.Endpoint
	for _, slice := range w.slices {
		if slice.AddressType == family {
			all = append(all, slice.Endpoints...)
		}
	}
	slices.SortFunc(all, func(a, b discoveryv1.Endpoint) int { return strings.Compare(a.TargetRef.Name, b.TargetRef.Name) })
	return all
}

// sizes returns how many endpoints the slices of a family have, the most first.
func (w *world) sizes(family discoveryv1.AddressType) []int {
	var sizes []int
	for _, slice := range w.slices {
		if slice.AddressType == family {
			sizes = append(sizes, len(slice.Endpoints))
		}
	}
	slices.SortFunc(sizes, func(a, b int) int { return cmp.Compare(b, a) })
	return sizes
}

// only returns the one slice of a family.
func (w *world) only(t fatal, family discoveryv1.AddressType) *discoveryv1.EndpointSlice {
	t.Helper()
	var found []*discoveryv1.EndpointSlice
	for _, slice := range w.slices {
		if slice.AddressType == family {
			found = append(found, slice)
		}
	}
	if len(found) != 1 {
		t.Fatalf("%d slices of %s, want 1", len(found), family)
	}
	return found[0]
}

func podNames(endpoints []discoveryv1.Endpoint) []string {
	var names []string
	for _, e := range endpoints {
		names = append(names, e.TargetRef.Name)
	}
	return names
}

// counts is the size of a plan: creates, updates, deletes.
func counts(p endpointslice.Plan) [3]int { return [3]int{len(p.Create), len(p.Update), len(p.Delete)} }

func diff(t *testing.T, what string, want, got any) {
	t.Helper()
	if d := gocmp.Diff(want, got); d != "" {
		t.Errorf("%s mismatch (-want +got):\n%s", what, d)
	}
}
