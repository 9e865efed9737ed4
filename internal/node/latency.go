package node

import (
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"

	"fairlead.dev/fairlead/internal/persistent"
	"fairlead.dev/fairlead/internal/service"
)

// arrivalLimit is how many changes are timed between two writes. Only where writes fail
// for long are there more, and the first have waited longest.
const arrivalLimit = 10_000

// arrival is a change of one Service that came in.
type arrival struct {
	service  types.NamespacedName
	received time.Time
	// triggered is when the pod or Service changed that the change tells of, zero where
	// that is not known.
	triggered time.Time
}

// change is what an event of a watch does to the model.
type change struct {
	apply func(*model)
	*arrival
}

// arrivalOf returns nil for objects whose changes are not timed. The deletion of a slice
// still carries the trigger of the change before it, which says nothing.
func arrivalOf(obj any, deleted bool, now time.Time) *arrival {
	switch o := obj.(type) {
	case *corev1.Service:
		return &arrival{service: nameOf(o), received: now}
	case *discoveryv1.EndpointSlice:
		a := &arrival{service: types.NamespacedName{Namespace: o.Namespace, Name: o.Labels[discoveryv1.LabelServiceName]}, received: now}
		if at, ok := o.Annotations[corev1.EndpointsLastChangeTriggerTime]; ok && !deleted {
			// What cannot be read is left zero, as kube-proxy does.
			a.triggered, _ = time.Parse(time.RFC3339Nano, at)
		}
		return a
	default:
		return nil
	}
}

// latency times changes from where they were made to the kernel's commit. Changes from
// before since, when the agent had nothing written yet, would tell how old things are.
type latency struct {
	since    time.Time // zero before the first write
	arrivals []arrival
}

func (l *latency) came(a *arrival) {
	if a != nil && !l.since.IsZero() && len(l.arrivals) < arrivalLimit {
		l.arrivals = append(l.arrivals, *a)
	}
}

// wrote reports the changes that are in the write from before to after. What changed
// nothing in between, like an annotation, is dropped.
func (l *latency) wrote(now time.Time, before, after persistent.Map[types.NamespacedName, *service.Service], m *metrics) {
	for _, a := range l.arrivals {
		was, _ := before.Get(a.service)
		is, _ := after.Get(a.service)
		if was == is {
			continue
		}
		m.sinceEvent.Observe(now.Sub(a.received).Seconds())
		if a.triggered.After(l.since) {
			m.sinceTrigger.Observe(now.Sub(a.triggered).Seconds())
		}
	}
	l.arrivals = l.arrivals[:0]
	if l.since.IsZero() {
		l.since = now
	}
}
