package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// judge returns what is wrong with the answers: each of pods must have given some,
// nobody else any, and they must have seen an allowed source.
func judge(t tally, pods []string, sources []source) error {
	for _, pod := range pods {
		if t.pods[pod] == 0 {
			return fmt.Errorf("%s is ready and was never reached", pod)
		}
	}
	for _, pod := range slices.Sorted(maps.Keys(t.pods)) {
		if !slices.Contains(pods, pod) {
			return fmt.Errorf("%s is no ready endpoint and has got %d requests", pod, t.pods[pod])
		}
	}
	for addr := range t.sources {
		if !slices.ContainsFunc(sources, func(s source) bool { return s.addr == addr }) {
			return fmt.Errorf("the pods saw the source %s, not %s", addr, describeSources(sources))
		}
	}
	return nil
}

func describeSources(sources []source) string {
	out := make([]string, len(sources))
	for i, s := range sources {
		out[i] = fmt.Sprintf("%s (%s)", s.addr, s.name)
	}
	return strings.Join(out, " or ")
}

// spread writes how many answers came from each of pods: "11 + 9 + 10".
func spread(t tally, pods []string) string {
	out := make([]string, len(pods))
	for i, p := range pods {
		out[i] = fmt.Sprintf("%2d", t.pods[p])
	}
	return strings.Join(out, " + ")
}

// seen writes whose addresses the pods saw, of all the answers in ts.
func seen(r route, ts ...tally) string {
	var names []string
	for _, s := range r.sources {
		if slices.ContainsFunc(ts, func(t tally) bool { return t.sources[s.addr] > 0 }) {
			names = append(names, s.name)
		}
	}
	if r.kept {
		return strings.Join(names, ", ") + " (kept)"
	}
	return strings.Join(names, ", ") + " (masqueraded)"
}

// sum adds up tallies.
func sum(ts ...tally) tally {
	out := newTally()
	for _, t := range ts {
		for pod, n := range t.pods {
			out.pods[pod] += n
		}
		for addr, n := range t.sources {
			out.sources[addr] += n
		}
	}
	return out
}

// difference returns what is in want and not in have, and the other way round.
func difference(want, have map[frontend]bool) error {
	for f := range want {
		if !have[f] {
			return fmt.Errorf("%s has no rule", f)
		}
	}
	for f := range have {
		if !want[f] {
			return fmt.Errorf("%s has a rule and belongs to no Service", f)
		}
	}
	return nil
}

// count returns how many answers there were.
func (t tally) count() int {
	n := 0
	for _, answers := range t.pods {
		n += answers
	}
	return n
}

// counts writes how many answers came from each of pods: "echo-1 11, echo-3 9".
func counts(t tally, pods []string) string {
	out := make([]string, len(pods))
	for i, p := range pods {
		out[i] = fmt.Sprintf("%s %d", p, t.pods[p])
	}
	return strings.Join(out, ", ")
}
