package conntrack

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/utils/clock"

	"fairlead.dev/fairlead/internal/ipfamily"
	"fairlead.dev/fairlead/internal/service"
)

const (
	// restShare bounds what passes cost: the next waits this many times as long as one
	// took, up to restLimit. Measured, the kernel needs 10 ms for its 262,144 buckets, and
	// 2 us for each flow that it lists (BenchmarkPass).
	restShare = 100
	restLimit = 5 * time.Second

	// patience is how long changes that concern TCP alone are collected: a client repeats
	// its SYN 1, 3 and 7 seconds after the first (RFC 6298), and not before that can it be
	// sent elsewhere. With changes all the time that is a pass every 2 s, half a percent
	// of a processor. Changes that concern UDP do not wait.
	patience = 2 * time.Second

	// tries is how often a listing is tried that was torn, before it counts as failed.
	tries = 3
)

// retry is the wait after failed passes.
var retry = wait.Backoff{Duration: 100 * time.Millisecond, Factor: 2, Jitter: 0.1, Steps: 9, Cap: 30 * time.Second}

// Stats are counters since the start.
type Stats struct {
	// Passes are walks through the table that were finished, Failures those that were not.
	Passes, Failures uint64
	// Seen are the flows that were looked at.
	Seen uint64
	// RemovedUDP and RemovedTCP are the flows that were removed.
	RemovedUDP, RemovedTCP uint64
}

// Cleaner removes stale flows. Whoever writes rules tells it before and after each
// write; neither call waits for anything. Run does the work.
type Cleaner struct {
	clock  clock.Clock
	logger logr.Logger
	wake   chan struct{} // of size 1

	mu      sync.Mutex
	writing bool
	queue   []*service.Snapshot
	all     bool

	// These belong to the goroutine of Run.
	table   table
	claims  claims
	touched frontends
	failure string // why the last pass failed, empty where it did not

	passes, failures, seen, removedUDP, removedTCP atomic.Uint64
}

// New returns a Cleaner that has seen no rules.
func New(clk clock.Clock, logger logr.Logger) *Cleaner {
	return &Cleaner{
		clock: clk, logger: logger, wake: make(chan struct{}, 1),
		claims: claims{by: map[frontend][]claim{}}, touched: frontends{},
	}
}

// Writing says that rules are about to be written. Until Changed, nobody knows which
// endpoints new flows may have, and no flow is removed.
func (c *Cleaner) Writing() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.writing = true
}

// Changed says that the rules are now those of s. The first one has all frontends looked
// at, for flows from before the start.
func (c *Cleaner) Changed(s *service.Snapshot) {
	c.mu.Lock()
	c.writing = false
	c.queue = append(c.queue, s)
	c.mu.Unlock()
	c.ring()
}

// Repaired says that the rules were away for a while: all frontends are looked at, for
// flows that began without being translated.
func (c *Cleaner) Repaired() {
	c.mu.Lock()
	c.all = true
	c.mu.Unlock()
	c.ring()
}

func (c *Cleaner) ring() {
	select {
	case c.wake <- struct{}{}:
	default: // it is ringing
	}
}

// Stats returns the counters. It may be called from any goroutine.
func (c *Cleaner) Stats() Stats {
	return Stats{
		Passes: c.passes.Load(), Failures: c.failures.Load(), Seen: c.seen.Load(),
		RemovedUDP: c.removedUDP.Load(), RemovedTCP: c.removedTCP.Load(),
	}
}

// Run removes stale flows of the network namespace of the calling thread until ctx ends.
// A pass that failed is tried again later with what has come in since.
func (c *Cleaner) Run(ctx context.Context) {
	defer c.table.close()
	due := c.clock.NewTimer(time.Hour)
	defer due.Stop()
	backoff := retry
	var since, rest time.Time // something is touched since then; no pass before then
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.wake:
			c.takeIn()
		case <-due.C():
		}
		start := c.clock.Now()
		if len(c.touched) == 0 {
			continue
		}
		if since.IsZero() {
			since = start
		}
		if wait := c.touched.dueAfter(since, rest).Sub(start); wait > 0 {
			due.Reset(wait)
			continue
		}
		if err := c.pass(ctx); err == nil {
			backoff = retry
			rest = c.clock.Now().Add(min(restShare*c.clock.Since(start), restLimit))
		} else if ctx.Err() == nil {
			rest = c.clock.Now().Add(c.fail(err, &backoff))
		}
		since = time.Time{}
		c.ring() // for what came in meanwhile
	}
}

// dueAfter is when the frontends, touched since then, are to be looked at, but not before
// the rest is over.
func (fs frontends) dueAfter(since, rest time.Time) time.Time {
	at := since.Add(patience)
	for f := range fs {
		if f.protocol == service.UDP {
			at = since
			break
		}
	}
	if rest.After(at) {
		return rest
	}
	return at
}

// fail notes a failure and returns when to try again. It says so once for each reason.
func (c *Cleaner) fail(err error, backoff *wait.Backoff) time.Duration {
	c.failures.Add(1)
	if reason := err.Error(); reason != c.failure {
		c.failure = reason
		c.logger.Error(err, "Removing stale flows failed, will try again")
	}
	return backoff.Step()
}

// takeIn brings the claims up to date with what was written, and says whether they say
// what the kernel does: not while a write is under way.
func (c *Cleaner) takeIn() (settled bool) {
	c.mu.Lock()
	queue, all := c.queue, c.all
	settled = !c.writing
	c.queue, c.all = nil, false
	c.mu.Unlock()
	for _, s := range queue {
		c.claims.take(s, c.touched)
	}
	if all {
		c.claims.all(c.touched)
	}
	return settled
}

// pass looks for stale flows at the touched frontends, once through the table for each
// family and protocol. What fails stays touched.
func (c *Cleaner) pass(ctx context.Context) error {
	looking := c.touched
	c.touched = frontends{} // for what comes in meanwhile
	for _, q := range queries(looking) {
		if err := c.look(ctx, q, looking); err != nil {
			for f := range looking {
				c.touched[f] = struct{}{}
			}
			return err
		}
	}
	c.passes.Add(1)
	if c.failure != "" {
		c.failure = ""
		c.logger.Info("Removing stale flows works again")
	}
	return nil
}

func (c *Cleaner) look(ctx context.Context, q query, looking frontends) (err error) {
	for range tries {
		err = c.table.walk(ctx, q, func(fl *flow) error {
			c.seen.Add(1)
			if _, ok := looking[frontend{fl.protocol, fl.to}]; !ok || !c.claims.stale(fl) {
				return nil
			}
			return c.remove(ctx, fl)
		})
		if !errors.Is(err, errTorn) && !errors.Is(err, unix.ENOBUFS) {
			break
		}
	}
	return err
}

// remove removes a flow that looks stale, unless what was written since it was listed
// says otherwise.
func (c *Cleaner) remove(ctx context.Context, fl *flow) error {
	for !c.takeIn() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-c.wake:
		}
	}
	if !c.claims.stale(fl) {
		return nil
	}
	removed, err := c.table.remove(fl)
	switch {
	case removed && fl.protocol == service.UDP:
		c.removedUDP.Add(1)
	case removed:
		c.removedTCP.Add(1)
	}
	return err
}

// queries returns how to walk through the table for the frontends: once for each family
// and protocol, and only to an address or port that all of these have in common.
func queries(looking frontends) []query {
	type walk struct {
		family   ipfamily.Family
		protocol service.Protocol
	}
	found := map[walk]query{}
	for f := range looking {
		w := walk{ipfamily.Of(f.addr.Addr()), f.protocol}
		q, ok := found[w]
		if !ok {
			q = query{family: w.family, protocol: w.protocol, addr: f.addr.Addr(), port: f.addr.Port()}
		}
		if q.addr != f.addr.Addr() {
			q.addr = netip.Addr{}
		}
		if q.port != f.addr.Port() {
			q.port = 0
		}
		found[w] = q
	}
	return slices.Collect(maps.Values(found))
}
