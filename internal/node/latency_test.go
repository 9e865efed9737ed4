package node

import (
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// observed returns how many changes m timed since what, and the sum.
func observed(t *testing.T, m *metrics, since string) (count uint64, sum time.Duration) {
	t.Helper()
	synctest.Wait()
	families, err := m.registry.Gather()
	must(t, err)
	for _, family := range families {
		for _, metric := range family.GetMetric() {
			if family.GetName() == "fairlead_dataplane_programming_duration_seconds" && metric.GetLabel()[0].GetValue() == since {
				h := metric.GetHistogram()
				return h.GetSampleCount(), time.Duration(h.GetSampleSum() * float64(time.Second)).Round(time.Microsecond)
			}
		}
	}
	t.Fatal("no such metric")
	return 0, 0
}

func sliceOf(svc, addr string, trigger time.Time) *discoveryv1.EndpointSlice {
	return &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Name: svc + "-1", Namespace: "default", Labels: map[string]string{discoveryv1.LabelServiceName: svc},
			Annotations: map[string]string{corev1.EndpointsLastChangeTriggerTime: trigger.Format(time.RFC3339Nano)}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Port: new(int32(8080))}},
		Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{addr}}},
	}
}

// TestLatency: changes after the first write are timed from their trigger and from their
// event to the write that they are in, and no others.
func TestLatency(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, r, svcs := startAgent(t)
		slices := &feed[*discoveryv1.EndpointSlice]{in: a.intake, kind: endpointSlices("node1")}
		want := func(triggers uint64, fromTrigger time.Duration, events uint64, fromEvent time.Duration) {
			t.Helper()
			n, sum := observed(t, a.metrics, "trigger")
			m, eventSum := observed(t, a.metrics, "event")
			if n != triggers || sum != fromTrigger || m != events || eventSum != fromEvent {
				t.Errorf("%d triggers, %s; %d events, %s; want %d, %s; %d, %s", n, sum, m, eventSum, triggers, fromTrigger, events, fromEvent)
			}
		}
		started := time.Now()
		must(t, slices.Add(sliceOf("a", "10.1.0.1", started)))
		time.Sleep(time.Second)
		must(t, svcs.Replace([]any{clusterIP("a", "10.0.0.1")}, ""))
		want(0, 0, 0, 0) // what was there at the start

		time.Sleep(time.Second)
		must(t, slices.Update(sliceOf("a", "10.1.0.2", time.Now().Add(-30*time.Millisecond))))
		want(1, 30*time.Millisecond, 1, 0)
		must(t, slices.Update(sliceOf("a", "10.1.0.3", started))) // from before the agent
		want(1, 30*time.Millisecond, 1, 0)                        // not written yet
		time.Sleep(time.Second)
		want(1, 30*time.Millisecond, 2, batchPeriod)

		// Nothing else is timed: slices of no Service, the Node, what cannot be read.
		must(t, slices.Add(sliceOf("other", "10.1.0.9", time.Now())))
		bad := sliceOf("a", "10.1.0.4", time.Now())
		bad.Annotations[corev1.EndpointsLastChangeTriggerTime] = "yesterday"
		time.Sleep(time.Second)
		must(t, slices.Update(bad))
		want(1, 30*time.Millisecond, 3, batchPeriod)

		// A failed write is not where a change ends.
		r.setFailing(true)
		time.Sleep(time.Second)
		must(t, slices.Update(sliceOf("a", "10.1.0.5", time.Now())))
		time.Sleep(30 * time.Second)
		want(1, 30*time.Millisecond, 3, batchPeriod)
		r.setFailing(false)
		time.Sleep(2 * retry.Cap)
		if n, sum := observed(t, a.metrics, "trigger"); n != 2 || sum < 30*time.Second {
			t.Errorf("%d triggers, %s", n, sum)
		}
		// A deleted slice carries the trigger of a change long past.
		must(t, slices.Delete(sliceOf("a", "10.1.0.5", time.Now().Add(-time.Second))))
		time.Sleep(time.Second)
		if n, _ := observed(t, a.metrics, "trigger"); n != 2 {
			t.Errorf("%d triggers", n)
		}
		if n, _ := observed(t, a.metrics, "event"); n != 5 {
			t.Errorf("%d events", n)
		}
	})
}

// TestChangesAreTimedUpToALimit: where nothing can be written, memory must not grow.
func TestChangesAreTimedUpToALimit(t *testing.T) {
	l := &latency{since: time.Unix(1, 0)}
	for range 2 * arrivalLimit {
		l.came(&arrival{})
	}
	if len(l.arrivals) != arrivalLimit {
		t.Errorf("%d changes are kept", len(l.arrivals))
	}
}
