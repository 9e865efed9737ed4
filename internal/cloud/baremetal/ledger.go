package baremetal

import (
	"cmp"
	"net/netip"
	"slices"

	"k8s.io/apimachinery/pkg/types"

	"fairlead.dev/fairlead/internal/alloc"
	"fairlead.dev/fairlead/internal/cloud"
	"fairlead.dev/fairlead/internal/ipfamily"
)

// ledger knows the pools, who has which address, and who waits. It is pure and not safe
// for concurrent use. After every call no waiting Service could be given anything that
// is free: what a call frees, the same call gives to who waits.
type ledger struct {
	owners  *alloc.Allocator[Owner]
	pools   []*pool           // by name
	waiting []waiter          // the first in line first
	places  map[Owner]Request // where in waiting an Owner is
	// freed are the addresses that nobody has looked at since their release.
	freed map[netip.Addr]bool

	look    []types.NamespacedName // whose answer has changed since the last drain
	touched map[string]bool        // names of the pools whose report has changed
}

// waiter is a Service that has less than it wants, and what it was told last: nil where
// it has something (PreferDualStack).
type waiter struct {
	Request
	told *cloud.Pending
}

// holding is an address that a Service has in its status.
type holding struct {
	addr  netip.Addr
	owner Owner
}

// newLedger returns the ledger of a full listing: what Services have is theirs before
// anything is given to requests, in their order and not in that of the listing. Where
// two have the same address it is the first's.
func newLedger(pools []*pool, holdings []holding, requests []Request) *ledger {
	l := &ledger{
		owners: alloc.New[Owner](alloc.Set{}),
		places: map[Owner]Request{},
		freed:  map[netip.Addr]bool{}, touched: map[string]bool{},
	}
	for _, h := range holdings {
		if _, taken := l.owners.Owner(h.addr); !taken {
			_ = l.owners.Adopt(h.addr, h.owner) // cannot fail: nobody has it
		}
	}
	for _, r := range requests {
		l.wait(waiter{Request: r})
	}
	l.setPools(pools)
	l.look = nil // the answers so far are the first
	return l
}

// setPools replaces the pools. Nobody loses an address by it.
func (l *ledger) setPools(pools []*pool) {
	for _, p := range slices.Concat(l.pools, pools) {
		l.touched[p.name] = true
	}
	l.pools = pools
	var ranges []alloc.Range
	for _, p := range pools {
		ranges = append(ranges, p.addresses.Ranges()...)
	}
	l.owners.SetRanges(alloc.NewSet(ranges...))
	for addr := range l.owners.All {
		l.account(addr, 1)
	}
	l.pass(func() bool { return true })
	l.settle()
}

// assign gives r's Service what it wants and returns all that it has. Where it cannot,
// Pending says why, what it had stays, and it waits.
func (l *ledger) assign(r Request) ([]netip.Addr, *cloud.Pending) {
	l.unwait(r.Owner)
	complete, pending := l.try(r)
	if !complete {
		l.wait(waiter{Request: r, told: pending})
	}
	l.settle()
	return l.held(r), pending
}

// refuse is assign for a Request that nothing can serve before it changes.
func (l *ledger) refuse(r Request) []netip.Addr {
	l.unwait(r.Owner)
	l.dropFamilies(r)
	l.settle()
	return l.held(r)
}

// release frees all that owner has, and forgets what it waits for.
func (l *ledger) release(owner Owner) {
	l.unwait(owner)
	for _, addr := range l.owners.Held(owner) {
		l.free(addr)
	}
	l.settle()
}

// held returns what r's Service has, in the order of its families.
func (l *ledger) held(r Request) []netip.Addr {
	var out []netip.Addr
	all := l.owners.Held(r.Owner)
	for _, f := range r.Families {
		for _, addr := range all {
			if ipfamily.Of(addr) == f {
				out = append(out, addr)
			}
		}
	}
	return out
}

// settle gives what was freed to who waits, the first in line first. It stops as soon as
// nothing of it is left, so that a release costs no more than finding the one it serves.
func (l *ledger) settle() {
	for len(l.freed) > 0 {
		before := len(l.look)
		l.pass(func() bool { return len(l.freed) > 0 })
		if len(l.look) == before {
			clear(l.freed) // nobody wants what is left
		}
	}
}

// pass tries everyone who waits, in order, while more says so.
func (l *ledger) pass(more func() bool) {
	for _, w := range slices.Clone(l.waiting) {
		if !more() {
			return
		}
		had := l.owners.Held(w.Owner)
		complete, pending := l.try(w.Request)
		changed := !slices.Equal(had, l.owners.Held(w.Owner))
		if complete {
			l.unwait(w.Owner)
		} else if changed || !same(w.told, pending) {
			l.unwait(w.Owner)
			l.wait(waiter{Request: w.Request, told: pending})
		}
		if changed || !same(w.told, pending) {
			l.look = append(l.look, w.Owner.NamespacedName)
		}
	}
}

func same(a, b *cloud.Pending) bool {
	if a == nil || b == nil {
		return a == b
	}
	return *a == *b
}

func (l *ledger) wait(w waiter) {
	l.places[w.Owner] = w.Request
	at, _ := slices.BinarySearchFunc(l.waiting, w, compareWaiters)
	l.waiting = slices.Insert(l.waiting, at, w)
}

func (l *ledger) unwait(owner Owner) {
	r, ok := l.places[owner]
	if !ok {
		return
	}
	delete(l.places, owner)
	if at, found := slices.BinarySearchFunc(l.waiting, waiter{Request: r}, compareWaiters); found {
		l.waiting = slices.Delete(l.waiting, at, at+1)
	}
}

func compareWaiters(a, b waiter) int { return a.before(b.Request) }

// take gives addr to owner, who may have it already.
func (l *ledger) take(addr netip.Addr, owner Owner) error {
	if now, ok := l.owners.Owner(addr); ok && now == owner {
		return nil
	}
	if err := l.owners.Take(addr, owner); err != nil {
		return err
	}
	l.account(addr, 1)
	delete(l.freed, addr)
	return nil
}

func (l *ledger) free(addr netip.Addr) {
	if _, ok := l.owners.Release(addr); ok {
		l.account(addr, -1)
		l.freed[addr] = true
	}
}

func (l *ledger) account(addr netip.Addr, n int) {
	for _, p := range containing(l.pools, addr) {
		p.assigned[ipfamily.Of(addr)] += n
		l.touched[p.name] = true
	}
}

func (l *ledger) pool(name string) (*pool, bool) {
	i, ok := slices.BinarySearchFunc(l.pools, name, func(p *pool, name string) int { return cmp.Compare(p.name, name) })
	if !ok {
		return nil, false
	}
	return l.pools[i], true
}
