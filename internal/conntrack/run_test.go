package conntrack

import (
	"context"
	"errors"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/util/wait"

	"fairlead.dev/fairlead/internal/ipfamily"
	"fairlead.dev/fairlead/internal/service"
)

// await waits until the Cleaner's counters are as wanted.
func (l *lab) await(ok func(Stats) bool) {
	l.t.Helper()
	if err := wait.PollUntilContextTimeout(l.t.Context(), time.Millisecond, testTimeout, true,
		func(context.Context) (bool, error) { return ok(l.cleaner.Stats()), nil }); err != nil {
		l.t.Fatalf("%v with %+v", err, l.cleaner.Stats())
	}
}

// run runs the Cleaner in the node's namespace until the returned func is called.
func (l *lab) run() (stop func()) {
	ctx, cancel := context.WithCancel(l.t.Context())
	done := make(chan error, 1)
	go func() {
		done <- l.node.Do(func() error {
			l.cleaner.Run(ctx)
			return nil
		})
	}()
	return func() {
		l.t.Helper()
		cancel()
		must(l.t, <-done)
	}
}

// TestRun: changes are served as they come, in one pass where they come together.
func TestRun(t *testing.T) {
	l := newLab(t)
	defer l.run()()
	l.write(l.web("a"))
	conn := l.dial(l.pods["pod"], "udp", netip.AddrPortFrom(vips["ClusterIP"][ipfamily.IPv4], port))
	wantAnswer(t, conn, "a")
	for i, name := range []string{"b", "a", "c"} {
		l.write(l.web(name))
		l.await(func(s Stats) bool { return s.RemovedUDP == uint64(i+1) })
		wantAnswer(t, conn, name)
	}
	l.await(func(s Stats) bool { return s.Passes >= 3 })
	passes := l.cleaner.Stats().Passes
	for range 100 {
		l.write(l.web("a"))
		l.write(l.web("c"))
	}
	wantAnswer(t, conn, "c")
	l.write(l.web("b"))
	l.await(func(s Stats) bool { return s.RemovedUDP == 4 })
	wantAnswer(t, conn, "b")
	if got := l.cleaner.Stats().Passes - passes; got > 20 {
		t.Errorf("%d passes for 201 changes", got)
	}
}

// TestNothingIsRemovedDuringAWrite: a flow may be to an endpoint that the Cleaner is yet
// to hear of.
func TestNothingIsRemovedDuringAWrite(t *testing.T) {
	l := newLab(t)
	l.write(l.web("a"))
	conn := l.dial(l.pods["pod"], "udp", netip.AddrPortFrom(vips["ClusterIP"][ipfamily.IPv4], port))
	wantAnswer(t, conn, "a")
	l.write(l.web("b"))
	l.cleaner.Writing()
	stop := l.run()
	l.await(func(s Stats) bool { return s.Seen > 0 })
	l.cleaner.Changed(snapshot(l.nodePort, l.web("a")))
	l.await(func(s Stats) bool { return s.Passes > 0 })
	stop()
	if got := l.cleaner.Stats(); got.RemovedUDP != 0 {
		t.Errorf("got %+v, want nothing removed", got)
	}
	wantAnswer(t, conn, "a")
}

// TestFailedPassIsMadeUpFor: what a pass could not do, a later one does.
func TestFailedPassIsMadeUpFor(t *testing.T) {
	l := newLab(t)
	l.write(l.web("a"))
	conn := l.dial(l.pods["pod"], "udp", netip.AddrPortFrom(vips["ClusterIP"][ipfamily.IPv4], port))
	wantAnswer(t, conn, "a")
	l.write(l.web("b"))
	// In the namespace of the node, and for a while without the right to see its flows.
	must(t, l.node.Do(func() error {
		restore, err := withoutNetAdmin()
		if err != nil {
			return err
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		l.cleaner.takeIn()
		if err := l.cleaner.pass(ctx); !errors.Is(err, unix.EPERM) {
			t.Errorf("got %v without CAP_NET_ADMIN, want EPERM", err)
		}
		if err := restore(); err != nil {
			return err
		}
		return l.cleaner.pass(ctx)
	}))
	wantAnswer(t, conn, "b")
}

// withoutNetAdmin takes the right from the calling thread.
func withoutNetAdmin() (restore func() error, err error) {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var now [2]unix.CapUserData
	if err := unix.Capget(&head, &now[0]); err != nil {
		return nil, err
	}
	less := now
	less[0].Effective &^= 1 << unix.CAP_NET_ADMIN
	return func() error { return unix.Capset(&head, &now[0]) }, unix.Capset(&head, &less[0])
}

// TestLargeTable: among 20,000 flows of others, those that are stale are found without
// holding the table in memory, and nothing else is touched.
func TestLargeTable(t *testing.T) {
	for name, tc := range map[string]struct {
		port             uint16
		lean, unfiltered bool
	}{
		"the kernel leaves out other ports": {port: 53, lean: true},
		"on our port":                       {port: port},
		"a kernel without filters":          {port: port, unfiltered: true},
	} {
		t.Run(name, func(t *testing.T) {
			const others = 20_000
			l := newLab(t)
			l.cleaner.table.unfiltered = tc.unfiltered
			web := l.web
			if tc.lean {
				web = l.internal
			}
			l.write(web("a"))
			l.sweep()
			l.addFlows(others, tc.port)
			conn := l.dial(l.pods["pod"], "udp", netip.AddrPortFrom(vips["ClusterIP"][ipfamily.IPv4], port))
			wantAnswer(t, conn, "a")
			l.write(web("b"))
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			l.sweep()
			runtime.ReadMemStats(&after)
			wantAnswer(t, conn, "b")
			if got := after.TotalAlloc - before.TotalAlloc; got > 1<<20 {
				t.Errorf("a pass over %d flows allocated %d bytes in total", others, got)
			}
			seen := l.cleaner.Stats().Seen
			if tc.port != port && seen > 100 {
				t.Errorf("looked at %d flows", seen)
			}
			if tc.port == port && seen < others {
				t.Errorf("looked at %d flows only", seen)
			}
			if got := len(l.flows(query{family: ipfamily.IPv4, protocol: service.UDP, addr: netip.MustParseAddr("192.0.2.53")})); got != others {
				t.Errorf("%d flows of others are left, want %d", got, others)
			}
			if got := l.cleaner.Stats().RemovedUDP; got != 1 {
				t.Errorf("removed %d flows, want 1", got)
			}
		})
	}
}

// BenchmarkPass is one pass over 100,000 flows of UDP for a Service of one kind of address,
// which the kernel filters, and of all kinds, on whose port they all are.
func BenchmarkPass(b *testing.B) {
	l := newLab(b)
	l.write(l.web("a"))
	l.sweep()
	benchmarkPass(b, "empty", l, (*lab).internal)
	l.addFlows(100_000, port)
	benchmarkPass(b, "filtered", l, (*lab).internal)
	benchmarkPass(b, "all", l, (*lab).web)
}

func benchmarkPass(b *testing.B, name string, l *lab, web func(*lab, ...string) *service.Service) {
	b.Run(name, func(b *testing.B) {
		l.cleaner.Changed(snapshot(l.nodePort, web(l, "a")))
		l.sweep()
		b.ReportAllocs()
		seen := l.cleaner.Stats().Seen
		must(b, l.node.Do(func() error {
			for i := 0; b.Loop(); i++ {
				l.cleaner.Changed(snapshot(l.nodePort, web(l, []string{"b", "a"}[i%2])))
				l.cleaner.takeIn()
				if err := l.cleaner.pass(b.Context()); err != nil {
					return err
				}
			}
			return nil
		}))
		b.ReportMetric(float64(l.cleaner.Stats().Seen-seen)/float64(b.N), "flows/op")
	})
}
