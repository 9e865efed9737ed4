package dataplane_test

import (
	"context"
	"net/netip"
	"strings"
	"testing"

	"fairlead.dev/fairlead/internal/dataplane"
	"fairlead.dev/fairlead/internal/ipfamily"
)

// TestCounters: connections and packets are counted by what the client addressed, on
// this node and from elsewhere, and nft can list them.
func TestCounters(t *testing.T) {
	counting := byCIDRs
	counting.Counters = true
	s := newScene(t, 1, counting)
	services := []svc{numbered(1, s.world.pod(t, 0, "web")), numbered(2)}
	s.apply(services...)
	n, sink := s.nodes[0], s.sinks[0]
	if wrote := sink.check(); wrote != (dataplane.Written{}) {
		t.Errorf("a check wrote %+v", wrote)
	}
	const rounds = 3
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	for _, f := range ipfamily.All {
		for range rounds {
			for _, vip := range []netip.AddrPort{s.vip(f, s.pod, clusterIP, 1), s.vip(f, s.pod, nodePort, 1)} {
				for _, who := range []string{"pod", "node", "outside"} {
					_, _, err := s.clients()[who].HTTP(ctx, vip)
					must(t, err)
				}
			}
		}
		_, _, _ = s.pod.HTTP(ctx, s.vip(f, s.pod, clusterIP, 2)) // refused
	}
	var got map[dataplane.Frontend]dataplane.Count
	must(t, n.Do(func() (err error) {
		got, err = dataplane.ReadCounters()
		return err
	}))
	for _, f := range ipfamily.All {
		for _, kind := range []string{clusterIP, nodePort} {
			vip := s.vip(f, s.pod, kind, 1)
			c := got[dataplane.FrontendOf(vip, 6)]
			// A request is at least SYN, ACK, the request and FIN.
			if c.Connections != 3*rounds || c.Packets < 3*rounds*4 || c.Bytes < c.Packets*40 {
				t.Errorf("%s %s: %+v, want %d connections and their packets", kind, vip, c, 3*rounds)
			}
		}
		vip := s.vip(f, s.pod, clusterIP, 2)
		if c := got[dataplane.FrontendOf(vip, 6)]; c.Connections != 1 || c.Packets != 1 {
			t.Errorf("%s: %+v, want the one that was refused", vip, c)
		}
	}
	if out := sink.nft("list", "ruleset"); !strings.Contains(out, "count_prerouting") {
		t.Errorf("nft does not list the counting rules:\n%s", out)
	}
	// Rules that do not count have no counters.
	s.on(t, 0).apply(s.around[0].of(services...))
	must(t, n.Do(func() (err error) {
		got, err = dataplane.ReadCounters()
		return err
	}))
	if len(got) > 0 {
		t.Errorf("counters without counting: %v", got)
	}
}
