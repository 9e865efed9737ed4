package dataplane_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestGuard: whoever deletes everything leaves what keeps connections tracked and
// translated; a listing with it can be loaded elsewhere.
func TestGuard(t *testing.T) {
	w := newWorld(t, 2)
	sink := w.on(t, 0)
	sink.apply(snapshot(nil, big(3)...))
	listing := sink.nft("list table ip fairlead-guard") + sink.nft("list table ip6 fairlead-guard")

	sink.nft("flush ruleset")
	out := sink.nft("list", "ruleset")
	for _, table := range []string{"table ip fairlead-guard {", "table ip6 fairlead-guard {"} {
		if !strings.Contains(out, table) {
			t.Errorf("no %q in:\n%s", table, out)
		}
	}
	if strings.Contains(out, "fairlead {") {
		t.Errorf("our tables are there still:\n%s", out)
	}
	if out, err := w.nodes[0].Output(t.Context(), "nft", "delete table ip fairlead-guard"); err == nil {
		t.Errorf("others can delete it: %s", out)
	}
	if wrote := sink.check(); !wrote.Installed {
		t.Errorf("check wrote %+v", wrote)
	}

	file := filepath.Join(t.TempDir(), "ruleset.nft")
	must(t, os.WriteFile(file, []byte(listing), 0o600))
	w.on(t, 1).nft("-f", file)
}
