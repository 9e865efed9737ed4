package bench_test

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// result is what was measured of one peer, over all its turns.
type result struct {
	name string

	start, startAfterSync []time.Duration
	changes               []time.Duration
	cpu                   time.Duration
	cpuChanges            int
	burst                 []time.Duration
	burstCommits          []int
	settled, peak         []float64 // MiB
	churnRate             []float64 // changes a second
	churnConnections      int
	churnFailed           int
	connections           []float64 // a second
	roundTrips, direct    []float64 // a second
	failed                int
}

// row is one figure of a peer, which may have none.
type row struct {
	name, unit string
	of         func(*result) (value float64, ok bool)
}

var figures = []row{
	{"change: API write to commit, p50", "ms", quantile(func(r *result) []time.Duration { return r.changes }, 50)},
	{"change: API write to commit, p99", "ms", quantile(func(r *result) []time.Duration { return r.changes }, 99)},
	{"changes measured", "", func(r *result) (float64, bool) { return float64(len(r.changes)), true }},
	{"CPU per change, with children", "ms", func(r *result) (float64, bool) {
		return ms(r.cpu) / float64(r.cpuChanges), r.cpuChanges > 0
	}},
	{"cold start: process start to rules", "ms", quantile(func(r *result) []time.Duration { return r.start }, 50)},
	{"cold start: caches synced to rules", "ms", quantile(func(r *result) []time.Duration { return r.startAfterSync }, 50)},
	{"RSS after start, at rest", "MiB", highest(func(r *result) []float64 { return r.settled })},
	{"peak RSS, with children", "MiB", highest(func(r *result) []float64 { return r.peak })},
	{"burst of 500: commits", "", func(r *result) (float64, bool) {
		return float64(slices.Max(append(r.burstCommits, 0))), len(r.burstCommits) > 0
	}},
	{"burst of 500: to the last commit", "ms", quantile(func(r *result) []time.Duration { return r.burst }, 50)},
	{"churn: changes a second", "", median(func(r *result) []float64 { return r.churnRate })},
	{"churn: connections", "", func(r *result) (float64, bool) { return float64(r.churnConnections), true }},
	{"churn: connections failed", "", func(r *result) (float64, bool) { return float64(r.churnFailed), true }},
	{"connections a second through a VIP", "", median(func(r *result) []float64 { return r.connections })},
	{"round trips a second on one flow through a VIP", "", median(func(r *result) []float64 { return r.roundTrips })},
	{"the same without a VIP", "", median(func(r *result) []float64 { return r.direct })},
}

func quantile(of func(*result) []time.Duration, percent int) func(*result) (float64, bool) {
	return func(r *result) (float64, bool) {
		sorted := slices.Sorted(slices.Values(of(r)))
		if len(sorted) == 0 {
			return 0, false
		}
		return ms(sorted[len(sorted)*percent/100]), true
	}
}

func median(of func(*result) []float64) func(*result) (float64, bool) {
	return func(r *result) (float64, bool) {
		sorted := slices.Sorted(slices.Values(of(r)))
		if len(sorted) == 0 {
			return 0, false
		}
		return sorted[len(sorted)/2], true
	}
}

func highest(of func(*result) []float64) func(*result) (float64, bool) {
	return func(r *result) (float64, bool) {
		if len(of(r)) == 0 {
			return 0, false
		}
		return slices.Max(of(r)), true
	}
}

// table returns the figures as a table in Markdown; each peer after the first has its
// ratio to the first.
func table(s size, filled time.Duration, results []*result) string {
	var out strings.Builder
	fmt.Fprintf(&out, "%d Services of %d endpoints, created in %s\n\n| |", s.services, s.endpoints, filled.Round(time.Second))
	for i, r := range results {
		fmt.Fprintf(&out, " %s |", r.name)
		if i > 0 {
			out.WriteString(" ratio |")
		}
	}
	out.WriteString("\n|" + strings.Repeat("---|", 2*len(results)) + "\n")
	for _, row := range figures {
		fmt.Fprintf(&out, "| %s |", row.name)
		base, _ := row.of(results[0])
		for i, r := range results {
			value, ok := row.of(r)
			fmt.Fprintf(&out, " %s |", cell(value, ok, row.unit))
			if i > 0 {
				fmt.Fprintf(&out, " %s |", ratio(value, base, ok))
			}
		}
		out.WriteString("\n")
	}
	return out.String()
}

func cell(value float64, ok bool, unit string) string {
	switch {
	case !ok:
		return "-"
	case value < 10 && unit != "":
		return strings.TrimSpace(fmt.Sprintf("%.1f %s", value, unit))
	}
	return strings.TrimSpace(fmt.Sprintf("%.0f %s", value, unit))
}

func ratio(value, base float64, ok bool) string {
	if !ok || base == 0 {
		return "-"
	}
	return fmt.Sprintf("%.3g", value/base)
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
