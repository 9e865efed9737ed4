package endpointslice_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"pgregory.net/rapid"
)

// TestPlans takes a Service through random changes, by its users and by vandals, and
// looks after every plan at what came of it.
func TestPlans(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(dualStack())
		w.limit = rapid.IntRange(1, 5).Draw(t, "limit")
		actions := slices.Sorted(maps.Keys(changes))
		for range rapid.IntRange(1, 12).Draw(t, "rounds") {
			for range rapid.IntRange(1, 4).Draw(t, "changes") {
				changes[rapid.SampledFrom(actions).Draw(t, "change")](t, w)
			}
			foreign := w.foreign()
			checkDeterminism(t, w)
			w.sync(t)
			if again := w.plan(); !again.Empty() {
				t.Fatalf("plan after the plan = %v, want none", counts(again))
			}
			if d := gocmp.Diff(foreign, w.foreign()); d != "" {
				t.Fatalf("foreign slices touched:\n%s", d)
			}
			for _, family := range families {
				checkFamily(t, w, family)
			}
		}
	})
}

// oneOf does one of alternatives. What is drawn is a number, which a failure prints.
func oneOf(t *rapid.T, alternatives ...func()) {
	alternatives[rapid.IntRange(0, len(alternatives)-1).Draw(t, "alternative")]()
}

// changes are what can happen to a world, by name.
var changes = map[string]func(*rapid.T, *world){
	"pods come": func(t *rapid.T, w *world) {
		for range rapid.IntRange(1, 8).Draw(t, "n") {
			p := pod(rapid.IntRange(0, 30).Draw(t, "pod"))
			p.UID = types.UID(fmt.Sprint(p.UID, "-", rapid.IntRange(0, 3).Draw(t, "incarnation")))
			p.Spec.NodeName = rapid.SampledFrom([]string{"node-a", "node-b", "node-z", ""}).Draw(t, "node")
			p.Spec.Containers = []corev1.Container{container("web", int32(rapid.IntRange(81, 83).Draw(t, "port")), corev1.ProtocolTCP)}
			w.pods = append(slices.DeleteFunc(w.pods, func(q *corev1.Pod) bool { return q.Name == p.Name }), p)
		}
	},
	"pods go": func(t *rapid.T, w *world) {
		w.pods = w.pods[rapid.IntRange(0, len(w.pods)).Draw(t, "n"):]
	},
	"a pod changes": func(t *rapid.T, w *world) {
		if len(w.pods) == 0 {
			return
		}
		p := w.pods[rapid.IntRange(0, len(w.pods)-1).Draw(t, "pod")]
		oneOf(t,
			func() { notReady(p) },
			func() { terminating(p) },
			func() { p.Status.Phase = corev1.PodFailed },
			func() { p.Labels = map[string]string{"app": "db"} },
			func() { p.Status.PodIPs = p.Status.PodIPs[min(1, len(p.Status.PodIPs)):] },
			func() { p.Spec.NodeName = "node-b" },
			func() { p.Spec.Containers = nil },
			func() { weighing(rapid.SampledFrom([]string{"1", "2", "many"}).Draw(t, "weight"))(p) },
		)
	},
	"a node comes or goes": func(_ *rapid.T, w *world) {
		if _, ok := w.nodes["node-z"]; ok {
			delete(w.nodes, "node-z")
		} else {
			w.nodes["node-z"] = &corev1.Node{}
		}
	},
	"the Service changes": func(t *rapid.T, w *world) {
		oneOf(t,
			func() { w.svc.Spec.Ports[0].TargetPort = intstr.FromString("web") },
			func() { w.svc.Spec.Ports[0].TargetPort = intstr.FromInt32(8080) },
			func() { w.svc.Spec.IPFamilies = both },
			func() { w.svc.Spec.IPFamilies = both[1:] },
			func() { publishNotReady(w.svc) },
			func() { headless(w.svc) },
			func() { w.svc.UID += "+" },
			func() { w.svc.Labels = map[string]string{"x": "y"} },
			func() { w.svc.Spec.TrafficDistribution = new("PreferSameNode") },
			func() { w.svc.Spec.Selector = map[string]string{} },
			func() { w.svc.Spec.Selector = map[string]string{"app": "web"} },
		)
	},
	"the limit changes": func(t *rapid.T, w *world) { w.limit = rapid.IntRange(1, 5).Draw(t, "limit") },
	"a foreign slice comes": func(t *rapid.T, w *world) {
		name := fmt.Sprint("foreign-", rapid.IntRange(0, 3).Draw(t, "name"))
		if w.find(name) < 0 {
			w.slices = append(w.slices, &discoveryv1.EndpointSlice{
				ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, Labels: map[string]string{
					discoveryv1.LabelServiceName: "web", discoveryv1.LabelManagedBy: "me",
				}},
				AddressType: discoveryv1.AddressTypeIPv4,
				Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{"192.0.2.1"}}},
			})
		}
	},
	"a vandal comes": func(t *rapid.T, w *world) {
		if len(w.slices) == 0 {
			return
		}
		s := w.slices[rapid.IntRange(0, len(w.slices)-1).Draw(t, "slice")]
		if s.Labels[discoveryv1.LabelManagedBy] != managedBy {
			return
		}
		oneOf(t,
			func() { w.slices = slices.Delete(w.slices, w.find(s.Name), w.find(s.Name)+1) },
			func() {
				twin := s.DeepCopy()
				if twin.Name += "x"; w.find(twin.Name) < 0 {
					w.slices = append(w.slices, twin)
				}
			},
			func() { s.Endpoints = s.Endpoints[len(s.Endpoints)/2:] },
			func() { s.Endpoints = append(s.Endpoints, s.Endpoints...) },
			func() { s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{"192.0.2.1"}}) },
			func() { s.Ports = nil },
			func() { s.OwnerReferences = nil },
			func() { s.Labels = map[string]string{discoveryv1.LabelManagedBy: managedBy, "x": "y"} },
			func() { s.Labels[discoveryv1.LabelManagedBy] = "me" },
			func() { s.Annotations = map[string]string{weights: "vandal"} },
		)
	},
}

func (w *world) foreign() map[string]*discoveryv1.EndpointSlice {
	foreign := map[string]*discoveryv1.EndpointSlice{}
	for _, slice := range w.slices {
		if slice.Labels[discoveryv1.LabelManagedBy] != managedBy {
			foreign[slice.Name] = slice.DeepCopy()
		}
	}
	return foreign
}

// checkDeterminism plans twice, the second time with everything in another order, and
// sees to it that planning changes nothing it was given.
func checkDeterminism(t *rapid.T, w *world) {
	shuffled := *w
	shuffled.pods, shuffled.slices = slices.Clone(w.pods), slices.Clone(w.slices)
	rng := rand.New(rand.NewPCG(1, uint64(len(w.pods)+w.writes)))
	rng.Shuffle(len(shuffled.pods), func(i, j int) {
		shuffled.pods[i], shuffled.pods[j] = shuffled.pods[j], shuffled.pods[i]
	})
	rng.Shuffle(len(shuffled.slices), func(i, j int) {
		shuffled.slices[i], shuffled.slices[j] = shuffled.slices[j], shuffled.slices[i]
	})
	var before []*discoveryv1.EndpointSlice
	for _, slice := range w.slices {
		before = append(before, slice.DeepCopy())
	}
	if d := gocmp.Diff(w.plan(), shuffled.plan()); d != "" {
		t.Fatalf("the plan hangs on the order of its input:\n%s", d)
	}
	if d := gocmp.Diff(before, w.slices, cmpopts.EquateEmpty()); d != "" {
		t.Fatalf("planning changed its input:\n%s", d)
	}
}

// checkFamily compares the slices of one family with the pods, in its own words.
func checkFamily(t *rapid.T, w *world, family discoveryv1.AddressType) {
	ours := slices.DeleteFunc(slices.Clone(w.slices), func(s *discoveryv1.EndpointSlice) bool {
		return s.AddressType != family || s.Labels[discoveryv1.LabelManagedBy] != managedBy || len(s.OwnerReferences) == 0
	})
	filled := len(w.svc.Spec.Selector) > 0 &&
		(family == discoveryv1.AddressTypeIPv6 || slices.Contains(w.svc.Spec.IPFamilies, corev1.IPv4Protocol))
	if !filled {
		if len(ours) > 0 {
			t.Fatalf("%d slices of %s, which the Service does not have", len(ours), family)
		}
		return
	}
	if len(ours) == 0 {
		t.Fatalf("no slice of %s", family)
	}
	got := map[string]int{}
	for _, slice := range ours {
		if n := len(slice.Endpoints); n > w.limit || n == 0 && len(ours) > 1 {
			t.Fatalf("%d endpoints in one of %d slices, at most %d wanted", n, len(ours), w.limit)
		}
		if slice.OwnerReferences[0].UID != w.svc.UID {
			t.Fatalf("%s is owned by %s", slice.Name, slice.OwnerReferences[0].UID)
		}
		for _, e := range slice.Endpoints {
			if e.TargetRef == nil {
				t.Fatalf("endpoint %v is nobody's", e.Addresses)
			}
			got[fmt.Sprint(e.TargetRef.UID, e.Addresses, *e.Conditions.Ready, portStrings(slice))]++
		}
	}
	want := map[string]int{}
	for _, p := range w.pods {
		if line, ok := w.wanted(p, family); ok {
			want[line]++
		}
	}
	if d := gocmp.Diff(want, got); d != "" {
		t.Fatalf("endpoints of %s (-want +got):\n%s", family, d)
	}
}

// wanted is what the slices should say about a pod.
func (w *world) wanted(p *corev1.Pod, family discoveryv1.AddressType) (string, bool) {
	_, known := w.nodes[p.Spec.NodeName]
	var number int
	if _, err := fmt.Sscanf(p.Name, "pod-%d", &number); err != nil {
		panic(err)
	}
	ip := address(number, family)
	if p.Labels["app"] != "web" || p.Status.Phase == corev1.PodFailed ||
		!known && !w.svc.Spec.PublishNotReadyAddresses ||
		!slices.Contains(p.Status.PodIPs, corev1.PodIP{IP: ip}) {
		return "", false
	}
	ready := p.DeletionTimestamp == nil && p.Status.Conditions[0].Status == corev1.ConditionTrue
	ports := []string{"http/8080/TCP"}
	if w.svc.Spec.Ports[0].TargetPort.Type == intstr.String {
		ports = nil
		if len(p.Spec.Containers) > 0 {
			ports = []string{fmt.Sprintf("http/%d/TCP", p.Spec.Containers[0].Ports[0].ContainerPort)}
		}
	}
	return fmt.Sprint(p.UID, []string{ip}, ready || w.svc.Spec.PublishNotReadyAddresses, ports), true
}
