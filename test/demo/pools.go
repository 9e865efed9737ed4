package main

import (
	"fmt"
	"net/netip"

	"fairlead.dev/fairlead/api/v1alpha1"
	"fairlead.dev/fairlead/internal/alloc"
)

// poolPrefixes returns the prefixes that make up the addresses of pools, and nothing else.
func poolPrefixes(pools []v1alpha1.AddressPool) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for i := range pools {
		for _, text := range pools[i].Spec.Addresses {
			r, err := alloc.ParseRange(string(text))
			if err != nil {
				return nil, fmt.Errorf("AddressPool %s: %s %w", pools[i].Name, text, err)
			}
			out = append(out, prefixes(r.From, r.To)...)
		}
	}
	return out, nil
}

// prefixes returns the fewest prefixes that hold the addresses from one to another, both
// of one family and included, in order.
func prefixes(from, to netip.Addr) []netip.Prefix {
	var out []netip.Prefix
	for from.IsValid() && !to.Less(from) {
		p := netip.PrefixFrom(from, from.BitLen())
		for p.Bits() > 0 {
			wider := netip.PrefixFrom(from, p.Bits()-1)
			if wider.Masked().Addr() != from || to.Less(lastOf(wider)) {
				break
			}
			p = wider
		}
		out = append(out, p)
		from = lastOf(p).Next() // invalid after the last address of all
	}
	return out
}

// lastOf returns the last address of a prefix.
func lastOf(p netip.Prefix) netip.Addr {
	bytes := p.Addr().AsSlice()
	for bit := p.Bits(); bit < p.Addr().BitLen(); bit++ {
		bytes[bit/8] |= 0x80 >> (bit % 8)
	}
	last, _ := netip.AddrFromSlice(bytes) // as long as an address is
	return last
}
