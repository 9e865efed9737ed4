package dataplane_test

import (
	"strings"
	"testing"

	"fairlead.dev/fairlead/internal/dataplane"
	"fairlead.dev/fairlead/internal/ipfamily"
	"fairlead.dev/fairlead/internal/service"
	"fairlead.dev/fairlead/test/netlab"
)

// TestCounters: connections and packets are counted by what the client addressed, on
// this node and from elsewhere, and nft can list them.
func TestCounters(t *testing.T) {
	s := newScene(t, 1, dataplane.Config{Local: dataplane.LocalTraffic{CIDRs: true}, Counters: true})
	services := []svc{numbered(1, s.world.pod(t, 0, "web")), numbered(2)}
	s.apply(services...)
	if wrote := s.sinks[0].check(); wrote != (dataplane.Written{}) {
		t.Errorf("a check wrote %+v", wrote)
	}
	const rounds = 3
	who := []*netlab.Host{s.pod, &s.nodes[0].Host, s.client}
	for _, f := range ipfamily.All {
		for range rounds {
			for _, client := range who {
				for _, kind := range vipKinds {
					if got := s.outcome((*netlab.Host).HTTP, client, s.vip(f, client, kind, 1), testTimeout); !strings.HasPrefix(got, "web ") {
						t.Fatalf("%s to %s: %s", client.Name, kind, got)
					}
				}
			}
		}
		s.outcome((*netlab.Host).HTTP, s.pod, s.vip(f, s.pod, clusterIP, 2), testTimeout)
	}
	counters := func() (got map[dataplane.Frontend]dataplane.Count) {
		must(t, s.nodes[0].Do(func() (err error) {
			got, err = dataplane.ReadCounters()
			return err
		}))
		return got
	}
	got := counters()
	for _, f := range ipfamily.All {
		for _, kind := range vipKinds {
			vip := s.vip(f, s.pod, kind, 1)
			c := got[dataplane.FrontendOf(vip, service.TCP)]
			// A request is at least SYN, ACK, the request and FIN.
			if want := uint64(rounds * len(who)); c.Connections != want || c.Packets < want*4 || c.Bytes < c.Packets*40 {
				t.Errorf("%s %s: %+v, want %d connections and their packets", kind, vip, c, want)
			}
		}
		if c := got[dataplane.FrontendOf(s.vip(f, s.pod, clusterIP, 2), service.TCP)]; c.Connections != 1 || c.Packets != 1 {
			t.Errorf("%s: %+v, want the one that was refused", f, c)
		}
	}
	if out := s.sinks[0].nft("list", "ruleset"); !strings.Contains(out, "count_prerouting") {
		t.Errorf("nft does not list the counting rules:\n%s", out)
	}
	// Rules that do not count have no counters.
	s.on(t, 0).apply(s.around[0].of(services...))
	if got := counters(); len(got) > 0 {
		t.Errorf("counters without counting: %v", got)
	}
}
