package dataplane_test

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"fairlead.dev/fairlead/internal/dataplane"
)

// inspect reads what is installed on node1.
func (w *world) inspect(t testing.TB) dataplane.Installed {
	t.Helper()
	var out dataplane.Installed
	must(t, w.nodes[0].Do(func() (err error) {
		out, err = dataplane.Inspect()
		return err
	}))
	return out
}

// TestInspectConfig: what the rules were made of is read back out of them.
func TestInspectConfig(t *testing.T) {
	w := newWorld(t, 1)
	for name, local := range map[string]dataplane.LocalTraffic{
		"nothing tells pods": {},
		"by range":           {CIDRs: true},
		"by bridge":          {Bridge: "cni0"},
		"by longest bridge":  {Bridge: "fifteen-letters"},
		"by prefix":          {InterfacePrefix: "veth"},
		"by longest prefix":  {InterfacePrefix: "fifteen-letters"},
	} {
		for _, all := range []bool{false, true} {
			want := dataplane.Config{Local: local, MasqueradeAll: all, Counters: all}
			s := &nodeSink{t: t, node: w.nodes[0], Sink: dataplane.NewSink(want)}
			s.apply(snapshot(addrs("172.18.0.11"), svc{name: "a", clusterIPs: []string{"10.96.0.1"}, port: 80, target: 80, endpoints: []string{"10.1.0.1"}}))
			got := w.inspect(t)
			if got.Config != want || !got.Ours || got.Moving {
				t.Errorf("%s: %+v, ours %t, moving %t, want %+v", name, got.Config, got.Ours, got.Moving, want)
			}
			if diff := cmp.Diff(frontends(s.Program().Ruleset), frontends(got.Ruleset)); diff != "" {
				t.Errorf("%s: frontends (-written +read):\n%s", name, diff)
			}
		}
	}
}

// TestInspectFaults: what is missing or was edited is told.
func TestInspectFaults(t *testing.T) {
	w := newWorld(t, 1)
	must(t, w.nodes[0].Do(func() error {
		if _, err := dataplane.Inspect(); !errors.Is(err, dataplane.ErrNotInstalled) {
			t.Errorf("no table: %v, want ErrNotInstalled", err)
		}
		return nil
	}))
	s := w.on(t, 0)
	s.apply(snapshot(nil))
	s.nft("add rule ip fairlead cluster accept")
	if got := w.inspect(t); got.Ours {
		t.Error("a rule that somebody added is taken for ours")
	}
	s.nft("delete table ip6 fairlead")
	must(t, w.nodes[0].Do(func() error {
		if _, err := dataplane.Inspect(); !errors.Is(err, dataplane.ErrNotInstalled) {
			t.Errorf("one table gone: %v, want ErrNotInstalled", err)
		}
		return nil
	}))
}
