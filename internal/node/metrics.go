package node

import (
	"fmt"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"fairlead.dev/fairlead/internal/conntrack"
	"fairlead.dev/fairlead/internal/dataplane"
)

// proxyMode is the mode of kube-proxy whose behaviour ours is.
const proxyMode = "nftables"

// metrics are the figures of the dataplane.
type metrics struct {
	registry *prometheus.Registry

	duration                 prometheus.Histogram
	sinceTrigger, sinceEvent prometheus.Observer
	batchServices, batchSize prometheus.Histogram
	elements                 prometheus.Counter
	failures, repairs        prometheus.Counter

	services, endpoints, frontends  prometheus.Gauge
	refused, faults                 prometheus.Gauge
	healthPorts, healthPortsFailing prometheus.Gauge
}

// seconds are from 0.1 ms to 3.3 s.
var seconds = prometheus.ExponentialBuckets(0.0001, 2, 16)

// sizes are from 1 to 262,144.
var sizes = prometheus.ExponentialBuckets(1, 4, 10)

func newMetrics() *metrics {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: "fairlead_dataplane_" + name, Help: help})
		r.MustRegister(c)
		return c
	}
	gauge := func(name, help string) prometheus.Gauge {
		g := prometheus.NewGauge(prometheus.GaugeOpts{Name: "fairlead_dataplane_" + name, Help: help})
		r.MustRegister(g)
		return g
	}
	histogram := func(name, help string, buckets []float64) prometheus.Histogram {
		h := prometheus.NewHistogram(prometheus.HistogramOpts{Name: "fairlead_dataplane_" + name, Help: help, Buckets: buckets})
		r.MustRegister(h)
		return h
	}
	latency := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "fairlead_dataplane_programming_duration_seconds",
		Help: "Time from a change to the commit of its rules, for changes after the first write: since=\"trigger\" from when " +
			"the pod or Service changed, by the clock of whoever wrote the EndpointSlice; since=\"event\" from when this node heard of it.",
		Buckets: prometheus.ExponentialBuckets(0.0005, 2, 20), // 0.5 ms to 262 s
	}, []string{"since"})
	r.MustRegister(latency)
	return &metrics{
		registry:     r,
		sinceTrigger: latency.WithLabelValues("trigger"), sinceEvent: latency.WithLabelValues("event"),

		duration:           histogram("apply_duration_seconds", "Time to compile and commit one batch of changes.", seconds),
		batchServices:      histogram("batch_services", "Services that changed in one batch.", sizes),
		batchSize:          histogram("batch_elements", "Set and map elements written in one batch.", sizes),
		elements:           counter("elements_written_total", "Set and map elements added, deleted or changed."),
		failures:           counter("failures_total", "Writes and checks of the rules that failed."),
		repairs:            counter("repairs_total", "Times that rules changed by somebody else were repaired."),
		services:           gauge("services", "Services that have rules on this node."),
		endpoints:          gauge("endpoints", "Endpoints in use, of all ports of these Services."),
		frontends:          gauge("frontends", "Addresses and node ports, each with a port, that these Services are reached at."),
		refused:            gauge("refused_services", "Services that are served in part, or as they were before: the kernel refuses them, or there are too many ports."),
		faults:             gauge("invalid_values", "Values of Services that cannot be used and are left out."),
		healthPorts:        gauge("health_check_listeners", "Listening sockets of health check node ports."),
		healthPortsFailing: gauge("health_check_failing_services", "Services whose health check node port is not listened on everywhere."),
	}
}

// watch adds the figures of the removal of stale flows.
func (m *metrics) watch(stats func() conntrack.Stats) {
	counter := func(name, help string, labels prometheus.Labels, value func(conntrack.Stats) uint64) {
		m.registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "fairlead_conntrack_" + name, Help: help, ConstLabels: labels,
		}, func() float64 { return float64(value(stats())) }))
	}
	const removed = "Flows that were removed because their endpoint serves no longer."
	counter("removed_flows_total", removed, prometheus.Labels{"protocol": "UDP"}, func(s conntrack.Stats) uint64 { return s.RemovedUDP })
	counter("removed_flows_total", removed, prometheus.Labels{"protocol": "TCP"}, func(s conntrack.Stats) uint64 { return s.RemovedTCP })
	counter("passes_total", "Passes over the kernel's table of connections.", nil, func(s conntrack.Stats) uint64 { return s.Passes })
	counter("failures_total", "Passes that failed and are repeated.", nil, func(s conntrack.Stats) uint64 { return s.Failures })
}

// wrote reports one write.
func (m *metrics) wrote(w dataplane.Written, changed int, l *ledger, took time.Duration) {
	m.duration.Observe(took.Seconds())
	m.batchServices.Observe(float64(changed))
	m.batchSize.Observe(float64(w.Elements))
	m.elements.Add(float64(w.Elements))
	m.services.Set(float64(l.services.Len()))
	m.endpoints.Set(float64(l.totals.endpoints))
	m.frontends.Set(float64(l.totals.frontends))
	m.refused.Set(float64(l.refused.Len()))
	m.faults.Set(float64(l.totals.faults))
}

// handler serves what kube-proxy serves at its metrics' address.
func (m *metrics) handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{}))
	mux.Handle("/proxyMode", plain(proxyMode))
	mux.Handle("/healthz", plain("ok")) // says that the server is there, and no more
	return mux
}

func plain(text string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		_, _ = fmt.Fprint(w, text) // the client has gone, nobody to tell
	}
}
