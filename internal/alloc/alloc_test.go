package alloc_test

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"fairlead.dev/fairlead/internal/alloc"
	"fairlead.dev/fairlead/internal/ipfamily"
)

var addrs = cmpopts.EquateComparable(netip.Addr{})

// The lowest and the highest addresses of both families are in the domain, because that
// is where Next and Prev end.
var bases = map[ipfamily.Family][]netip.Addr{
	ipfamily.IPv4: {netip.MustParseAddr("0.0.0.0"), netip.MustParseAddr("192.0.2.0"), netip.MustParseAddr("255.255.255.224")},
	ipfamily.IPv6: {netip.MustParseAddr("::"), netip.MustParseAddr("2001:db8::ffff:fff0"), netip.MustParseAddr("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffe0")},
}

func step(a netip.Addr, n int) netip.Addr {
	for ; n > 0 && a.Next().IsValid(); n-- {
		a = a.Next()
	}
	return a
}

func drawAddr(t *rapid.T, f ipfamily.Family) netip.Addr {
	return step(rapid.SampledFrom(bases[f]).Draw(t, "base"), rapid.IntRange(0, 31).Draw(t, "offset"))
}

func drawRanges(t *rapid.T) []alloc.Range {
	return rapid.SliceOfN(rapid.Custom(func(t *rapid.T) alloc.Range {
		from := drawAddr(t, rapid.SampledFrom(ipfamily.All[:]).Draw(t, "family"))
		return alloc.Range{From: from, To: step(from, rapid.IntRange(0, 12).Draw(t, "size"))}
	}), 0, 6).Draw(t, "ranges")
}

func contains(ranges []alloc.Range, a netip.Addr) bool {
	return slices.ContainsFunc(ranges, func(r alloc.Range) bool { return r.Contains(a) })
}

// model is what an Allocator does, written as plainly as can be.
type model struct {
	ranges []alloc.Range
	owners map[netip.Addr]string
}

func (m *model) lowest(f ipfamily.Family, within []alloc.Range) (netip.Addr, bool) {
	for _, base := range bases[f] {
		for n := range 64 {
			a := step(base, n)
			if _, taken := m.owners[a]; !taken && contains(m.ranges, a) && contains(within, a) {
				return a, true
			}
		}
	}
	return netip.Addr{}, false
}

// free counts every address of the model's domain that is in its ranges and not taken.
func (m *model) free(f ipfamily.Family) int64 {
	seen := map[netip.Addr]bool{}
	for _, base := range bases[f] {
		for n := range 64 {
			if a := step(base, n); contains(m.ranges, a) && m.owners[a] == "" {
				seen[a] = true
			}
		}
	}
	return int64(len(seen))
}

func TestAllocatorDoesWhatItsModelDoes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := &model{ranges: drawRanges(t), owners: map[netip.Addr]string{}}
		a := alloc.New[string](alloc.NewSet(m.ranges...))
		owner := rapid.SampledFrom([]string{"ann", "bob", "cy"})
		family := rapid.SampledFrom(ipfamily.All[:])
		t.Repeat(map[string]func(*rapid.T){
			"take": func(t *rapid.T) {
				addr, o := drawAddr(t, family.Draw(t, "family")), owner.Draw(t, "owner")
				now, taken := m.owners[addr]
				var want error
				switch {
				case taken && now == o:
				case !contains(m.ranges, addr):
					want = alloc.ErrOutside
				case taken:
					want = alloc.ErrTaken
				default:
					m.owners[addr] = o
				}
				if err := a.Take(addr, o); !errors.Is(err, want) {
					t.Fatalf("Take(%s, %s) = %v, want %v", addr, o, err, want)
				}
			},
			"adopt": func(t *rapid.T) {
				addr, o := drawAddr(t, family.Draw(t, "family")), owner.Draw(t, "owner")
				now, taken := m.owners[addr]
				err := a.Adopt(addr, o)
				if foreign := taken && now != o; foreign != errors.Is(err, alloc.ErrTaken) || !foreign && err != nil {
					t.Fatalf("Adopt(%s, %s) = %v with the owner %q", addr, o, err, now)
				}
				if !taken {
					m.owners[addr] = o
				}
			},
			"takeLowest": func(t *rapid.T) {
				f, o, within := family.Draw(t, "family"), owner.Draw(t, "owner"), drawRanges(t)
				want, ok := m.lowest(f, within)
				got, err := a.Lowest(f, alloc.NewSet(within...))
				if ok == errors.Is(err, alloc.ErrExhausted) || got != want {
					t.Fatalf("Lowest(%s, %v) = %s, %v, want %s", f, within, got, err, want)
				}
				if !ok {
					return
				}
				if err := a.Take(got, o); err != nil {
					t.Fatalf("taking the lowest free address: %v", err)
				}
				m.owners[got] = o
			},
			"release": func(t *rapid.T) {
				addr := drawAddr(t, family.Draw(t, "family"))
				want, taken := m.owners[addr]
				if got, ok := a.Release(addr); ok != taken || got != want {
					t.Fatalf("Release(%s) = %q, %t, want %q, %t", addr, got, ok, want, taken)
				}
				delete(m.owners, addr)
			},
			"setRanges": func(t *rapid.T) {
				m.ranges = drawRanges(t)
				a.SetRanges(alloc.NewSet(m.ranges...))
			},
			"": func(t *rapid.T) { check(t, a, m) },
		})
	})
}

// check compares all that can be seen of a with m, and with an Allocator built anew from
// the owners in map order.
func check(t *rapid.T, a *alloc.Allocator[string], m *model) {
	if diff := cmp.Diff(m.owners, maps.Collect(a.All), addrs); diff != "" {
		t.Fatalf("owners (-want +got):\n%s", diff)
	}
	rebuilt := alloc.New[string](alloc.NewSet(m.ranges...))
	held := map[string][]netip.Addr{}
	for addr, o := range m.owners {
		if err := rebuilt.Adopt(addr, o); err != nil {
			t.Fatal(err)
		}
		held[o] = append(held[o], addr)
	}
	for o, want := range held {
		slices.SortFunc(want, netip.Addr.Compare)
		if diff := cmp.Diff(want, a.Held(o), addrs); diff != "" {
			t.Fatalf("held by %s (-want +got):\n%s", o, diff)
		}
	}
	for _, f := range ipfamily.All {
		want := m.free(f)
		if got, again := a.Free(f).Int64(), rebuilt.Free(f).Int64(); got != want || again != want {
			t.Fatalf("%d %s addresses free, %d after a rebuild, want %d", got, f, again, want)
		}
	}
}

func TestSetIsTheUnionOfItsRanges(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ranges, others := drawRanges(t), drawRanges(t)
		set, other := alloc.NewSet(ranges...), alloc.NewSet(others...)
		common := false
		for _, f := range ipfamily.All {
			for range 8 {
				a := drawAddr(t, f)
				if set.Contains(a) != contains(ranges, a) {
					t.Fatalf("Contains(%s) = %t of %v", a, set.Contains(a), ranges)
				}
			}
			for _, base := range bases[f] {
				for n := range 64 {
					a := step(base, n)
					common = common || contains(ranges, a) && contains(others, a)
				}
			}
		}
		if set.Overlaps(other) != common || other.Overlaps(set) != common {
			t.Fatalf("%v and %v: Overlaps is %t, want %t", ranges, others, set.Overlaps(other), common)
		}
		all := set.Ranges()
		for i := 1; i < len(all); i++ {
			if all[i-1].From.BitLen() == all[i].From.BitLen() && !all[i-1].To.Next().Less(all[i].From) {
				t.Fatalf("%v and %v touch", all[i-1], all[i])
			}
		}
	})
}

func TestErrorsSayWhatHappened(t *testing.T) {
	a := alloc.New[string](setOf(t, "192.0.2.0/32"))
	if err := a.Take(netip.MustParseAddr("192.0.2.0"), "ann"); err != nil {
		t.Fatal(err)
	}
	_, exhausted := a.Lowest(ipfamily.IPv4, setOf(t, "192.0.2.0/24"))
	for _, tc := range []struct {
		err  error
		want string
	}{
		{a.Take(netip.MustParseAddr("192.0.2.0"), "bob"), "taking 192.0.2.0: address taken by ann"},
		{a.Take(netip.MustParseAddr("2001:db8::1"), "bob"), "taking 2001:db8::1: address outside the ranges"},
		{exhausted, "finding an IPv4 address: range exhausted"},
	} {
		if got := fmt.Sprint(tc.err); got != tc.want {
			t.Errorf("got %q, want %q", got, tc.want)
		}
	}
}

// BenchmarkChurn releases and takes one address out of pools of which every other
// address is taken, the worst case for a list of free ranges.
func BenchmarkChurn(b *testing.B) {
	for _, n := range []int{1000, 10000, 100000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			set := setOf(b, "2001:db8::/64")
			a, addr := alloc.New[int](set), netip.MustParseAddr("2001:db8::")
			for i := range n {
				if err := a.Take(addr, i); err != nil {
					b.Fatal(err)
				}
				addr = addr.Next().Next()
			}
			for b.Loop() {
				got, err := a.Lowest(ipfamily.IPv6, set)
				if err != nil {
					b.Fatal(err)
				}
				if err := a.Take(got, -1); err != nil {
					b.Fatal(err)
				}
				a.Release(got)
			}
		})
	}
}
