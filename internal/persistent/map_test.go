package persistent_test

import (
	"maps"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"fairlead.dev/fairlead/internal/persistent"
)

func equal(a, b int) bool { return a == b }

// TestMapBehavesLikeAMap drives edits against a plain map, and checks that old versions
// stay as they were and that Diff says exactly what turns one version into another.
func TestMapBehavesLikeAMap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		type version struct {
			got  persistent.Map[int, int]
			want map[int]int
		}
		versions := []version{{want: map[int]int{}}}
		key := rapid.IntRange(0, rapid.SampledFrom([]int{5, 50, 5_000}).Draw(t, "keys"))
		for range rapid.IntRange(1, 6).Draw(t, "edits") {
			from := versions[len(versions)-1]
			want, edit := maps.Clone(from.want), from.got.Edit()
			for range rapid.SampledFrom([]int{0, 3, 20, 200}).Draw(t, "changes") {
				k := key.Draw(t, "key")
				if rapid.Bool().Draw(t, "delete") {
					delete(want, k)
					edit.Delete(k)
				} else {
					want[k] = rapid.IntRange(0, 3).Draw(t, "value")
					edit.Set(k, want[k])
				}
				if v, ok := edit.Get(k); v != want[k] || ok != (maps.Clone(want)[k] == v && contains(want, k)) {
					t.Fatalf("Edit.Get(%d) = %d, %t; want %d", k, v, ok, want[k])
				}
			}
			versions = append(versions, version{edit.Map(), want})
		}
		for _, v := range versions {
			if diff := cmp.Diff(v.want, maps.Collect(v.got.All())); diff != "" || v.got.Len() != len(v.want) {
				t.Fatalf("version changed, or has length %d (-want +got):\n%s", v.got.Len(), diff)
			}
		}
		i := rapid.IntRange(0, len(versions)-1).Draw(t, "from")
		j := rapid.IntRange(0, len(versions)-1).Draw(t, "to")
		applied := maps.Clone(versions[i].want)
		for c := range persistent.Diff(versions[i].got, versions[j].got, equal) {
			if c.HadOld != contains(applied, c.Key) || c.HadOld && c.Old != applied[c.Key] || c.HadOld && c.HasNew && c.Old == c.New {
				t.Fatalf("Diff says %+v of %v", c, versions[i].want)
			}
			if delete(applied, c.Key); c.HasNew {
				applied[c.Key] = c.New
			}
		}
		if diff := cmp.Diff(versions[j].want, applied); diff != "" {
			t.Fatalf("Diff does not lead from %d to %d (-want +got):\n%s", i, j, diff)
		}
	})
}

func contains(m map[int]int, k int) bool { _, ok := m[k]; return ok }

func BenchmarkOneChange(b *testing.B) {
	edit := persistent.Map[int, int]{}.Edit()
	for i := range 100_000 {
		edit.Set(i, i)
	}
	m := edit.Map()
	for i := 0; b.Loop(); i++ {
		edit := m.Edit()
		edit.Set(i%100_000, -i)
		next := edit.Map()
		for range persistent.Diff(m, next, equal) {
		}
		m = next
	}
}
