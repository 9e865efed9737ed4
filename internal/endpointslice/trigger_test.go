package endpointslice_test

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func readySince(seconds int64) func(*corev1.Pod) {
	return func(p *corev1.Pod) { p.Status.Conditions[0].LastTransitionTime = metav1.Unix(seconds, 0) }
}

func TestTriggerTime(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*world)
		want   string // empty for absent
	}{
		"a new Service": {func(w *world) { w.slices = nil }, "1970-01-01T00:16:40Z"},
		"a Service created anew": {func(w *world) {
			w.svc.UID, w.svc.CreationTimestamp = "another-uid", metav1.Unix(3600, 0)
		}, "1970-01-01T01:00:00Z"},
		"a new pod":                        {func(w *world) { w.pods = append(w.pods, pod(5, readySince(2000))) }, "1970-01-01T00:33:20Z"},
		"the earliest of two":              {func(w *world) { w.pods = append(w.pods, pod(5, readySince(2000)), pod(6, readySince(1940))) }, "1970-01-01T00:32:20Z"},
		"a pod that ceased to be ready":    {func(w *world) { notReady(w.pods[1]); readySince(2000)(w.pods[1]) }, "1970-01-01T00:33:20Z"},
		"a pod that came back by its name": {func(w *world) { w.pods[1].UID = "x"; readySince(2000)(w.pods[1]) }, "1970-01-01T00:33:20Z"},
		"a pod without the condition": {func(w *world) {
			p := pod(5)
			p.Status.Conditions = nil
			w.pods = append(w.pods, p)
		}, ""},
		"a pod less":        {func(w *world) { w.pods = w.pods[1:] }, ""},
		"a pod terminating": {func(w *world) { terminating(w.pods[1]) }, ""},
		"a label":           {func(w *world) { w.svc.Labels = map[string]string{"a": "b"} }, ""},
		"a port":            {func(w *world) { w.svc.Spec.Ports[0].Name = "x" }, ""},
		"a zone":            {func(w *world) { w.nodes["node-a"].Labels = nil }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(dualStack(), pods(0, 3, readySince(1500))...)
			w.sync(t)
			tc.change(w)
			plan := w.sync(t)
			if plan.Empty() {
				t.Fatal("nothing written")
			}
			for _, slice := range append(plan.Create, plan.Update...) {
				diff(t, "trigger time", tc.want, slice.Annotations[corev1.EndpointsLastChangeTriggerTime])
				if _, ok := slice.Annotations[corev1.EndpointsLastChangeTriggerTime]; ok != (tc.want != "") {
					t.Errorf("annotation is there: %t", ok)
				}
			}
		})
	}
}

func TestTriggerTimeOfAPodThatWaitedForItsNode(t *testing.T) {
	w := newWorld(dualStack(), pod(1, readySince(1500)), pod(2, readySince(1200), func(p *corev1.Pod) { p.Spec.NodeName = "node-c" }))
	w.sync(t)
	w.pods = append(w.pods, pod(3, readySince(2000)))
	plan := w.sync(t)
	diff(t, "without the node", "1970-01-01T00:33:20Z", plan.Update[0].Annotations[corev1.EndpointsLastChangeTriggerTime])
	w.nodes["node-c"] = &corev1.Node{}
	plan = w.sync(t)
	diff(t, "with the node", "1970-01-01T00:20:00Z", plan.Update[0].Annotations[corev1.EndpointsLastChangeTriggerTime])
}
