package bench_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"fairlead.dev/fairlead/test/cluster"
)

// clockTick is what /proc counts CPU time in: USER_HZ, 100 on every Linux platform
// that Go runs on.
const clockTick = 10 * time.Millisecond

// samplePeriod is between two looks at the memory of a process and its children: an nft
// that lives shorter hardly has the time to grow.
const samplePeriod = 20 * time.Millisecond

// cpuTime is what the process and the children that it has waited for have used so far
// (proc(5), stat, fields 14 to 17).
func cpuTime(b testing.TB, p *cluster.Process) time.Duration {
	b.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.PID()))
	must(b, err)
	_, rest, _ := strings.Cut(string(raw), ") ") // the name may have spaces
	var ticks int
	for _, field := range strings.Fields(rest)[11:15] {
		n, err := strconv.Atoi(field)
		must(b, err)
		ticks += n
	}
	return time.Duration(ticks) * clockTick
}

// settle waits until the process uses no more than a tenth of a processor.
func settle(b testing.TB, p *cluster.Process) {
	b.Helper()
	const look = 500 * time.Millisecond
	tick := time.NewTicker(look)
	defer tick.Stop()
	before := cpuTime(b, p)
	for range tick.C {
		now := cpuTime(b, p)
		if now-before <= look/10 {
			return
		}
		before = now
	}
}

// memory follows the resident memory of a process and its children.
type memory struct{ peak atomic.Int64 }

// follow samples until ctx ends.
func follow(ctx context.Context, pid int) *memory {
	m := &memory{}
	go func() {
		tick := time.NewTicker(samplePeriod)
		defer tick.Stop()
		for ctx.Err() == nil {
			m.peak.Store(max(m.peak.Load(), resident(pid)))
			<-tick.C
		}
	}()
	return m
}

// resident is the memory in use by a process and all that it started, in bytes.
func resident(pid int) int64 {
	var total int64
	if raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid)); err == nil {
		if fields := strings.Fields(string(raw)); len(fields) > 1 {
			pages, _ := strconv.ParseInt(fields[1], 10, 64)
			total = pages * int64(os.Getpagesize())
		}
	}
	// Without CONFIG_PROC_CHILDREN there are no such files, see checkChildren.
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, list := range lists {
		raw, _ := os.ReadFile(list) // the thread may have ended
		for child := range strings.FieldsSeq(string(raw)) {
			if id, err := strconv.Atoi(child); err == nil {
				total += resident(id)
			}
		}
	}
	return total
}

// checkChildren fails where the kernel does not list the children of a process.
func checkChildren(b testing.TB) {
	b.Helper()
	_, err := os.Stat(fmt.Sprintf("/proc/self/task/%d/children", os.Getpid()))
	must(b, err)
}

// highWater is the most memory that the process alone had, in bytes (VmHWM in proc(5)).
func highWater(b testing.TB, p *cluster.Process) int64 {
	b.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID()))
	must(b, err)
	_, rest, _ := strings.Cut(string(raw), "VmHWM:")
	fields := strings.Fields(rest)
	kib, err := strconv.ParseInt(fields[0], 10, 64)
	must(b, err)
	return kib << 10
}

func mib(bytes int64) float64 { return float64(bytes) / (1 << 20) }
