package endpointslice_test

import (
	"regexp"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"fairlead.dev/fairlead/internal/endpointslice"
)

func TestFamilies(t *testing.T) {
	for name, tc := range map[string]struct {
		families []corev1.IPFamily
		svc      func(*corev1.Service)
		v4, v6   []int
	}{
		"dual stack":                     {both, nil, []int{3}, []int{3}},
		"IPv4":                           {both[:1], nil, []int{3}, nil},
		"IPv6":                           {both[1:], nil, nil, []int{3}},
		"none said, IPv4 cluster IP":     {nil, nil, []int{3}, nil},
		"none said, IPv6 cluster IP":     {nil, func(s *corev1.Service) { s.Spec.ClusterIP = "fd00::1" }, nil, []int{3}},
		"none said, headless":            {nil, headless, []int{3}, []int{3}},
		"headless as one with addresses": {both, headless, []int{3}, []int{3}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(dualStack(), pods(0, 3)...)
			w.svc.Spec.IPFamilies = tc.families
			if tc.svc != nil {
				tc.svc(w.svc)
			}
			w.sync(t)
			diff(t, "IPv4", tc.v4, w.sizes(discoveryv1.AddressTypeIPv4))
			diff(t, "IPv6", tc.v6, w.sizes(discoveryv1.AddressTypeIPv6))
		})
	}
}

func TestFamilyThatIsGivenUp(t *testing.T) {
	w := newWorld(dualStack(), pods(0, 3)...)
	w.sync(t)
	w.svc.Spec.IPFamilies = both[:1]
	diff(t, "plan", [3]int{0, 0, 1}, counts(w.sync(t)))
	diff(t, "IPv4", []int{3}, w.sizes(discoveryv1.AddressTypeIPv4))
}

func TestPacking(t *testing.T) {
	replace := func(from, to, with int) func(*world) {
		return func(w *world) {
			w.pods = slices.Concat(w.pods[:from], w.pods[to:], pods(with, with+to-from))
		}
	}
	for name, tc := range map[string]struct {
		have, limit int
		change      func(*world)
		plan        [3]int
		sizes       []int
	}{
		"full slices and a rest":              {0, 100, func(w *world) { w.pods = pods(0, 250) }, [3]int{2, 1, 0}, []int{100, 100, 50}},
		"a pod more goes into the open slice": {250, 100, func(w *world) { w.pods = pods(0, 251) }, [3]int{0, 1, 0}, []int{100, 100, 51}},
		"a pod more with all slices full":     {200, 100, func(w *world) { w.pods = pods(0, 201) }, [3]int{1, 0, 0}, []int{100, 100, 1}},
		"more than the open slice takes":      {250, 100, func(w *world) { w.pods = pods(0, 310) }, [3]int{1, 0, 0}, []int{100, 100, 60, 50}},
		"a pod less":                          {250, 100, func(w *world) { w.pods = w.pods[1:] }, [3]int{0, 1, 0}, []int{100, 99, 50}},
		"a changed slice is filled first":     {250, 100, replace(0, 1, 400), [3]int{0, 1, 0}, []int{100, 100, 50}},
		"two changed slices are filled":       {250, 100, replace(90, 110, 400), [3]int{0, 2, 0}, []int{100, 100, 50}},
		"the fullest changed slice first": {200, 100, func(w *world) {
			w.pods = slices.Concat(w.pods[:60], w.pods[101:], pods(400, 401))
		}, [3]int{0, 2, 0}, []int{100, 60}},
		"all pods replaced":        {250, 100, replace(0, 250, 400), [3]int{0, 3, 0}, []int{100, 100, 50}},
		"a slice that empties":     {250, 100, func(w *world) { w.pods = w.pods[:200] }, [3]int{0, 0, 1}, []int{100, 100}},
		"the last pod":             {1, 100, func(w *world) { w.pods = nil }, [3]int{0, 1, 0}, []int{0}},
		"all of many pods":         {250, 100, func(w *world) { w.pods = nil }, [3]int{0, 1, 2}, []int{0}},
		"the first pod":            {0, 100, func(w *world) { w.pods = pods(0, 1) }, [3]int{0, 1, 0}, []int{1}},
		"no pods again":            {0, 100, func(*world) {}, [3]int{}, []int{0}},
		"a smaller limit":          {100, 100, func(w *world) { w.limit = 40 }, [3]int{2, 1, 0}, []int{40, 40, 20}},
		"a larger limit":           {100, 40, func(w *world) { w.limit = 100 }, [3]int{}, []int{40, 40, 20}},
		"1000 in a slice":          {0, 1000, func(w *world) { w.pods = pods(0, 1001) }, [3]int{1, 1, 0}, []int{1000, 1}},
		"a changed pod, one write": {250, 100, func(w *world) { notReady(w.pods[7]) }, [3]int{0, 1, 0}, []int{100, 100, 50}},
		"nothing changed":          {250, 100, func(*world) {}, [3]int{}, []int{100, 100, 50}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(dualStack(singleStack), pods(0, tc.have)...)
			w.limit = tc.limit
			w.sync(t)
			w.pods = pods(0, tc.have)
			tc.change(w)
			diff(t, "plan", tc.plan, counts(w.sync(t)))
			diff(t, "sizes", tc.sizes, w.sizes(discoveryv1.AddressTypeIPv4))
			if again := w.plan(); !again.Empty() {
				t.Errorf("plan after the plan = %v, want none", counts(again))
			}
		})
	}
}

func TestMetadata(t *testing.T) {
	w := newWorld(dualStack(headless, func(s *corev1.Service) {
		s.Labels = map[string]string{"team": "a", discoveryv1.LabelServiceName: "x", discoveryv1.LabelManagedBy: "x"}
	}))
	w.sync(t)
	for _, family := range families {
		slice := w.only(t, family)
		diff(t, "labels", map[string]string{
			"team": "a", discoveryv1.LabelServiceName: "web", discoveryv1.LabelManagedBy: managedBy, corev1.IsHeadlessService: "",
		}, slice.Labels)
		diff(t, "owners", []metav1.OwnerReference{{
			APIVersion: "v1", Kind: "Service", Name: "web", UID: "web-uid", Controller: new(true), BlockOwnerDeletion: new(true),
		}}, slice.OwnerReferences)
		diff(t, "namespace", "shop", slice.Namespace)
	}
}

func TestLabels(t *testing.T) {
	for name, tc := range map[string]struct {
		edit  func(*corev1.Service)
		plan  [3]int
		label string // key=value that the slices have to have
	}{
		"a new label":      {func(s *corev1.Service) { s.Labels["new"] = "x" }, [3]int{0, 2, 0}, "new=x"},
		"a changed label":  {func(s *corev1.Service) { s.Labels["team"] = "b" }, [3]int{0, 2, 0}, "team=b"},
		"a removed label":  {func(s *corev1.Service) { delete(s.Labels, "team") }, [3]int{0, 2, 0}, ""},
		"becomes headless": {headless, [3]int{0, 2, 0}, corev1.IsHeadlessService + "="},
		"reserved labels": {func(s *corev1.Service) {
			for _, key := range []string{discoveryv1.LabelServiceName, discoveryv1.LabelManagedBy, corev1.IsHeadlessService} {
				s.Labels[key] = "x"
			}
		}, [3]int{}, discoveryv1.LabelServiceName + "=web"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(dualStack(func(s *corev1.Service) { s.Labels = map[string]string{"team": "a"} }), pod(1))
			w.sync(t)
			tc.edit(w.svc)
			diff(t, "plan", tc.plan, counts(w.sync(t)))
			for _, slice := range w.slices {
				key, value, _ := strings.Cut(tc.label, "=")
				if got, ok := slice.Labels[key]; tc.label != "" && (!ok || got != value) {
					t.Errorf("labels = %v, want %s", slice.Labels, tc.label)
				}
				if _, ok := slice.Labels["team"]; ok != (w.svc.Labels["team"] != "") {
					t.Errorf("labels = %v, the Service's %v", slice.Labels, w.svc.Labels)
				}
			}
		})
	}
}

func TestNames(t *testing.T) {
	for _, service := range []string{"web", "a", strings.Repeat("x", 54), strings.Repeat("x", 55), strings.Repeat("x", 63), strings.Repeat("x-", 31) + "x"} {
		w := newWorld(dualStack(func(s *corev1.Service) { s.Name = service }), pods(0, 250)...)
		plan := w.sync(t)
		pattern := regexp.MustCompile("^" + service[:min(len(service), 55)] + "-?[0-9a-f]{8}$")
		for _, slice := range plan.Create {
			if faults := validation.IsDNS1123Subdomain(slice.Name); len(slice.Name) > 63 || len(faults) > 0 || !pattern.MatchString(slice.Name) {
				t.Errorf("name %q of Service %q, %v", slice.Name, service, faults)
			}
		}
		again := newWorld(w.svc, w.pods...).plan()
		diff(t, "names in a second plan", sliceNames(plan.Create), sliceNames(again.Create))
	}
}

// A plan that does not know of the first one's creates has to run into AlreadyExists,
// even if pods came and went in between.
func TestNamesCollideWithAStaleCache(t *testing.T) {
	w := newWorld(dualStack(), pods(0, 3)...)
	stale := newWorld(w.svc, pods(5, 20)...)
	diff(t, "names", sliceNames(w.plan().Create), sliceNames(stale.plan().Create))
}

func TestNamesInUseAreAvoided(t *testing.T) {
	w := newWorld(dualStack(singleStack), pod(1))
	name := w.plan().Create[0].Name
	w.slices = []*discoveryv1.EndpointSlice{{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "shop"}}}
	w.sync(t)
	diff(t, "sizes", []int{1}, w.sizes(discoveryv1.AddressTypeIPv4))
}

func sliceNames(all []*discoveryv1.EndpointSlice) []string {
	var names []string
	for _, slice := range all {
		names = append(names, slice.Name)
	}
	return names
}

func TestRepair(t *testing.T) {
	v4 := discoveryv1.AddressTypeIPv4
	for name, tc := range map[string]struct {
		edit func(w *world, slice *discoveryv1.EndpointSlice)
		plan [3]int
	}{
		"an endpoint removed": {func(_ *world, s *discoveryv1.EndpointSlice) { s.Endpoints = s.Endpoints[1:] }, [3]int{0, 1, 0}},
		"an endpoint added": {func(_ *world, s *discoveryv1.EndpointSlice) {
			s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{"192.0.2.1"}})
		}, [3]int{0, 1, 0}},
		"an endpoint twice": {func(_ *world, s *discoveryv1.EndpointSlice) {
			s.Endpoints = append(s.Endpoints, s.Endpoints[0])
		}, [3]int{0, 1, 0}},
		"an address changed":   {func(_ *world, s *discoveryv1.EndpointSlice) { s.Endpoints[0].Addresses[0] = "192.0.2.1" }, [3]int{0, 1, 0}},
		"a condition changed":  {func(_ *world, s *discoveryv1.EndpointSlice) { s.Endpoints[0].Conditions.Ready = nil }, [3]int{0, 1, 0}},
		"a zone changed":       {func(_ *world, s *discoveryv1.EndpointSlice) { s.Endpoints[0].Zone = nil }, [3]int{0, 1, 0}},
		"another order is not": {func(_ *world, s *discoveryv1.EndpointSlice) { slices.Reverse(s.Endpoints) }, [3]int{}},
		"an annotation is not": {func(_ *world, s *discoveryv1.EndpointSlice) {
			s.Annotations = map[string]string{"note": "x"}
		}, [3]int{}},
		"a port changed": {func(_ *world, s *discoveryv1.EndpointSlice) { s.Ports[0].Port = new(int32(1)) }, [3]int{0, 1, 0}},
		"a label added":  {func(_ *world, s *discoveryv1.EndpointSlice) { s.Labels["x"] = "y" }, [3]int{0, 1, 0}},
		"labelled away": {func(_ *world, s *discoveryv1.EndpointSlice) {
			delete(s.Labels, discoveryv1.LabelServiceName)
		}, [3]int{0, 1, 0}},
		"its owner removed":    {func(_ *world, s *discoveryv1.EndpointSlice) { s.OwnerReferences = nil }, [3]int{0, 1, 0}},
		"no longer controlled": {func(_ *world, s *discoveryv1.EndpointSlice) { s.OwnerReferences[0].Controller = nil }, [3]int{0, 1, 0}},
		"deleted": {func(w *world, s *discoveryv1.EndpointSlice) {
			w.slices = slices.Delete(w.slices, w.find(s.Name), w.find(s.Name)+1)
		}, [3]int{1, 0, 0}},
		"duplicated by a crash": {func(w *world, s *discoveryv1.EndpointSlice) {
			twin := s.DeepCopy()
			twin.Name += "x"
			w.slices = append(w.slices, twin)
		}, [3]int{0, 0, 1}},
		"on its way out": {func(_ *world, s *discoveryv1.EndpointSlice) {
			s.DeletionTimestamp = new(metav1.Unix(2000, 0))
		}, [3]int{1, 0, 0}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(dualStack(), pods(0, 3)...)
			w.sync(t)
			tc.edit(w, w.only(t, v4))
			diff(t, "plan", tc.plan, counts(w.sync(t)))
			live := slices.DeleteFunc(w.slices, func(s *discoveryv1.EndpointSlice) bool { return s.DeletionTimestamp != nil })
			w.slices = live
			fresh := newWorld(w.svc, w.pods...)
			fresh.sync(t)
			diff(t, "endpoints", fresh.endpoints(v4), w.endpoints(v4))
			diff(t, "labels", fresh.only(t, v4).Labels, w.only(t, v4).Labels)
			diff(t, "ports", fresh.only(t, v4).Ports, w.only(t, v4).Ports)
			diff(t, "owners", fresh.only(t, v4).OwnerReferences, w.only(t, v4).OwnerReferences)
		})
	}
}

func TestDuplicatePlaceholdersAreRemoved(t *testing.T) {
	w := newWorld(dualStack(singleStack))
	w.sync(t)
	twin := w.slices[0].DeepCopy()
	twin.Name += "x"
	w.slices = append(w.slices, twin)
	diff(t, "plan", [3]int{0, 0, 1}, counts(w.sync(t)))
	diff(t, "sizes", []int{0}, w.sizes(discoveryv1.AddressTypeIPv4))
}

func TestForeignSlicesAreLeftAlone(t *testing.T) {
	for name, edit := range map[string]func(*discoveryv1.EndpointSlice){
		"another manager": func(s *discoveryv1.EndpointSlice) { s.Labels[discoveryv1.LabelManagedBy] = "me" },
		"no manager":      func(s *discoveryv1.EndpointSlice) { delete(s.Labels, discoveryv1.LabelManagedBy) },
		"another controller": func(s *discoveryv1.EndpointSlice) {
			s.OwnerReferences = []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "Deployment", Name: "web", Controller: new(true)}}
		},
		"another Service's, labelled as this one's": func(s *discoveryv1.EndpointSlice) {
			s.OwnerReferences[0].Name, s.OwnerReferences[0].UID = "db", "db-uid"
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(dualStack(singleStack), pods(0, 3)...)
			w.sync(t)
			edit(w.slices[0])
			before := w.slices[0].DeepCopy()
			diff(t, "plan", [3]int{1, 0, 0}, counts(w.sync(t)))
			w.svc.Spec.Selector = nil
			diff(t, "plan", [3]int{0, 0, 1}, counts(w.sync(t)))
			diff(t, "slices", []*discoveryv1.EndpointSlice{before}, w.slices)
		})
	}
}

func TestServiceThatIsNoLongerOurs(t *testing.T) {
	for name, edit := range map[string]func(*corev1.Service){
		"becomes ExternalName": func(s *corev1.Service) {
			s.Spec = corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "example.com", Selector: s.Spec.Selector}
		},
		"loses its selector": func(s *corev1.Service) { s.Spec.Selector = nil },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(dualStack(), pods(0, 3)...)
			w.sync(t)
			byHand := w.slices[0].DeepCopy()
			byHand.Name, byHand.OwnerReferences = "by-hand", nil
			w.slices = append(w.slices, byHand)
			edit(w.svc)
			diff(t, "plan", [3]int{0, 0, 2}, counts(w.sync(t)))
			diff(t, "slices", []string{"by-hand"}, sliceNames(w.slices))
		})
	}
}

func TestServiceCreatedAnewUnderItsName(t *testing.T) {
	w := newWorld(dualStack(), pods(0, 3)...)
	old := w.sync(t)
	w.svc.UID = "another-uid"
	plan := w.sync(t)
	diff(t, "plan", [3]int{2, 0, 2}, counts(plan))
	for _, slice := range plan.Create {
		if slices.Contains(sliceNames(old.Create), slice.Name) {
			t.Errorf("%s is created under the name of an old slice", slice.Name)
		}
		diff(t, "owner", w.svc.UID, slice.OwnerReferences[0].UID)
	}
}

func TestServiceBeingDeleted(t *testing.T) {
	w := newWorld(dualStack(singleStack), pods(0, 100)...)
	w.sync(t)
	w.svc.DeletionTimestamp = new(metav1.Unix(2000, 0))
	w.pods = pods(1, 102)
	diff(t, "plan", [3]int{0, 1, 0}, counts(w.sync(t)))
	w.slices = nil
	diff(t, "plan", [3]int{}, counts(w.plan()))
}

func TestUpstreamSlicesAreTakenOverAsTheyAre(t *testing.T) {
	w := newWorld(dualStack(), pods(0, 150)...)
	w.sync(t)
	for i, slice := range w.slices {
		slice.Name, slice.GenerateName = "web-"+strings.Repeat(string(rune('b'+i)), 5), "web-"
		slice.Endpoints[0].TargetRef.ResourceVersion = "17"
	}
	if plan := w.plan(); !plan.Empty() {
		t.Errorf("plan = %v, want none", counts(plan))
	}
}

func TestUpdateKeepsWhatOthersAdded(t *testing.T) {
	w := newWorld(dualStack(singleStack), pods(0, 3)...)
	w.sync(t)
	other := metav1.OwnerReference{APIVersion: "v1", Kind: "ConfigMap", Name: "x", UID: "x"}
	w.slices[0].Annotations = map[string]string{"note": "x"}
	w.slices[0].OwnerReferences = append(w.slices[0].OwnerReferences, other)
	w.pods = w.pods[1:]
	w.sync(t)
	diff(t, "annotation", "x", w.slices[0].Annotations["note"])
	diff(t, "owners", 2, len(w.slices[0].OwnerReferences))
}

func TestServicesOf(t *testing.T) {
	w := newWorld(dualStack(singleStack))
	slice := w.plan().Create[0]
	diff(t, "as created", 1, len(endpointslice.ServicesOf(slice)))
	slice.Labels[discoveryv1.LabelServiceName] = "db"
	var names []string
	for _, service := range endpointslice.ServicesOf(slice) {
		names = append(names, service.String())
	}
	diff(t, "labelled to another", []string{"shop/db", "shop/web"}, names)
	diff(t, "of nobody", 0, len(endpointslice.ServicesOf(&discoveryv1.EndpointSlice{})))
}
