// Package ipfamily names the IP families, to index arrays by and to loop over.
package ipfamily

import "net/netip"

// Family is an IP family.
type Family uint8

// The IP families.
const (
	IPv4 Family = iota
	IPv6
)

// All are all families, in the order of the constants.
var All = [...]Family{IPv4, IPv6}

// Of returns the family of a.
func Of(a netip.Addr) Family {
	if a.Is4() {
		return IPv4
	}
	return IPv6
}

// String returns "IPv4" or "IPv6", the names that Kubernetes uses.
func (f Family) String() string {
	if f == IPv4 {
		return "IPv4"
	}
	return "IPv6"
}

// Last returns the highest address of p.
func Last(p netip.Prefix) netip.Addr {
	raw := p.Addr().AsSlice()
	for i := p.Bits(); i < len(raw)*8; i++ {
		raw[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(raw)
	return a
}
