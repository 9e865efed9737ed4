package node

import (
	"context"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/client-go/tools/events"
	"k8s.io/utils/clock"

	"fairlead.dev/fairlead/internal/conntrack"
	"fairlead.dev/fairlead/internal/dataplane"
	"fairlead.dev/fairlead/internal/service"
)

const (
	// checkPeriod is how often the agent looks for other writers. The look is one
	// system call; the promise is that a damage is repaired within 2 s.
	checkPeriod = 500 * time.Millisecond
)

// Sink makes one subsystem of this node match a Snapshot.
type Sink interface {
	// Apply is idempotent and atomic per sink. After an error the sink still
	// knows what is installed; the agent calls again with the newest Snapshot.
	Apply(ctx context.Context, s *service.Snapshot) error
}

// rules is the Sink of the dataplane, *dataplane.Sink but in tests.
type rules interface {
	Sink
	// Check repairs what others changed.
	Check(ctx context.Context) error
	// Last is what the last Apply or Check wrote, Program what is installed.
	Last() dataplane.Written
	Program() dataplane.Program
}

// agent runs the one way of the data: intake -> model -> Snapshot -> sinks. Everything
// in it belongs to the goroutine of run.
type agent struct {
	intake   *intake
	model    *model
	rules    rules
	flows    *conntrack.Cleaner
	ports    *healthPorts
	others   []*follower // get each Snapshot once its rules are written
	ledger   *ledger
	health   *health
	metrics  *metrics
	counters *counters
	clock    clock.Clock
	logger   logr.Logger

	synced  bool
	pace    pace
	latency latency

	failure failure // of the last write or check of the rules
}

// newAgent returns an agent for the network namespace of the process.
func newAgent(node string, rules rules, recorder events.EventRecorder, logger logr.Logger) *agent {
	c, m := clock.RealClock{}, newMetrics()
	a := &agent{
		flows:  conntrack.New(c, logger),
		intake: newIntake(c), model: &model{store: service.NewStore(node)}, rules: rules,
		ledger: &ledger{node: node, events: recorder, logger: logger},
		health: &health{clock: c}, metrics: m, clock: c, logger: logger,
	}
	a.counters = newCounters(logger)
	m.watch(a.flows.Stats)
	a.ports = &healthPorts{node: node, healthy: a.health.live, events: recorder, metrics: m, clock: c, logger: logger}
	a.others = []*follower{{Sink: a.ports, name: "health check ports"}}
	return a
}

// run keeps the sink at the newest state until ctx ends. The rules stay.
func (a *agent) run(ctx context.Context) {
	defer a.ports.close()
	check := a.clock.NewTimer(checkPeriod)
	defer check.Stop()
	again, follow := stopped(a.clock), stopped(a.clock) // set when something has to be written later
	defer again.Stop()
	defer follow.Stop()
	for {
		due := false
		select {
		case <-ctx.Done():
			return
		case <-a.intake.wake:
			due = a.takeIn()
		case <-again.C():
			due = true
		case <-follow.C():
			a.follow(ctx, follow, true)
		case <-check.C():
			due = a.check(ctx)
			check.Reset(checkPeriod)
		}
		if ctx.Err() != nil {
			return
		}
		if !due {
			continue
		}
		if wait := a.mayWriteAt().Sub(a.clock.Now()); wait > 0 {
			again.Reset(wait)
			continue
		}
		again.Stop()
		switch written := a.write(ctx); {
		case written:
			a.follow(ctx, follow, false)
		case ctx.Err() == nil:
			again.Reset(a.failure.retryAt.Sub(a.clock.Now()))
		}
	}
}

func stopped(c clock.Clock) clock.Timer {
	t := c.NewTimer(time.Hour)
	t.Stop()
	return t
}

// mayWriteAt is when the next write may be: as the pace says, and when the last failed
// not before its backoff is over, whatever comes in.
func (a *agent) mayWriteAt() time.Time {
	if a.failure.reason != "" {
		return a.failure.retryAt
	}
	return a.pace.due()
}

// takeIn brings the model up to date and says whether there is something to write. Not
// before every watch has delivered: an empty cache is no reason to remove rules.
func (a *agent) takeIn() bool {
	events, synced := a.intake.take()
	for _, e := range events {
		e.apply(a.model)
		a.latency.came(e.arrival)
	}
	a.health.setEligible(a.model.eligible())
	first := synced && !a.synced
	if first {
		a.synced = true
		a.sayWhereNodePortsAre()
	}
	if !first && (!a.synced || !a.model.store.Pending()) {
		return false
	}
	now := a.clock.Now()
	a.pace.came(now, len(events))
	a.health.queued(now)
	return true
}

func (a *agent) sayWhereNodePortsAre() {
	addrs := a.model.nodePortAddrs()
	if a.model.node == nil {
		a.logger.Info("Node not found in the API, is --node-name right? Everything else works; node ports are "+
			"served on the host's own addresses until it appears", "nodePortAddresses", addrs)
		return
	}
	if a.model.podsUnknown() {
		a.logger.Info("The Node has no spec.podCIDRs, which localTraffic.nodeCIDR tells pods by: until it has, no traffic is " +
			"masqueraded for coming from elsewhere")
	}
	a.logger.Info("Caches have synced", "nodePortAddresses", addrs)
}

// write applies the newest state to the rules, and says whether that worked.
func (a *agent) write(ctx context.Context) bool {
	start := a.clock.Now()
	a.flows.Writing()
	err := a.rules.Apply(ctx, a.model.store.Snapshot())
	now := a.clock.Now()
	a.pace.wrote(now)
	if ctx.Err() != nil {
		return false
	}
	if err != nil {
		a.fail(err, "Writing rules failed, will try again")
		return false
	}
	if a.failure.over() {
		a.logger.Info("Writing rules works again")
	}
	a.health.updated(now)
	program, written := a.rules.Program(), a.rules.Last()
	a.flows.Changed(program.Snapshot)
	a.latency.wrote(now, a.ledger.services, program.Snapshot.Services, a.metrics)
	changed := a.ledger.enter(program)
	a.metrics.wrote(written, changed, a.ledger, now.Sub(start))
	a.counters.program.Store(&program)
	if written.Installed {
		a.logger.Info("Installed the rules", "services", program.Snapshot.Services.Len(), "elements", written.Elements)
	}
	return true
}

// fail notes a failure to write rules and when to try again.
func (a *agent) fail(err error, message string) {
	a.metrics.failures.Inc()
	if a.failure.reason == "" {
		a.health.queued(a.clock.Now())
	}
	if a.failure.note(err, a.clock.Now()) {
		a.logger.Error(err, message)
	}
}

// follow gives the other sinks what was written, those that failed only where retry says
// so, and sets the timer for those that fail. What they cannot do keeps nobody else from
// anything.
func (a *agent) follow(ctx context.Context, timer clock.Timer, retry bool) {
	var next time.Time
	for _, f := range a.others {
		if !retry || f.failure.due(a.clock.Now()) {
			f.apply(ctx, a.rules.Program().Snapshot, a.clock, a.logger)
		}
		if at := f.failure.retryAt; f.failure.reason != "" && (next.IsZero() || at.Before(next)) {
			next = at
		}
	}
	timer.Stop()
	if !next.IsZero() {
		timer.Reset(next.Sub(a.clock.Now()))
	}
}

// check repairs what others did to the rules, and says whether everything has to be
// written because that failed.
func (a *agent) check(ctx context.Context) bool {
	if a.failure.reason != "" {
		return false // the next write looks at everything
	}
	err := a.rules.Check(ctx)
	if ctx.Err() != nil {
		return false
	}
	if err != nil {
		a.fail(err, "Checking the rules failed, will write them again")
		return true
	}
	if written := a.rules.Last(); written.Elements > 0 || written.Installed {
		a.flows.Repaired()
		a.metrics.repairs.Inc()
		a.logger.Info("Somebody else changed the rules, they are repaired", "elements", written.Elements, "madeAnew", written.Installed)
	}
	return false
}
