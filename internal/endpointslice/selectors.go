package endpointslice

import (
	"cmp"
	"slices"
	"strings"
	"sync"

	"k8s.io/apimachinery/pkg/types"
)

// matches says whether all pairs of selector are among labels. An empty selector
// matches nothing: that is how a Service says that others fill it.
func matches(selector, labels map[string]string) bool {
	for key, value := range selector {
		if have, ok := labels[key]; !ok || have != value {
			return false
		}
	}
	return len(selector) > 0
}

// Selectors finds the Services that select a pod without asking each of them. The cost
// is that of the pod's labels plus that of the Services that have one of them as
// their rarest pair, which is little more than the Services that match. It is safe for
// concurrent use; the zero value is empty and ready.
type Selectors struct {
	mu sync.RWMutex
	// services are the Services by namespace and name.
	services map[types.NamespacedName]entry
	// anchored are the same Services by one pair of their selector.
	anchored map[anchor]map[types.NamespacedName]struct{}
}

type entry struct {
	selector map[string]string
	anchor   anchor
}

// anchor is one pair of a selector, in a namespace.
type anchor struct{ namespace, key, value string }

// Set makes selector the one of the Service, which must not be changed afterwards. An
// empty one removes the Service.
func (s *Selectors) Set(service types.NamespacedName, selector map[string]string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if old, ok := s.services[service]; ok {
		delete(s.services, service)
		delete(s.anchored[old.anchor], service)
		if len(s.anchored[old.anchor]) == 0 {
			delete(s.anchored, old.anchor)
		}
	}
	if len(selector) == 0 {
		return
	}
	if s.services == nil {
		s.services = map[types.NamespacedName]entry{}
		s.anchored = map[anchor]map[types.NamespacedName]struct{}{}
	}
	at := s.rarest(service.Namespace, selector)
	s.services[service] = entry{selector, at}
	if s.anchored[at] == nil {
		s.anchored[at] = map[types.NamespacedName]struct{}{}
	}
	s.anchored[at][service] = struct{}{}
}

// rarest returns the pair that the fewest Services are anchored at, so that one which
// half the namespace has in its selectors ("tier: backend") makes no long list.
func (s *Selectors) rarest(namespace string, selector map[string]string) anchor {
	var best anchor
	found := false
	for key, value := range selector {
		at := anchor{namespace, key, value}
		// Ties go by key, so that the outcome does not hang on the order of a map.
		order := cmp.Or(cmp.Compare(len(s.anchored[at]), len(s.anchored[best])), strings.Compare(key, best.key))
		if !found || order < 0 {
			best, found = at, true
		}
	}
	return best
}

// Match returns the Services of namespace whose selectors match labels, by name.
func (s *Selectors) Match(namespace string, labels map[string]string) []types.NamespacedName {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var found []types.NamespacedName
	for key, value := range labels {
		for service := range s.anchored[anchor{namespace, key, value}] {
			if matches(s.services[service].selector, labels) {
				found = append(found, service)
			}
		}
	}
	slices.SortFunc(found, func(a, b types.NamespacedName) int { return strings.Compare(a.Name, b.Name) })
	return found
}
