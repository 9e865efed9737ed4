package endpointslice_test

import (
	"fmt"
	"slices"
	"testing"

	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"pgregory.net/rapid"

	"fairlead.dev/fairlead/internal/endpointslice"
)

func service(name string) types.NamespacedName {
	return types.NamespacedName{Namespace: "shop", Name: name}
}

func TestSelectorsMatch(t *testing.T) {
	var s endpointslice.Selectors
	s.Set(service("web"), map[string]string{"app": "web"})
	s.Set(service("front"), map[string]string{"app": "web", "tier": "front"})
	s.Set(service("no-selector"), nil)
	s.Set(service("was"), map[string]string{"app": "web"})
	s.Set(service("was"), map[string]string{"app": "db"})
	s.Set(service("lost"), map[string]string{"app": "web"})
	s.Set(service("lost"), map[string]string{})
	s.Set(types.NamespacedName{Namespace: "other", Name: "web"}, map[string]string{"app": "web"})

	for name, tc := range map[string]struct {
		labels map[string]string
		want   []string
	}{
		"no labels":          {nil, nil},
		"one pair":           {map[string]string{"app": "web"}, []string{"web"}},
		"all pairs":          {map[string]string{"app": "web", "tier": "front", "x": "y"}, []string{"front", "web"}},
		"a selector changed": {map[string]string{"app": "db"}, []string{"was"}},
		"half a selector":    {map[string]string{"tier": "front"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			var names []string
			for _, service := range s.Match("shop", tc.labels) {
				names = append(names, service.Name)
			}
			diff(t, "Match()", tc.want, names)
		})
	}
}

// TestSelectorsAreAsGoodAsAsking compares with asking every Service, after any sequence
// of changes.
func TestSelectorsAreAsGoodAsAsking(t *testing.T) {
	pairs := rapid.MapOfN(rapid.SampledFrom([]string{"a", "b", "c"}), rapid.SampledFrom([]string{"", "1", "2"}), 0, 3)
	rapid.Check(t, func(t *rapid.T) {
		var s endpointslice.Selectors
		model := map[types.NamespacedName]map[string]string{}
		for range rapid.IntRange(0, 30).Draw(t, "changes") {
			name := service(rapid.SampledFrom([]string{"p", "q", "r", "s"}).Draw(t, "service"))
			model[name] = pairs.Draw(t, "selector")
			s.Set(name, model[name])
		}
		pod := pairs.Draw(t, "labels")
		var want []types.NamespacedName
		for name, selector := range model {
			if len(selector) > 0 && labels.SelectorFromSet(selector).Matches(labels.Set(pod)) {
				want = append(want, name)
			}
		}
		slices.SortFunc(want, func(a, b types.NamespacedName) int {
			return len(a.Name) - len(b.Name) + int(a.Name[0]) - int(b.Name[0])
		})
		if got := s.Match("shop", pod); !slices.Equal(got, want) {
			t.Fatalf("Match(%v) = %v, want %v", pod, got, want)
		}
	})
}

// BenchmarkSelectorsMatch has a namespace of many Services that share a pair: the cost
// of one pod must not grow with them.
func BenchmarkSelectorsMatch(b *testing.B) {
	for _, n := range []int{100, 10000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			var s endpointslice.Selectors
			for i := range n {
				s.Set(service(fmt.Sprint("s", i)), map[string]string{"app": fmt.Sprint(i), "part-of": "shop"})
			}
			pod := map[string]string{"app": "7", "part-of": "shop", "pod-template-hash": "abc"}
			for b.Loop() {
				if len(s.Match("shop", pod)) != 1 {
					b.Fatal("no match")
				}
			}
		})
	}
}
