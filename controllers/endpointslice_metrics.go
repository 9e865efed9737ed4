package controllers

import (
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/types"

	"fairlead.dev/fairlead/internal/endpointslice"
)

var (
	endpointSliceChanges = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "fairlead_endpointslice_changes_total",
		Help: "EndpointSlices written, by operation (create, update, delete).",
	}, []string{"operation"})

	endpointSliceSyncDuration = prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "fairlead_endpointslice_sync_duration_seconds",
		Help: "Time it takes to bring the EndpointSlices of one Service up to date.",
		// From a sync without a write to one of 5000 endpoints, which is 50 writes.
		Buckets: prometheus.ExponentialBuckets(0.0005, 2, 14),
	})

	endpointSliceDifferences = prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "fairlead_endpointslice_observed_differences",
		Help: "EndpointSlices that would be written in the mode Own, by operation (create, update, delete).",
	}, []string{"operation"})
)

// sliceDifferences sums over Services what would be written. The zero value is ready.
type sliceDifferences struct {
	mu        sync.Mutex
	byService map[types.NamespacedName][3]int
}

// set makes plan the difference of one Service; an empty plan means there is none.
func (d *sliceDifferences) set(service types.NamespacedName, plan endpointslice.Plan) {
	d.mu.Lock()
	defer d.mu.Unlock()
	is := [3]int{len(plan.Create), len(plan.Update), len(plan.Delete)}
	was := d.byService[service]
	for i, operation := range []string{opCreate, opUpdate, opDelete} {
		endpointSliceDifferences.WithLabelValues(operation).Add(float64(is[i] - was[i]))
	}
	if is == [3]int{} {
		delete(d.byService, service)
		return
	}
	if d.byService == nil {
		d.byService = map[types.NamespacedName][3]int{}
	}
	d.byService[service] = is
}
