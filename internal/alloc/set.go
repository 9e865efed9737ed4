package alloc

import (
	"net/netip"
	"slices"
	"sort"

	"fairlead.dev/fairlead/internal/ipfamily"
)

// Set is a set of addresses, kept per family as sorted ranges that neither overlap nor
// touch. Looking up is O(log n) in the number of ranges; changing moves what lies
// behind. The zero value is empty. Copies share memory: Clone before changing one.
type Set struct {
	ranges [len(ipfamily.All)][]Range
}

// NewSet returns the union of ranges.
func NewSet(ranges ...Range) Set {
	sorted := slices.Clone(ranges)
	slices.SortFunc(sorted, func(a, b Range) int { return a.From.Compare(b.From) })
	var s Set
	for _, r := range sorted {
		f := ipfamily.Of(r.From)
		have := s.ranges[f]
		if n := len(have); n > 0 && !beyond(have[n-1].To, r.From) {
			if have[n-1].To.Less(r.To) {
				have[n-1].To = r.To
			}
			continue
		}
		s.ranges[f] = append(have, r)
	}
	return s
}

// beyond says whether there is an address between a and b, a being the lower.
func beyond(a, b netip.Addr) bool {
	next := a.Next()
	return next.IsValid() && next.Less(b)
}

// Clone returns a copy that shares nothing with s.
func (s Set) Clone() Set {
	for f := range s.ranges {
		s.ranges[f] = slices.Clone(s.ranges[f])
	}
	return s
}

// Ranges returns the ranges of s, IPv4 first, each family from low to high.
func (s Set) Ranges() []Range {
	return slices.Concat(s.ranges[ipfamily.IPv4], s.ranges[ipfamily.IPv6])
}

// Contains says whether a is in s.
func (s Set) Contains(a netip.Addr) bool {
	_, ok := s.find(a)
	return ok
}

// Overlaps says whether s and other have an address in common.
func (s Set) Overlaps(other Set) bool {
	for _, f := range ipfamily.All {
		for _, r := range other.ranges[f] {
			// Ranges before i end below r; where i starts above r, all behind it do.
			i := s.search(r.From)
			if have := s.ranges[f]; i < len(have) && have[i].From.Compare(r.To) <= 0 {
				return true
			}
		}
	}
	return false
}

// Count returns how many addresses of family f are in s.
func (s Set) Count(f ipfamily.Family) Count {
	var n Count
	for _, r := range s.ranges[f] {
		n = n.plus(r.size())
	}
	return n
}

// Lowest returns the lowest address of family f that is in both s and within.
func (s Set) Lowest(f ipfamily.Family, within Set) (netip.Addr, bool) {
	have := s.ranges[f]
	for _, r := range within.ranges[f] {
		i := s.search(r.From)
		if i == len(have) {
			break
		}
		if have[i].From.Compare(r.To) <= 0 {
			return highest(have[i].From, r.From), true
		}
	}
	return netip.Addr{}, false
}

func highest(a, b netip.Addr) netip.Addr {
	if a.Less(b) {
		return b
	}
	return a
}

// search returns the index of the first range of a's family that ends at a or behind it.
func (s Set) search(a netip.Addr) int {
	have := s.ranges[ipfamily.Of(a)]
	return sort.Search(len(have), func(i int) bool { return a.Compare(have[i].To) <= 0 })
}

// find returns the index of the range that contains a.
func (s Set) find(a netip.Addr) (int, bool) {
	i, have := s.search(a), s.ranges[ipfamily.Of(a)]
	return i, i < len(have) && have[i].Contains(a)
}

// add puts a into s.
func (s *Set) add(a netip.Addr) {
	i, found := s.find(a)
	if found {
		return
	}
	f := ipfamily.Of(a)
	have := s.ranges[f]
	below := i > 0 && !beyond(have[i-1].To, a)
	above := i < len(have) && !beyond(a, have[i].From)
	switch {
	case below && above:
		have[i-1].To = have[i].To
		s.ranges[f] = slices.Delete(have, i, i+1)
	case below:
		have[i-1].To = a
	case above:
		have[i].From = a
	default:
		s.ranges[f] = slices.Insert(have, i, Range{From: a, To: a})
	}
}

// remove takes a out of s.
func (s *Set) remove(a netip.Addr) {
	i, found := s.find(a)
	if !found {
		return
	}
	f := ipfamily.Of(a)
	have := s.ranges[f]
	switch r := have[i]; {
	case r.From == r.To && i == 0:
		s.ranges[f] = have[1:] // the usual case, lowest first, moves nothing
	case r.From == r.To:
		s.ranges[f] = slices.Delete(have, i, i+1)
	case r.From == a:
		have[i].From = a.Next()
	case r.To == a:
		have[i].To = a.Prev()
	default:
		have[i].To = a.Prev()
		s.ranges[f] = slices.Insert(have, i+1, Range{From: a.Next(), To: r.To})
	}
}
