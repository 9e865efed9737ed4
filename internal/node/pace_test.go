package node

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"
)

// TestBurst: 500 Services that change within 50 ms, and within the 300 ms that an API
// server takes to deliver them, make fewer than 5 writes, and the last is in time.
func TestBurst(t *testing.T) {
	const changes = 500
	for name, tc := range map[string]struct {
		gap    func(i int) time.Duration
		within time.Duration // of the last change
	}{
		"all at once": {func(int) time.Duration { return 0 }, burstLimit},
		"over 50 ms":  {func(int) time.Duration { return 100 * time.Microsecond }, burstLimit},
		"over 300 ms": {func(int) time.Duration { return 600 * time.Microsecond }, burstLimit},
		"in runs of 50, with pauses": {func(i int) time.Duration {
			if i%50 == 0 {
				return 12 * time.Millisecond
			}
			return 100 * time.Microsecond
		}, burstLimit},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				_, r, svcs := startAgent(t)
				must(t, svcs.Replace(nil, ""))
				r.want(t, 1, 0)
				time.Sleep(time.Second) // it is idle
				for i := range changes {
					time.Sleep(tc.gap(i))
					must(t, svcs.Add(clusterIP(fmt.Sprint("s", i), fmt.Sprintf("10.0.%d.%d", i/250, i%250+1))))
					synctest.Wait()
				}
				time.Sleep(tc.within)
				synctest.Wait()
				r.mu.Lock()
				defer r.mu.Unlock()
				if writes, last := len(r.applied)-1, r.applied[len(r.applied)-1].Services.Len(); writes >= 5 || last != changes {
					t.Errorf("%d writes, the last with %d Services; want fewer than 5 and %d", writes, last, changes)
				}
			})
		})
	}
}

// TestNobodyWaitsForLong: where changes keep coming without being a burst, each is
// written within 20 ms, and not each for itself.
func TestNobodyWaitsForLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, r, svcs := startAgent(t)
		must(t, svcs.Replace(nil, ""))
		time.Sleep(time.Second)
		for i := range 100 {
			must(t, svcs.Add(clusterIP(fmt.Sprint("s", i), fmt.Sprintf("10.0.0.%d", i+1))))
			time.Sleep(1500 * time.Microsecond)
			synctest.Wait()
			r.mu.Lock()
			written := r.applied[len(r.applied)-1].Services.Len()
			r.mu.Unlock()
			if late := i + 1 - written; time.Duration(late)*1500*time.Microsecond > batchLimit {
				t.Fatalf("after change %d only %d are written", i+1, written)
			}
		}
		time.Sleep(batchLimit)
		synctest.Wait()
		if writes := len(r.applied); writes < 7 || writes > 12 {
			t.Errorf("%d writes in 150 ms, want one in about 20 ms", writes)
		}
	})
}

// TestPaceIsThatOfTheLastWrite: single changes with pauses are written at once, each.
func TestPaceIsThatOfTheLastWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, r, svcs := startAgent(t)
		must(t, svcs.Replace(nil, ""))
		for i := range 20 {
			time.Sleep(batchPeriod)
			must(t, svcs.Add(clusterIP(fmt.Sprint("s", i), fmt.Sprintf("10.0.0.%d", i+1))))
			r.want(t, i+2, i+1)
		}
	})
}
