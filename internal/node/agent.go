package node

import (
	"context"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/klog/v2"
	"k8s.io/utils/clock"

	"fairlead.dev/fairlead/internal/dataplane"
	"fairlead.dev/fairlead/internal/persistent"
	"fairlead.dev/fairlead/internal/service"
)

const (
	// batchPeriod is how long what follows a write is collected: a write costs some
	// 0.3 ms plus microseconds an element, so that a longer wait saves little CPU.
	// A change that finds the agent idle does not wait.
	batchPeriod = 5 * time.Millisecond

	// checkPeriod is how often the agent looks for other writers. The look is one
	// system call; the promise is that a damage is repaired within 2 s.
	checkPeriod = 500 * time.Millisecond
)

// retry is the wait after failed writes: the rules that are there go on working.
var retry = wait.Backoff{Duration: 100 * time.Millisecond, Factor: 2, Jitter: 0.1, Steps: 7, Cap: 5 * time.Second}

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

// agent runs the one way of the data: intake -> model -> Snapshot -> sink. Everything
// in it belongs to the goroutine of run.
type agent struct {
	intake  *intake
	model   *model
	rules   rules
	health  *health
	metrics *metrics
	clock   clock.Clock
	logger  logr.Logger

	synced    bool
	lastWrite time.Time

	failure string // why the last write or check failed, empty where it did not
	backoff wait.Backoff
	retryAt time.Time
	refused persistent.Map[types.NamespacedName, error]
}

// run keeps the sink at the newest state until ctx ends. The rules stay.
func (a *agent) run(ctx context.Context) {
	check := a.clock.NewTimer(checkPeriod)
	defer check.Stop()
	again := a.clock.NewTimer(time.Hour) // set when something has to be written later
	again.Stop()
	defer again.Stop()
	for {
		due := false
		select {
		case <-ctx.Done():
			return
		case <-a.intake.wake:
			due = a.takeIn()
		case <-again.C():
			due = true
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
		if !a.write(ctx) && ctx.Err() == nil {
			again.Reset(a.retryAt.Sub(a.clock.Now()))
		}
	}
}

// mayWriteAt is when the next write may be: a period after the last, and when it failed
// not before its backoff is over, whatever comes in.
func (a *agent) mayWriteAt() time.Time {
	if a.failure != "" {
		return a.retryAt
	}
	return a.lastWrite.Add(batchPeriod)
}

// takeIn brings the model up to date and says whether there is something to write. Not
// before every watch has delivered: an empty cache is no reason to remove rules.
func (a *agent) takeIn() bool {
	events, synced := a.intake.take()
	for _, e := range events {
		e(a.model)
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
	a.health.queued(a.clock.Now())
	return true
}

func (a *agent) sayWhereNodePortsAre() {
	addrs := a.model.nodePortAddrs()
	if a.model.node == nil {
		a.logger.Info("Node not found in the API, is --node-name right? Everything else works; node ports are "+
			"served on the host's own addresses until it appears", "nodePortAddresses", addrs)
		return
	}
	a.logger.Info("Caches have synced", "nodePortAddresses", addrs)
}

// write applies the newest state, and says whether that worked.
func (a *agent) write(ctx context.Context) bool {
	start := a.clock.Now()
	err := a.rules.Apply(ctx, a.model.store.Snapshot())
	a.lastWrite = a.clock.Now()
	if ctx.Err() != nil {
		return false
	}
	if err != nil {
		a.fail(err, "Writing rules failed, will try again")
		return false
	}
	if a.failure != "" {
		a.failure = ""
		a.logger.Info("Writing rules works again")
	}
	a.health.updated(a.lastWrite)
	program, written := a.rules.Program(), a.rules.Last()
	a.metrics.wrote(written, program, a.lastWrite.Sub(start))
	if written.Installed {
		a.logger.Info("Installed the rules", "services", program.Snapshot.Services.Len(), "elements", written.Elements)
	}
	a.sayRefused(program)
	return true
}

// fail notes a failure and when to try again. It says so once for each reason.
func (a *agent) fail(err error, message string) {
	a.metrics.failures.Inc()
	if a.failure == "" {
		a.backoff = retry
		a.health.queued(a.clock.Now())
	}
	a.retryAt = a.clock.Now().Add(a.backoff.Step())
	if reason := err.Error(); reason != a.failure {
		a.failure = reason
		a.logger.Error(err, message)
	}
}

// sayRefused logs each Service that could not be compiled whole, once.
func (a *agent) sayRefused(program dataplane.Program) {
	same := func(x, y error) bool { return x.Error() == y.Error() }
	for ch := range persistent.Diff(a.refused, program.Refused, same) {
		if ch.HasNew {
			a.logger.Error(ch.New, "Service is served in part only", "service", klog.KRef(ch.Key.Namespace, ch.Key.Name))
		}
	}
	a.refused = program.Refused
}

// check repairs what others did to the rules, and says whether everything has to be
// written because that failed.
func (a *agent) check(ctx context.Context) bool {
	if a.failure != "" {
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
		a.metrics.repairs.Inc()
		a.logger.Info("Somebody else changed the rules, they are repaired", "elements", written.Elements, "madeAnew", written.Installed)
	}
	return false
}
