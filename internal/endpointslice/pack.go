package endpointslice

import (
	"slices"

	discoveryv1 "k8s.io/api/discovery/v1"
)

// group is what belongs into slices of the same family and ports.
type group struct {
	ports []discoveryv1.EndpointPort
	want  []discoveryv1.Endpoint       // by pod name, each pod once
	have  []*discoveryv1.EndpointSlice // by name
}

// draft is a slice in the making.
type draft struct {
	old       *discoveryv1.EndpointSlice // nil for a new one
	ports     []discoveryv1.EndpointPort
	endpoints []discoveryv1.Endpoint
	changed   bool // differs from old, or has none
}

// pack spreads the endpoints of g over slices of at most limit each and returns the
// slices that are not empty, new ones last, and those of g.have that became empty.
// It touches few: an endpoint stays where it is; what is left over fills the slices
// that change anyway, the fullest first; then one untouched slice if there is one that
// it fits, the one that it fills best; then new slices. mislabelled says which slices
// have to be written whatever is in them.
func pack(g *group, limit int, mislabelled func(*discoveryv1.EndpointSlice) bool) (drafts []*draft, empty []*discoveryv1.EndpointSlice) {
	left := newLeftover(g.want)
	for _, old := range g.have {
		d := left.keep(old, limit)
		if len(d.endpoints) == 0 {
			empty = append(empty, old)
			continue
		}
		d.changed = d.changed || mislabelled(old)
		drafts = append(drafts, d)
	}
	rest := left.rest()
	for _, d := range fullestFirst(drafts) {
		rest = d.take(rest, limit)
	}
	for len(rest) > 0 {
		d := bestFit(drafts, len(rest), limit)
		if d == nil {
			d = &draft{ports: g.ports}
			drafts = append(drafts, d)
		}
		rest = d.take(rest, limit)
	}
	return drafts, empty
}

// take moves as many endpoints into d as there is room for and returns the others.
func (d *draft) take(endpoints []discoveryv1.Endpoint, limit int) []discoveryv1.Endpoint {
	n := min(len(endpoints), limit-len(d.endpoints))
	d.endpoints = append(d.endpoints, endpoints[:n]...)
	d.changed = d.changed || n > 0
	return endpoints[n:]
}

// fullestFirst returns the drafts that change anyway.
func fullestFirst(drafts []*draft) []*draft {
	var changed []*draft
	for _, d := range drafts {
		if d.changed {
			changed = append(changed, d)
		}
	}
	slices.SortStableFunc(changed, func(a, b *draft) int { return len(b.endpoints) - len(a.endpoints) })
	return changed
}

// bestFit returns the untouched draft with the least room that n endpoints fit in.
func bestFit(drafts []*draft, n, limit int) *draft {
	var best *draft
	for _, d := range drafts {
		fits := !d.changed && len(d.endpoints)+n <= limit
		if fits && (best == nil || len(d.endpoints) > len(best.endpoints)) {
			best = d
		}
	}
	return best
}

// leftover is the endpoints of a group that have no slice yet.
type leftover struct {
	want   []discoveryv1.Endpoint
	index  map[podKey]int
	placed []bool
}

func newLeftover(want []discoveryv1.Endpoint) *leftover {
	l := &leftover{want: want, index: make(map[podKey]int, len(want)), placed: make([]bool, len(want))}
	for i := range want {
		l.index[keyOf(&want[i])] = i
	}
	return l
}

// keep drafts old anew with those of its endpoints that are still wanted, as they are
// wanted now. An endpoint that an earlier slice has, or an earlier place in this one,
// or that is beyond limit, is not kept.
func (l *leftover) keep(old *discoveryv1.EndpointSlice, limit int) *draft {
	d := &draft{old: old, ports: old.Ports}
	for i := range old.Endpoints {
		at, ok := l.index[keyOf(&old.Endpoints[i])]
		if !ok || l.placed[at] || len(d.endpoints) == limit {
			d.changed = true
			continue
		}
		l.placed[at] = true
		d.endpoints = append(d.endpoints, l.want[at])
		d.changed = d.changed || !equalEndpoints(&old.Endpoints[i], &l.want[at])
	}
	return d
}

func (l *leftover) rest() []discoveryv1.Endpoint {
	var rest []discoveryv1.Endpoint
	for i, placed := range l.placed {
		if !placed {
			rest = append(rest, l.want[i])
		}
	}
	return rest
}
