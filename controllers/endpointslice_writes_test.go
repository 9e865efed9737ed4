package controllers

import (
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

func slice(name, uid, version string) *discoveryv1.EndpointSlice {
	return &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{
		Namespace: "shop", Name: name, UID: types.UID(uid), ResourceVersion: version,
	}}
}

func TestSliceWritesOverlay(t *testing.T) {
	web := types.NamespacedName{Namespace: "shop", Name: "web"}
	now := time.Unix(1000, 0)
	for name, tc := range map[string]struct {
		history func(*sliceWrites)
		cached  []*discoveryv1.EndpointSlice
		want    []string // name/uid/version
	}{
		"nothing written": {
			func(*sliceWrites) {}, []*discoveryv1.EndpointSlice{slice("a", "1", "5")}, []string{"a/1/5"},
		},
		"created, not in the cache yet": {
			func(w *sliceWrites) { w.wrote(web, slice("a", "1", "5"), now) }, nil, []string{"a/1/5"},
		},
		"updated, older in the cache": {
			func(w *sliceWrites) { w.wrote(web, slice("a", "1", "10"), now) },
			[]*discoveryv1.EndpointSlice{slice("a", "1", "9")}, []string{"a/1/10"},
		},
		"updated, then by somebody else": {
			func(w *sliceWrites) { w.wrote(web, slice("a", "1", "9"), now) },
			[]*discoveryv1.EndpointSlice{slice("a", "1", "10")}, []string{"a/1/10"},
		},
		"deleted, still in the cache": {
			func(w *sliceWrites) { w.gone(web, slice("a", "1", "5"), now) },
			[]*discoveryv1.EndpointSlice{slice("a", "1", "5"), slice("b", "2", "6")}, []string{"b/2/6"},
		},
		"deleted, still in the cache in a newer version": {
			func(w *sliceWrites) { w.gone(web, slice("a", "1", "5"), now) },
			[]*discoveryv1.EndpointSlice{slice("a", "1", "7")}, nil,
		},
		"deleted, and made anew by somebody else": {
			func(w *sliceWrites) { w.gone(web, slice("a", "1", "5"), now) },
			[]*discoveryv1.EndpointSlice{slice("a", "2", "7")}, []string{"a/2/7"},
		},
		"deleted and made anew by us, the old one in the cache": {
			func(w *sliceWrites) {
				w.gone(web, slice("a", "1", "5"), now)
				w.wrote(web, slice("a", "2", "8"), now)
			},
			[]*discoveryv1.EndpointSlice{slice("a", "1", "5")}, []string{"a/2/8"},
		},
		"created, seen, and deleted by somebody else": {
			func(w *sliceWrites) {
				w.wrote(web, slice("a", "1", "5"), now)
				w.observe(slice("a", "1", "5"), false)
				w.observe(slice("a", "1", "7"), true)
			}, nil, nil,
		},
		"created, and deleted by somebody else before that was remembered": {
			func(w *sliceWrites) {
				w.observe(slice("a", "1", "5"), false)
				w.observe(slice("a", "1", "7"), true)
				w.wrote(web, slice("a", "1", "5"), now)
			}, nil, nil,
		},
		"created, and the watch is past it": {
			func(w *sliceWrites) {
				w.wrote(web, slice("a", "1", "5"), now)
				w.observe(slice("b", "2", "6"), false)
			}, nil, nil,
		},
		"created, and the watch of another namespace is past it": {
			func(w *sliceWrites) {
				w.wrote(web, slice("a", "1", "5"), now)
				other := slice("b", "2", "6")
				other.Namespace = "other"
				w.observe(other, false)
			}, nil, []string{"a/1/5"},
		},
		"created so long ago that the event must be lost": {
			func(w *sliceWrites) { w.wrote(web, slice("a", "1", "5"), now.Add(-sliceMemory-1)) }, nil, nil,
		},
		"another's, that the cache does not find by its Service": {
			func(w *sliceWrites) {
				w.observe(slice("b", "2", "6"), false)
				w.found(web, slice("a", "1", "5"), now)
			}, nil, []string{"a/1/5"},
		},
		"of another Service": {
			func(w *sliceWrites) {
				w.wrote(types.NamespacedName{Namespace: "shop", Name: "db"}, slice("a", "1", "5"), now)
			}, nil, nil,
		},
		"of a Service that is gone": {
			func(w *sliceWrites) {
				w.wrote(web, slice("a", "1", "5"), now)
				w.forget(web)
			}, nil, nil,
		},
	} {
		t.Run(name, func(t *testing.T) {
			var w sliceWrites
			tc.history(&w)
			var got []string
			for _, s := range w.overlay(web, tc.cached, now) {
				got = append(got, s.Name+"/"+string(s.UID)+"/"+s.ResourceVersion)
			}
			slices.Sort(got)
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("overlay() mismatch (-want +got):\n%s", diff)
			}
		})
	}
}

func TestSliceWritesObserve(t *testing.T) {
	web := types.NamespacedName{Namespace: "shop", Name: "web"}
	now := time.Unix(1000, 0)
	for name, tc := range map[string]struct {
		history func(*sliceWrites)
		event   *discoveryv1.EndpointSlice
		deleted bool
		echo    bool
	}{
		"a slice never written": {func(*sliceWrites) {}, slice("a", "1", "5"), false, false},
		"what was written":      {func(w *sliceWrites) { w.wrote(web, slice("a", "1", "5"), now) }, slice("a", "1", "5"), false, true},
		"what came before":      {func(w *sliceWrites) { w.wrote(web, slice("a", "1", "5"), now) }, slice("a", "1", "4"), false, true},
		"what came after":       {func(w *sliceWrites) { w.wrote(web, slice("a", "1", "5"), now) }, slice("a", "1", "6"), false, false},
		"a deletion by others":  {func(w *sliceWrites) { w.wrote(web, slice("a", "1", "5"), now) }, slice("a", "1", "6"), true, false},
		"our deletion":          {func(w *sliceWrites) { w.gone(web, slice("a", "1", "5"), now) }, slice("a", "1", "6"), true, true},
		"before our deletion":   {func(w *sliceWrites) { w.gone(web, slice("a", "1", "5"), now) }, slice("a", "1", "5"), false, true},
		"what was read anew":    {func(w *sliceWrites) { w.found(web, slice("a", "1", "5"), now) }, slice("a", "1", "5"), false, false},
		"another of the name":   {func(w *sliceWrites) { w.gone(web, slice("a", "1", "5"), now) }, slice("a", "2", "7"), false, false},
	} {
		t.Run(name, func(t *testing.T) {
			var w sliceWrites
			tc.history(&w)
			if got := w.observe(tc.event, tc.deleted); got != tc.echo {
				t.Errorf("observe() = %t, want %t", got, tc.echo)
			}
		})
	}
}
