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
	m := newMatrixWorld(t)
	sink := &nodeSink{t: t, node: m.nodes[0], Sink: dataplane.NewSink(dataplane.Config{Local: dataplane.LocalTraffic{CIDRs: true}, Counters: true})}
	n := m.nodes[0]
	snap := snapshot([]netip.Addr{n.IPv4, n.IPv6}, service3("web", webIPs, 30080, hostAddrs(m.backends)), service3("empty", emptyIPs, 30081, nil))
	sink.apply(snap)
	if wrote := sink.check(); wrote != (dataplane.Written{}) {
		t.Errorf("a check wrote %+v", wrote)
	}
	const rounds = 3
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	for _, f := range ipfamily.All {
		for range rounds {
			for _, vip := range []netip.AddrPort{m.vip(f, "ClusterIP", webIPs, 0), m.vip(f, "NodePort", webIPs, 30080)} {
				for _, who := range []string{"pod", "node", "outside"} {
					_, _, err := m.clients[who].HTTP(ctx, vip)
					must(t, err)
				}
			}
		}
		_, _, _ = m.clients["pod"].HTTP(ctx, m.vip(f, "ClusterIP", emptyIPs, 0)) // refused
	}
	var got map[dataplane.Frontend]dataplane.Count
	must(t, n.Do(func() (err error) {
		got, err = dataplane.ReadCounters()
		return err
	}))
	for _, f := range ipfamily.All {
		for _, kind := range []string{"ClusterIP", "NodePort"} {
			vip := m.vip(f, kind, webIPs, 30080)
			c := got[dataplane.FrontendOf(vip, 6)]
			// A request is at least SYN, ACK, the request and FIN.
			if c.Connections != 3*rounds || c.Packets < 3*rounds*4 || c.Bytes < c.Packets*40 {
				t.Errorf("%s %s: %+v, want %d connections and their packets", kind, vip, c, 3*rounds)
			}
		}
		vip := m.vip(f, "ClusterIP", emptyIPs, 0)
		if c := got[dataplane.FrontendOf(vip, 6)]; c.Connections != 1 || c.Packets != 1 {
			t.Errorf("%s: %+v, want the one that was refused", vip, c)
		}
	}
	if out := sink.nft("list", "ruleset"); !strings.Contains(out, "count_prerouting") {
		t.Errorf("nft does not list the counting rules:\n%s", out)
	}
	// Rules that do not count have no counters.
	m.on(t, 0).apply(snap)
	must(t, n.Do(func() (err error) {
		got, err = dataplane.ReadCounters()
		return err
	}))
	if len(got) > 0 {
		t.Errorf("counters without counting: %v", got)
	}
}
