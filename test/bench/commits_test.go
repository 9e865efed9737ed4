package bench_test

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/mdlayher/netlink"

	"fairlead.dev/fairlead/test/netlab"
)

// commits are the transactions that reached a kernel.
type commits struct {
	seen   chan commit
	failed chan error
}

type commit struct {
	at       time.Time
	messages []netlink.Message
}

// watch watches until ctx ends. A transaction of more messages than the socket has room
// for is an error of the next await: begin after the first rules are there.
func watch(ctx context.Context, b testing.TB, h *netlab.Host) *commits {
	b.Helper()
	w := &commits{seen: make(chan commit, 4096), failed: make(chan error, 1)}
	must(b, h.Transactions(ctx, func(messages []netlink.Message) {
		select {
		case w.seen <- commit{time.Now(), messages}:
		case <-ctx.Done():
		}
	}, func(err error) { w.failed <- err }))
	return w
}

// await returns when the transaction was committed that named the last of addrs, and how
// many it took.
func (w *commits) await(ctx context.Context, addrs ...netip.Addr) (at time.Time, count int, err error) {
	missing := map[netip.Addr]bool{}
	for _, a := range addrs {
		missing[a] = true
	}
	for {
		select {
		case c := <-w.seen:
			count++
			for a := range missing {
				if c.names(a) {
					delete(missing, a)
				}
			}
			if len(missing) == 0 {
				return c.at, count, nil
			}
		case err := <-w.failed:
			return at, count, err
		case <-ctx.Done():
			return at, count, fmt.Errorf("waiting for %d of %d addresses in the kernel: %w", len(missing), len(addrs), ctx.Err())
		}
	}
}

func (c commit) names(a netip.Addr) bool {
	for _, m := range c.messages {
		if bytes.Contains(m.Data, a.AsSlice()) {
			return true
		}
	}
	return false
}

// drain forgets what has been seen.
func (w *commits) drain() {
	for {
		select {
		case <-w.seen:
		default:
			return
		}
	}
}
