package main

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"k8s.io/utils/clock"
)

// kind is what has happened.
type kind int

const (
	probed    kind = iota // a readiness probe of pod found a change
	written               // the pod's condition is in the API server
	sliced                // a watch has delivered a slice in which the pod's endpoint changed
	committed             // rules that concern pod were committed to the kernel of place
	unmade                // a table of fairlead is gone from the kernel of place
	made                  // a table of fairlead is in the kernel of place
)

// event is something that happened. place is a slice or a node.
type event struct {
	at    time.Time
	kind  kind
	pod   string
	place string
}

// recorder keeps events in the order they came.
type recorder struct {
	clock clock.PassiveClock

	mu     sync.Mutex
	events []event
}

// add records e as of now.
func (r *recorder) add(e event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e.at = r.clock.Now()
	r.events = append(r.events, e)
}

// since returns the events after the first n, all with 0.
func (r *recorder) since(n int) []event {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.events[n:])
}

// mark returns how many events there are, for a later since.
func (r *recorder) mark() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.events)
}

// timeline is the way of one change, each part in time since the probe that found it.
type timeline struct {
	written time.Duration   // the condition was in the API server
	slices  time.Duration   // the last slice was written
	rules   []time.Duration // the last rules were committed, one for each node
}

// measure returns the way of the first change of a pod among events, which is in so many
// slices. For an unfinished one the error says what has not happened yet.
func measure(events []event, pod string, inSlices int, nodes []string) (timeline, error) {
	events = slices.DeleteFunc(slices.Clone(events), func(e event) bool { return e.pod != pod })
	start := slices.IndexFunc(events, func(e event) bool { return e.kind == probed })
	if start < 0 {
		return timeline{}, fmt.Errorf("no probe of %s has found a change", pod)
	}
	t := timeline{rules: make([]time.Duration, len(nodes))}
	wrote, changed, done := false, map[string]bool{}, map[string]bool{}
	for _, e := range events[start:] {
		took := e.at.Sub(events[start].at)
		switch e.kind {
		case written:
			wrote, t.written = true, took
		case sliced:
			changed[e.place], t.slices = true, took
		case committed:
			if i := slices.Index(nodes, e.place); i >= 0 {
				done[e.place], t.rules[i] = true, took
			}
		default: // what is of no pod, and further probes
		}
	}
	switch {
	case !wrote:
		return t, fmt.Errorf("the condition of %s is not written", pod)
	case len(changed) < inSlices:
		return t, fmt.Errorf("%s has changed in %d of %d slices", pod, len(changed), inSlices)
	case len(done) < len(nodes):
		return t, fmt.Errorf("%s has changed in the kernels of %d of %d nodes", pod, len(done), len(nodes))
	}
	return t, nil
}

// describe writes "probe -> status 2 ms -> slice 6 ms -> rules on node1 9 ms, node2 9 ms".
func (t timeline) describe(nodes []string) string {
	rules := make([]string, len(nodes))
	for i, n := range nodes {
		rules[i] = n + " " + millis(t.rules[i])
	}
	return fmt.Sprintf("probe -> status %s -> slices %s -> rules on %s",
		millis(t.written), millis(t.slices), strings.Join(rules, ", "))
}

func millis(d time.Duration) string {
	return fmt.Sprintf("%d ms", d.Round(time.Millisecond).Milliseconds())
}
