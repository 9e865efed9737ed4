package alloc

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"fairlead.dev/fairlead/internal/ipfamily"
)

var (
	// ErrExhausted means that no address of the wanted family is free. Callers wait
	// for a release or for other ranges; retrying on a timer cannot help.
	ErrExhausted = errors.New("range exhausted")
	// ErrTaken means that the address belongs to another owner. Callers wait for
	// its release, or ask for another address.
	ErrTaken = errors.New("address taken")
	// ErrOutside means that the address is in none of the ranges. Callers ask for
	// another address, or wait for other ranges.
	ErrOutside = errors.New("address outside the ranges")
)

// Allocator knows who owns which address. It is not safe for concurrent use.
//
// Its owners are the only truth: what is free follows from them and from the ranges, so
// that two Allocators told the same in a different order are the same.
type Allocator[O comparable] struct {
	ranges Set
	free   Set // ranges without the keys of owners
	owners map[netip.Addr]O
	held   map[O][]netip.Addr // owners the other way round, each list sorted
}

// New returns an Allocator of the addresses in ranges, all of them free.
func New[O comparable](ranges Set) *Allocator[O] {
	a := &Allocator[O]{owners: map[netip.Addr]O{}, held: map[O][]netip.Addr{}}
	a.SetRanges(ranges)
	return a
}

// SetRanges replaces the ranges. Every address keeps its owner, also one that is now
// outside.
func (a *Allocator[O]) SetRanges(ranges Set) {
	a.ranges = ranges.Clone()
	a.free = ranges.Clone()
	for addr := range a.owners {
		a.free.remove(addr)
	}
}

// Take makes owner the owner of addr. It changes nothing where owner is that already.
// The error wraps ErrTaken or ErrOutside.
func (a *Allocator[O]) Take(addr netip.Addr, owner O) error {
	if !a.ranges.Contains(addr) && a.owners[addr] != owner {
		return fmt.Errorf("taking %s: %w", addr, ErrOutside)
	}
	return a.Adopt(addr, owner)
}

// Adopt is Take for an address that owner had before: it may be outside the ranges.
// The error wraps ErrTaken.
func (a *Allocator[O]) Adopt(addr netip.Addr, owner O) error {
	switch now, ok := a.owners[addr]; {
	case ok && now == owner:
		return nil
	case ok:
		return fmt.Errorf("taking %s: %w by %v", addr, ErrTaken, now)
	}
	a.owners[addr] = owner
	at, _ := slices.BinarySearchFunc(a.held[owner], addr, netip.Addr.Compare)
	a.held[owner] = slices.Insert(a.held[owner], at, addr)
	a.free.remove(addr)
	return nil
}

// Lowest returns the lowest free address of family f in from, for the caller to Take.
// The error wraps ErrExhausted.
func (a *Allocator[O]) Lowest(f ipfamily.Family, from Set) (netip.Addr, error) {
	addr, ok := a.free.Lowest(f, from)
	if !ok {
		return netip.Addr{}, fmt.Errorf("finding an %s address: %w", f, ErrExhausted)
	}
	return addr, nil
}

// Release frees addr and returns whose it was. It does nothing where nobody owns it.
func (a *Allocator[O]) Release(addr netip.Addr) (owner O, ok bool) {
	owner, ok = a.owners[addr]
	if !ok {
		return owner, false
	}
	delete(a.owners, addr)
	rest := slices.DeleteFunc(a.held[owner], func(x netip.Addr) bool { return x == addr })
	if a.held[owner] = rest; len(rest) == 0 {
		delete(a.held, owner)
	}
	if a.ranges.Contains(addr) {
		a.free.add(addr)
	}
	return owner, true
}

// Owner returns whose addr is.
func (a *Allocator[O]) Owner(addr netip.Addr) (owner O, ok bool) {
	owner, ok = a.owners[addr]
	return owner, ok
}

// Held returns the addresses of owner, sorted, IPv4 first.
func (a *Allocator[O]) Held(owner O) []netip.Addr { return slices.Clone(a.held[owner]) }

// All calls yield for every address that has an owner, in no order.
func (a *Allocator[O]) All(yield func(netip.Addr, O) bool) {
	for addr, owner := range a.owners {
		if !yield(addr, owner) {
			return
		}
	}
}
