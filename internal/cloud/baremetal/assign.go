package baremetal

import (
	"fmt"
	"net/netip"
	"slices"

	"fairlead.dev/fairlead/api/v1alpha1"
	"fairlead.dev/fairlead/internal/cloud"
	"fairlead.dev/fairlead/internal/ipfamily"
)

// try gives r's Service what it wants, or nothing new. complete says that it has an
// address of each of its families; with Partial one of them is enough for no Pending.
func (l *ledger) try(r Request) (complete bool, pending *cloud.Pending) {
	l.dropFamilies(r)
	var want []netip.Addr
	var missing *cloud.Pending
	for _, addr := range r.Addresses {
		if pending := l.admit(r, addr); pending != nil {
			return false, pending
		}
	}
	for _, f := range r.Families {
		addr, pending := l.choose(r, f)
		if pending != nil {
			missing = pending
			continue
		}
		want = append(want, addr)
	}
	if missing != nil && (!r.Partial || len(want) == 0) {
		return false, missing
	}
	if pending := l.exchange(r.Owner, want); pending != nil {
		return false, pending
	}
	return missing == nil, nil
}

// exchange takes want for owner, and frees what it replaces: nothing of a family that
// want has no address of.
func (l *ledger) exchange(owner Owner, want []netip.Addr) *cloud.Pending {
	for _, addr := range want {
		if err := l.take(addr, owner); err != nil {
			// admit and choose have looked at it, so this is a fault of ours; it
			// must not pass for an assignment.
			return &cloud.Pending{Reason: v1alpha1.ReasonAddressTaken, Message: err.Error()}
		}
	}
	for _, addr := range l.owners.Held(owner) {
		if !slices.Contains(want, addr) && replaced(addr, want) {
			l.free(addr)
		}
	}
	return nil
}

// replaced says whether by has another address of addr's family.
func replaced(addr netip.Addr, by []netip.Addr) bool {
	return slices.ContainsFunc(by, func(b netip.Addr) bool { return b.BitLen() == addr.BitLen() })
}

// dropFamilies frees the addresses of families that the Service has no longer.
func (l *ledger) dropFamilies(r Request) {
	for _, addr := range l.owners.Held(r.Owner) {
		if !slices.Contains(r.Families, ipfamily.Of(addr)) {
			l.free(addr)
		}
	}
}

// choose returns the address of family f for r's Service and changes nothing: the one it
// asks for, the one it has, or the lowest that is free in the first pool that has any.
func (l *ledger) choose(r Request, f ipfamily.Family) (netip.Addr, *cloud.Pending) {
	if addr, ok := r.wanted(f); ok {
		return addr, nil
	}
	for _, addr := range l.owners.Held(r.Owner) {
		if ipfamily.Of(addr) == f && l.mayKeep(r, addr) {
			return addr, nil
		}
	}
	candidates := l.candidates(r, f)
	for _, p := range candidates {
		if addr, err := l.owners.Lowest(f, p.addresses); err == nil {
			return addr, nil
		}
	}
	return netip.Addr{}, l.nothing(r, f, candidates)
}

// mayKeep says whether an address that the Service has is good for what it asks. One that
// is in no pool is: its pool was shrunk or deleted, and that takes nothing from a
// running Service. One in another pool is not: the Service asks for a new pool.
func (l *ledger) mayKeep(r Request, addr netip.Addr) bool {
	if r.Pool == "" {
		return true
	}
	pools := containing(l.pools, addr)
	return len(pools) == 0 || slices.ContainsFunc(pools, func(p *pool) bool { return p.name == r.Pool })
}

// candidates returns the pools that r may get a new address of family f from, by name.
func (l *ledger) candidates(r Request, f ipfamily.Family) []*pool {
	var out []*pool
	for _, p := range l.pools {
		asked := p.name == r.Pool || r.Pool == "" && p.autoAssign
		if asked && len(p.overlaps) == 0 && p.has(f) {
			out = append(out, p)
		}
	}
	return out
}

func (l *ledger) nothing(r Request, f ipfamily.Family, tried []*pool) *cloud.Pending {
	if len(tried) > 0 {
		return &cloud.Pending{
			Reason:  v1alpha1.ReasonPoolExhausted,
			Message: fmt.Sprintf("no %s address is free in the pools tried: %s", f, poolNames(tried)),
		}
	}
	message := fmt.Sprintf("no AddressPool assigns %s addresses by itself; there are: %s", f, poolNames(l.pools))
	if r.Pool != "" {
		p, ok := l.pool(r.Pool)
		switch {
		case !ok:
			return l.noSuchPool(r)
		case len(p.overlaps) > 0:
			return conflict(r.PoolFrom, p)
		}
		message = fmt.Sprintf("%s: the AddressPool %q has no %s addresses", r.PoolFrom, r.Pool, f)
	}
	return &cloud.Pending{Reason: v1alpha1.ReasonNoPool, Message: message}
}

func (l *ledger) noSuchPool(r Request) *cloud.Pending {
	return &cloud.Pending{
		Reason:  v1alpha1.ReasonPoolNotFound,
		Message: fmt.Sprintf("%s: there is no AddressPool %q; there are: %s", r.PoolFrom, r.Pool, poolNames(l.pools)),
	}
}

func conflict(from string, p *pool) *cloud.Pending {
	return &cloud.Pending{
		Reason:  v1alpha1.ReasonPoolConflict,
		Message: fmt.Sprintf("%s: the AddressPool %q overlaps older ones and assigns nothing: %s", from, p.name, names(p.overlaps)),
	}
}

// admit checks an address that r asks for, before anything changes hands.
func (l *ledger) admit(r Request, addr netip.Addr) *cloud.Pending {
	owner, owned := l.owners.Owner(addr)
	if owned && owner == r.Owner && l.mayKeep(r, addr) {
		return nil
	}
	refuse := func(reason, format string, args ...any) *cloud.Pending {
		return &cloud.Pending{Reason: reason, Message: fmt.Sprintf("%s: %s ", r.AddressesFrom, addr) + fmt.Sprintf(format, args...)}
	}
	pools := containing(l.pools, addr)
	if r.Pool != "" {
		if _, ok := l.pool(r.Pool); !ok {
			return l.noSuchPool(r)
		}
		pools = slices.DeleteFunc(pools, func(p *pool) bool { return p.name != r.Pool })
	}
	open := slices.ContainsFunc(pools, func(p *pool) bool { return len(p.overlaps) == 0 })
	switch {
	case len(pools) == 0 && r.Pool != "":
		return refuse(v1alpha1.ReasonAddressNotInPool, "is not in the AddressPool %q of %s", r.Pool, r.PoolFrom)
	case len(pools) == 0:
		return refuse(v1alpha1.ReasonAddressNotInPool, "is in no AddressPool; there are: %s", poolNames(l.pools))
	case owned && owner != r.Owner:
		return refuse(v1alpha1.ReasonAddressTaken, "belongs to the Service %s", owner.NamespacedName)
	case !open:
		return conflict(r.AddressesFrom, pools[0])
	}
	return nil
}
