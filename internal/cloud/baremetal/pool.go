package baremetal

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"fairlead.dev/fairlead/api/v1alpha1"
	"fairlead.dev/fairlead/internal/alloc"
	"fairlead.dev/fairlead/internal/ipfamily"
)

// pool is an AddressPool as the ledger needs it.
type pool struct {
	name       string
	generation int64
	autoAssign bool
	addresses  alloc.Set
	// faults are the entries of spec.addresses that cannot be used, with what is
	// wrong with them.
	faults []string
	// overlaps are the older pools that have an address of this one. Where there
	// are any, nothing new is assigned from here.
	overlaps []string
	// assigned counts the addresses of the pool that have an owner.
	assigned [len(ipfamily.All)]int
}

// decodePools returns the pools of list by name.
func decodePools(list []v1alpha1.AddressPool) []*pool {
	byAge := slices.Clone(list)
	slices.SortFunc(byAge, func(a, b v1alpha1.AddressPool) int {
		return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Name, b.Name))
	})
	var pools []*pool
	for i := range byAge {
		p := decodePool(&byAge[i])
		for _, older := range pools {
			if older.addresses.Overlaps(p.addresses) {
				p.overlaps = append(p.overlaps, older.name)
			}
		}
		pools = append(pools, p)
	}
	slices.SortFunc(pools, func(a, b *pool) int { return cmp.Compare(a.name, b.name) })
	return pools
}

// decodePool keeps what can be used. The API server refuses the rest before it gets
// here, unless the CRD was installed without its rules.
func decodePool(p *v1alpha1.AddressPool) *pool {
	var ranges []alloc.Range
	var faults []string
	for i, s := range p.Spec.Addresses {
		r, err := alloc.ParseRange(string(s))
		if err != nil {
			faults = append(faults, fmt.Sprintf("spec.addresses[%d]: %q %v", i, s, err))
			continue
		}
		ranges = append(ranges, r)
	}
	return &pool{
		name: p.Name, generation: p.Generation,
		autoAssign: p.Spec.AutoAssign == nil || *p.Spec.AutoAssign,
		addresses:  alloc.NewSet(ranges...), faults: faults,
	}
}

func (p *pool) has(f ipfamily.Family) bool { return p.addresses.Count(f) != alloc.Count{} }

// Report is what there is to say about a pool.
type Report struct {
	// Generation is that of the spec the report is about.
	Generation                    int64
	Capacity, Assigned, Available v1alpha1.FamilyCounts
	// Faults are the unusable entries: `spec.addresses[1]: "..." is a reversed range`.
	Faults []string
	// Overlaps are the names of the older pools that have an address of this one.
	Overlaps []string
}

func (p *pool) report() Report {
	r := Report{Generation: p.generation, Faults: p.faults, Overlaps: p.overlaps}
	count := func(f ipfamily.Family) (capacity, assigned, available int64) {
		all := p.addresses.Count(f)
		if len(p.overlaps) == 0 {
			available = all.Minus(p.assigned[f]).Int64()
		}
		return all.Int64(), int64(p.assigned[f]), available
	}
	r.Capacity.IPv4, r.Assigned.IPv4, r.Available.IPv4 = count(ipfamily.IPv4)
	r.Capacity.IPv6, r.Assigned.IPv6, r.Available.IPv6 = count(ipfamily.IPv6)
	return r
}

// containing returns those of pools that have a.
func containing(pools []*pool, a netip.Addr) []*pool {
	var found []*pool
	for _, p := range pools {
		if p.addresses.Contains(a) {
			found = append(found, p)
		}
	}
	return found
}

func poolNames(pools []*pool) string {
	var all []string
	for _, p := range pools {
		all = append(all, p.name)
	}
	if len(all) == 0 {
		return "(there are none)"
	}
	return names(all)
}
