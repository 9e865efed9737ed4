package node

import (
	"slices"

	"github.com/go-logr/logr"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"k8s.io/klog/v2"

	"fairlead.dev/fairlead/internal/dataplane"
	"fairlead.dev/fairlead/internal/ipfamily"
	"fairlead.dev/fairlead/internal/persistent"
	"fairlead.dev/fairlead/internal/service"
)

// totals are sums over Services.
type totals struct {
	endpoints int // of all ports and families
	frontends int // addresses and node ports, each with a port
	faults    int
}

func totalsOf(s *service.Service) totals {
	t := totals{faults: len(s.Faults)}
	addrs := len(s.ClusterIPs) + len(s.ExternalIPs) + len(s.LoadBalancerIPs)
	for i := range s.Ports {
		p := &s.Ports[i]
		t.frontends += addrs
		if p.NodePort != 0 {
			t.frontends++
		}
		for _, f := range ipfamily.All {
			t.endpoints += len(p.Cluster[f])
		}
	}
	return t
}

// add adds o n times.
func (t *totals) add(o totals, n int) {
	t.endpoints += n * o.endpoints
	t.frontends += n * o.frontends
	t.faults += n * o.faults
}

// ledger knows what is installed, and tells users what of their Services is not. It
// costs what changed.
type ledger struct {
	node   string
	events events.EventRecorder
	logger logr.Logger

	services persistent.Map[types.NamespacedName, *service.Service]
	refused  persistent.Map[types.NamespacedName, error]
	totals   totals
}

// enter takes in what was written, and returns how many Services changed.
func (l *ledger) enter(program dataplane.Program) (changed int) {
	services := program.Snapshot.Services
	for ch := range persistent.Diff(l.services, services, func(a, b *service.Service) bool { return a == b }) {
		changed++
		var before []string
		if ch.HadOld {
			l.totals.add(totalsOf(ch.Old), -1)
			before = ch.Old.Faults
		}
		if ch.HasNew {
			l.totals.add(totalsOf(ch.New), +1)
			l.sayFaults(ch.New, before)
		}
	}
	l.services = services
	same := func(x, y error) bool { return x.Error() == y.Error() }
	for ch := range persistent.Diff(l.refused, program.Refused, same) {
		if svc, ok := services.Get(ch.Key); ok && ch.HasNew {
			l.logger.Error(ch.New, "Service is served in part only", "service", klog.KRef(ch.Key.Namespace, ch.Key.Name))
			record(l.events, svc, eventPartlyServed(l.node, ch.New))
		}
	}
	l.refused = program.Refused
	return changed
}

// sayFaults tells of the faults that svc had not before.
func (l *ledger) sayFaults(svc *service.Service, before []string) {
	var news []string
	for _, fault := range svc.Faults {
		if !slices.Contains(before, fault) {
			news = append(news, fault)
		}
	}
	if len(news) > 0 {
		l.logger.Info("Service has values that cannot be used, the rest is served",
			"service", klog.KRef(svc.Name.Namespace, svc.Name.Name), "faults", news)
		record(l.events, svc, eventInvalidValues(l.node, news))
	}
}
