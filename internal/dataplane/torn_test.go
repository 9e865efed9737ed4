package dataplane_test

import (
	"context"
	"strings"
	"sync"
	"testing"

	"github.com/google/nftables"

	"fairlead.dev/fairlead/internal/dataplane"
)

// TestOthersWriteWithoutPause: where no listing can be read, because others always write
// meanwhile, rules are put right all the same.
func TestOthersWriteWithoutPause(t *testing.T) {
	w := newWorld(t, 1)
	snap := snapshot(nil, big(1000)...)
	w.on(t, 0).apply(snap)

	var conn *nftables.Conn
	must(t, w.nodes[0].Do(func() (err error) { conn, err = nftables.New(nftables.AsLasting()); return err }))
	t.Cleanup(func() { must(t, conn.CloseLasting()) })
	ctx, cancel := context.WithCancel(t.Context())
	var others sync.WaitGroup
	others.Go(func() {
		table := conn.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "other"})
		for ctx.Err() == nil {
			conn.AddChain(&nftables.Chain{Table: table, Name: "other"})
			if err := conn.Flush(); err != nil {
				t.Error(err)
				return
			}
		}
	})
	t.Cleanup(func() { cancel(); others.Wait() })

	sink := w.on(t, 0) // one that starts
	sink.nft("delete element ip fairlead cluster_ips { 10.96.0.1 }")
	if wrote := sink.apply(snap); wrote == (dataplane.Written{}) {
		t.Error("nothing was written at the start")
	}
	sink.nft("delete element ip fairlead cluster_ips { 10.96.0.1 }")
	if wrote := sink.check(); wrote == (dataplane.Written{}) {
		t.Error("a check wrote nothing")
	}
	cancel()
	others.Wait()
	if out := sink.nft("list", "set", "ip", "fairlead", "cluster_ips"); !strings.Contains(out, "10.96.0.1,") {
		t.Errorf("still damaged:\n%.500s", out)
	}
}
