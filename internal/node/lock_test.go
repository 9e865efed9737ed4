package node

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/go-logr/logr"

	"fairlead.dev/fairlead/test/netlab"
)

// TestLock: one agent in a network namespace, whose process the next one can name, and
// another in another namespace.
func TestLock(t *testing.T) {
	unlock, err := tryLock(t.Context())
	must(t, err)
	for range 10_000 { // more than wait in a listener's queue
		if _, err := tryLock(t.Context()); !errors.Is(err, errHeld{pid: int32(os.Getpid())}) {
			t.Fatalf("a second lock: %v, want one held by process %d", err, os.Getpid())
		}
	}

	lab, err := netlab.New()
	must(t, err)
	t.Cleanup(func() { must(t, lab.Close()) })
	elsewhere, err := lab.AddClient("elsewhere")
	must(t, err)
	must(t, elsewhere.Do(func() error {
		unlock, err := tryLock(t.Context())
		if err == nil {
			unlock()
		}
		return err
	}))

	ctx, cancel := context.WithTimeout(t.Context(), 3*lockPeriod)
	defer cancel()
	if _, err := takeLock(ctx, logr.Discard()); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("waiting in vain: %v", err)
	}
	taken := make(chan error)
	go func() {
		unlock, err := takeLock(t.Context(), logr.Discard())
		if err == nil {
			unlock()
		}
		taken <- err
	}()
	unlock()
	select {
	case err := <-taken:
		must(t, err)
	case <-time.After(10 * time.Second):
		t.Fatal("nobody got the lock")
	}
}
