package node

import (
	"strconv"
	"sync/atomic"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"

	"fairlead.dev/fairlead/internal/dataplane"
)

// counters are the figures of each Service port, read from the kernel when they are
// asked for. The agent notes the Program that names their Services.
type counters struct {
	program atomic.Pointer[dataplane.Program]
	read    func() (map[dataplane.Frontend]dataplane.Count, error)
	logger  logr.Logger
	failure atomic.Pointer[string] // that was logged, nil for none

	connections, packets, bytes *prometheus.Desc
}

func newCounters(logger logr.Logger) *counters {
	desc := func(name, help string) *prometheus.Desc {
		return prometheus.NewDesc("fairlead_dataplane_service_"+name, help, []string{"namespace", "service", "protocol", "port"}, nil)
	}
	return &counters{
		read: dataplane.ReadCounters, logger: logger,
		connections: desc("connections_total", "Connections that were begun to a Service port at any of its addresses."),
		packets:     desc("packets_total", "Packets that clients sent to a Service port."),
		bytes:       desc("bytes_total", "Bytes of the packets that clients sent to a Service port."),
	}
}

// Describe implements prometheus.Collector.
func (c *counters) Describe(out chan<- *prometheus.Desc) {
	out <- c.connections
	out <- c.packets
	out <- c.bytes
}

// Collect implements prometheus.Collector.
func (c *counters) Collect(out chan<- prometheus.Metric) {
	program := c.program.Load()
	if program == nil {
		return
	}
	counts, err := c.read()
	if err != nil {
		// Whoever asks comes back four times a minute.
		reason := err.Error()
		if last := c.failure.Swap(&reason); last == nil || *last != reason {
			c.logger.Error(err, "Cannot read the counters of Services")
		}
		return
	}
	if c.failure.Swap(nil) != nil {
		c.logger.Info("Reading the counters of Services works again")
	}
	sums := map[dataplane.Owner]dataplane.Count{}
	for f, n := range counts {
		// What nobody has now is of a Service that has gone.
		if owner, ok := program.Owner(f); ok {
			sums[owner] = sums[owner].Plus(n)
		}
	}
	for owner, n := range sums {
		labels := []string{owner.Service.Namespace, owner.Service.Name, owner.Protocol.String(), strconv.Itoa(int(owner.Port))}
		for desc, value := range map[*prometheus.Desc]uint64{c.connections: n.Connections, c.packets: n.Packets, c.bytes: n.Bytes} {
			out <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, float64(value), labels...)
		}
	}
}
