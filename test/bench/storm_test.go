package bench_test

import (
	"context"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"fairlead.dev/fairlead/test/cluster"
)

const (
	// churnRate is how many changes a second are asked for, for churnTime.
	churnRate = 1000
	churnTime = 5 * time.Second
	// Every moveEvery-th of them moves the Service that is being connected to.
	moveEvery = 50
)

// burst changes many Services while the process is stopped, so that they come at once.
func (f *field) burst(b testing.TB, process *cluster.Process, commits *commits, r *result) {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), bound)
	defer cancel()
	settle(b, process)
	must(b, syscall.Kill(process.PID(), syscall.SIGSTOP))
	group, writing := errgroup.WithContext(ctx)
	group.SetLimit(writers)
	addrs := make([]netip.Addr, burst)
	for i := range burst {
		f.change++
		change := f.change
		group.Go(func() (err error) {
			addrs[i], err = f.write(writing, change)
			return err
		})
	}
	must(b, group.Wait())
	commits.drain()
	start := time.Now()
	must(b, syscall.Kill(process.PID(), syscall.SIGCONT))
	at, count, err := commits.await(ctx, addrs...)
	if err != nil {
		b.Logf("%s: %v", r.name, err)
		return
	}
	r.burst = append(r.burst, at.Sub(start))
	r.burstCommits = append(r.burstCommits, count)
}

// churn changes Services at a high rate, the one that is connected to among them.
func (f *field) churn(b testing.TB, site *site, r *result) {
	b.Helper()
	wait := startLoad(b, site.client, "trickle", site.last, churnTime)
	ctx, cancel := context.WithTimeout(b.Context(), churnTime)
	defer cancel()
	slices := f.client.DiscoveryV1().EndpointSlices("default")
	group := &errgroup.Group{}
	group.SetLimit(writers)
	tick := time.NewTicker(time.Second / churnRate)
	defer tick.Stop()
	began, count := time.Now(), 0
	for ; ctx.Err() == nil; count++ {
		select {
		case <-tick.C:
		case <-ctx.Done():
			continue
		}
		f.change++
		change := f.change
		group.Go(func() error {
			if change%moveEvery == 0 {
				_, err := slices.Update(b.Context(), site.slice("last-", change/moveEvery%2), metav1.UpdateOptions{})
				return err
			}
			_, err := f.write(b.Context(), change)
			return err
		})
	}
	must(b, group.Wait())
	r.churnRate = append(r.churnRate, float64(count)/time.Since(began).Seconds())
	worked, failed := wait()
	r.churnConnections += worked + failed
	r.churnFailed += failed
}

const (
	// Traffic is measured in short slices, repeated in turn, so that both meet the same noise.
	trafficTime   = 500 * time.Millisecond
	trafficRounds = 4
)

// traffic measures with the rules of both in place and neither of them running.
func (f *field) traffic(b testing.TB, taking []peer, results []*result) {
	b.Helper()
	rules := map[int]int{} // node -> the result of the peer whose rules are there
	for i, p := range taking {
		if _, taken := rules[p.node]; !taken && len(results[i].start) > 0 {
			rules[p.node] = i
		}
	}
	for round := range 2 * trafficRounds {
		for turn := range f.sites {
			node := (turn + round) % len(f.sites)
			i, ok := rules[node]
			if !ok {
				continue
			}
			site, r := f.sites[node], results[i]
			worked, failed := startLoad(b, site.client, "connect", site.last, trafficTime)()
			r.connections = append(r.connections, float64(worked)/trafficTime.Seconds())
			r.failed += failed
			worked, failed = startLoad(b, site.client, "pingpong", site.last, trafficTime)()
			r.roundTrips = append(r.roundTrips, float64(worked)/trafficTime.Seconds())
			r.failed += failed
			// What the same costs without any translation.
			direct := netip.AddrPortFrom(site.servers[0].IPv4, 8080)
			worked, _ = startLoad(b, site.client, "pingpong", direct, trafficTime)()
			r.direct = append(r.direct, float64(worked)/trafficTime.Seconds())
		}
	}
}
