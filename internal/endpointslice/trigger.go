package endpointslice

import (
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
)

// reported is what the slices say about a pod.
type reported struct {
	uid     types.UID
	serving bool
}

// stampTrigger annotates everything that is written with the time of the earliest
// change that no slice told yet (see corev1.EndpointsLastChangeTriggerTime), and
// removes the annotation where there is none. What was told is read from the slices, so
// nothing is lost when a write fails or the controller restarts.
func (b *builder) stampTrigger() {
	written := slices.Concat(b.plan.Create, b.plan.Update)
	at := b.trigger(written)
	for _, slice := range written {
		delete(slice.Annotations, corev1.EndpointsLastChangeTriggerTime)
		if at.IsZero() {
			continue
		}
		if slice.Annotations == nil {
			slice.Annotations = map[string]string{}
		}
		slice.Annotations[corev1.EndpointsLastChangeTriggerTime] = at.UTC().Format(time.RFC3339Nano)
	}
}

// trigger returns the earliest time at which a pod in written became, or ceased to be,
// ready without a current slice that says so, zero for none. Without any slice the
// Service itself is the change. A pod that is gone leaves no time behind.
func (b *builder) trigger(written []*discoveryv1.EndpointSlice) time.Time {
	if len(b.current) == 0 {
		return b.Service.CreationTimestamp.Time
	}
	told := b.told()
	var earliest time.Time
	for _, slice := range written {
		for i := range slice.Endpoints {
			key := keyOf(&slice.Endpoints[i])
			pod := b.pod(key.name)
			if told[key] == (reported{pod.UID, serving(pod)}) {
				continue
			}
			at := readyCondition(pod).LastTransitionTime.Time
			if !at.IsZero() && (earliest.IsZero() || at.Before(earliest)) {
				earliest = at
			}
		}
	}
	return earliest
}

func (b *builder) told() map[podKey]reported {
	told := map[podKey]reported{}
	for _, slice := range b.current {
		for i := range slice.Endpoints {
			if e := &slice.Endpoints[i]; e.TargetRef != nil {
				told[keyOf(e)] = reported{e.TargetRef.UID, deref(e.Conditions.Serving, false)}
			}
		}
	}
	return told
}

// pod returns the pod that an endpoint of this plan was made from.
func (b *builder) pod(name string) *corev1.Pod {
	i, _ := slices.BinarySearchFunc(b.pods, name, func(pod *corev1.Pod, name string) int {
		return strings.Compare(pod.Name, name)
	})
	return b.pods[i]
}
