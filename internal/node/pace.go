package node

import "time"

const (
	// batchPeriod is the least time between two writes: one costs some 0.3 ms plus
	// microseconds an element, so that a longer wait saves little CPU. A change that
	// finds the agent idle for so long does not wait.
	batchPeriod = 5 * time.Millisecond

	// batchLull is the silence that ends a batch: what one cause changed, a Service and
	// its slices, comes in within a millisecond or two.
	batchLull = 2 * time.Millisecond

	// batchLimit is the longest that a change waits while others keep coming.
	batchLimit = 20 * time.Millisecond

	// burstSize is how many changes make a burst, a deployment of everything or a node
	// that goes: more than 1,000 a second for a whole batchLimit. There is little to win
	// from the first of them being in the rules before the last, and a burst of 500, which
	// an API server takes some 0.3 s to deliver, shall make fewer than 5 writes.
	burstSize  = 20
	burstLimit = 100 * time.Millisecond
	// burstLull is longer than the pauses that a busy API server makes.
	burstLull = 15 * time.Millisecond
)

// pace says when what has come in may be written: at once where nothing was written
// just before, else together with what follows. The zero value is that of an idle agent.
type pace struct {
	written     time.Time     // when the last write ended
	rest        time.Duration // for how long the agent is not idle after it
	first, last time.Time     // of the changes since, meaningful where changes > 0
	changes     int
}

// came notes n changes.
func (p *pace) came(now time.Time, n int) {
	if p.changes == 0 {
		p.first = now
	}
	p.last = now
	p.changes += n
}

// due is when the changes should be written, unless more come until then.
func (p *pace) due() time.Time {
	if p.changes == 0 || !p.first.Before(p.written.Add(p.rest)) {
		return p.first
	}
	if p.changes < burstSize {
		return earlier(later(p.last.Add(batchLull), p.written.Add(batchPeriod)), p.first.Add(batchLimit))
	}
	return earlier(p.last.Add(burstLull), p.first.Add(burstLimit))
}

// wrote notes a write, good or not, of all that came.
func (p *pace) wrote(now time.Time) {
	p.rest = batchPeriod
	if p.changes >= burstSize {
		p.rest = burstLull
	}
	p.written, p.changes = now, 0
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}
