package dataplane_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"fairlead.dev/fairlead/internal/dataplane"
)

// TestRemove shows that our tables go, whether both are there or not, and that nobody
// else's do.
func TestRemove(t *testing.T) {
	w := newWorld(t, 1)
	sink := w.on(t, 0)
	sink.nft("add table ip other; add table inet fairlead")
	for _, tc := range []struct {
		name, before string
		want         []string
	}{
		{name: "both tables", want: []string{"ip fairlead", "ip6 fairlead"}},
		{name: "one of them", before: "delete table ip fairlead", want: []string{"ip6 fairlead"}},
		{name: "none", before: "delete table ip fairlead; delete table ip6 fairlead"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w.on(t, 0).apply(snapshot(nil, big(3)...))
			if tc.before != "" {
				sink.nft(tc.before)
			}
			var removed []string
			if err := w.nodes[0].Do(func() (err error) { removed, err = dataplane.Remove(); return err }); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, removed); diff != "" {
				t.Errorf("removed (-want +got):\n%s", diff)
			}
			out := strings.Join(strings.Fields(sink.nft("list", "tables")), " ")
			// The guard stays with its sink.
			if out = strings.ReplaceAll(out, " table ip fairlead-guard table ip6 fairlead-guard", ""); out != "table ip other table inet fairlead" {
				t.Errorf("left are: %s", out)
			}
		})
	}
}
