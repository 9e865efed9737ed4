package node

import (
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"fairlead.dev/fairlead/internal/dataplane"
)

// metrics are the figures of the dataplane.
type metrics struct {
	registry *prometheus.Registry
	duration prometheus.Histogram
	elements prometheus.Counter
	services prometheus.Gauge
	refused  prometheus.Gauge
	failures prometheus.Counter
	repairs  prometheus.Counter
}

func newMetrics() *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "fairlead_dataplane_apply_duration_seconds", Help: "Time to compile and commit one batch of changes.",
			Buckets: prometheus.ExponentialBuckets(0.0001, 2, 16), // 0.1 ms to 3.3 s
		}),
		elements: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "fairlead_dataplane_elements_written_total", Help: "Set and map elements added, deleted or changed.",
		}),
		services: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "fairlead_dataplane_services", Help: "Services that have rules on this node.",
		}),
		refused: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "fairlead_dataplane_refused_services", Help: "Services that could not be compiled whole.",
		}),
		failures: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "fairlead_dataplane_failures_total", Help: "Writes and checks of the rules that failed.",
		}),
		repairs: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "fairlead_dataplane_repairs_total", Help: "Times that rules changed by somebody else were repaired.",
		}),
	}
	m.registry.MustRegister(m.duration, m.elements, m.services, m.refused, m.failures, m.repairs,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

func (m *metrics) wrote(w dataplane.Written, p dataplane.Program, took time.Duration) {
	m.duration.Observe(took.Seconds())
	m.elements.Add(float64(w.Elements))
	m.services.Set(float64(p.Snapshot.Services.Len()))
	m.refused.Set(float64(p.Refused.Len()))
}

func (m *metrics) handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{}))
	return mux
}
