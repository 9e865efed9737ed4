package endpointslice_test

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"fairlead.dev/fairlead/internal/endpointslice"
)

const weights = "fairlead.dev/weights"

func weighing(weight string) func(*corev1.Pod) {
	return func(p *corev1.Pod) { p.Annotations = map[string]string{weights: weight} }
}

// TestWeights: what the slices say of the weights that pods ask for.
func TestWeights(t *testing.T) {
	for name, tc := range map[string]struct {
		pods []*corev1.Pod
		want [2]string // of IPv4 and IPv6
	}{
		"nobody asks":               {[]*corev1.Pod{pod(1), pod(2)}, [2]string{}},
		"one asks":                  {[]*corev1.Pod{pod(1, weighing("3")), pod(2)}, [2]string{`{"10.0.0.1":3}`, `{"fd00::2":3}`}},
		"all ask":                   {[]*corev1.Pod{pod(2, weighing("100")), pod(1, weighing("2"))}, [2]string{`{"10.0.0.1":2,"10.0.0.2":100}`, `{"fd00::2":2,"fd00::3":100}`}},
		"1 is what there is anyway": {[]*corev1.Pod{pod(1, weighing("1"))}, [2]string{}},
		"what is none is passed on": {[]*corev1.Pod{pod(1, weighing("heavy")), pod(2, weighing("101")), pod(3, weighing("0")), pod(4, weighing("5"))},
			[2]string{`{"10.0.0.1":"heavy","10.0.0.2":"101","10.0.0.3":"0","10.0.0.4":5}`, `{"fd00::2":"heavy","fd00::3":"101","fd00::4":"0","fd00::5":5}`}},
		"but not all of it": {[]*corev1.Pod{pod(1, weighing(strings.Repeat("9", 1000)))},
			[2]string{`{"10.0.0.1":"` + strings.Repeat("9", 32) + `"}`, `{"fd00::2":"` + strings.Repeat("9", 32) + `"}`}},
		"a pod that does not count": {[]*corev1.Pod{pod(1, weighing("3"), func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed }), pod(2)}, [2]string{}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(dualStack(), tc.pods...)
			w.sync(t)
			for i, family := range families {
				got, ok := w.only(t, family).Annotations[weights]
				if got != tc.want[i] || ok != (tc.want[i] != "") {
					t.Errorf("%s: annotation %q, there: %t; want %q", family, got, ok, tc.want[i])
				}
			}
			if again := w.plan(); !again.Empty() {
				t.Errorf("plan after the plan = %v, want none", counts(again))
			}
		})
	}
}

// TestWeightsFollowThePods: they are written where they changed, and nowhere else, and
// repaired where somebody else changed them.
func TestWeightsFollowThePods(t *testing.T) {
	w := newWorld(dualStack(singleStack), pods(0, 4)...)
	w.limit = 2
	w.sync(t)
	step := func(name string, want [3]int, annotations ...string) {
		t.Helper()
		if got := counts(w.sync(t)); got != want {
			t.Errorf("%s: plan %v, want %v", name, got, want)
		}
		found := map[string]int{}
		for _, slice := range w.slices {
			found[slice.Annotations[weights]]++
		}
		for _, a := range annotations {
			found[a]--
		}
		for a, n := range found {
			if n != 0 {
				t.Errorf("%s: %d slices too many, or too few, with %q", name, n, a)
			}
		}
	}
	step("at first", [3]int{}, "", "")
	weighing("3")(w.pods[0])
	step("a pod asks", [3]int{0, 1, 0}, `{"10.0.0.0":3}`, "")
	weighing("4")(w.pods[0])
	step("it asks for more", [3]int{0, 1, 0}, `{"10.0.0.0":4}`, "")
	for _, slice := range w.slices {
		slice.Annotations = map[string]string{weights: "vandal", "note": "x"}
	}
	step("somebody changes both", [3]int{0, 2, 0}, `{"10.0.0.0":4}`, "")
	for _, slice := range w.slices {
		diff(t, "another's annotation", "x", slice.Annotations["note"])
	}
	w.pods = w.pods[1:]
	step("the pod goes", [3]int{0, 1, 0}, "", "")
	w.pods = nil
	step("all go", [3]int{0, 1, 1}, "")
	w.slices[0].Annotations = map[string]string{weights: ""}
	if step("somebody annotates the one that is left", [3]int{0, 1, 0}, ""); len(w.slices[0].Annotations) > 0 {
		t.Errorf("annotations %v are left", w.slices[0].Annotations)
	}
}

// TestPodWeightChanged: another weight is a change, another annotation is none.
func TestPodWeightChanged(t *testing.T) {
	if !endpointslice.PodChanged(pod(1), pod(1, weighing("2"))) || !endpointslice.PodChanged(pod(1, weighing("2")), pod(1)) {
		t.Error("another weight is no change")
	}
	if endpointslice.PodChanged(pod(1, weighing("2")), pod(1, weighing("2"), func(p *corev1.Pod) { p.Annotations["a"] = "b" })) {
		t.Error("another annotation is a change")
	}
}

// TestWeightsOfForeignSlices are not ours to write.
func TestWeightsOfForeignSlices(t *testing.T) {
	w := newWorld(dualStack(singleStack), pod(1))
	w.sync(t)
	foreign := w.slices[0].DeepCopy()
	foreign.Name, foreign.Labels[discoveryv1.LabelManagedBy] = "foreign", "me"
	foreign.Annotations = map[string]string{weights: `{"10.0.0.1":7}`}
	w.slices = append(w.slices, foreign)
	if plan := w.plan(); !plan.Empty() {
		t.Errorf("plan %v, want none", counts(plan))
	}
}
