// Package alloc hands out unique addresses from ranges. Its values hold the ends of
// ranges and what is taken, never one entry per address, so that an IPv6 /64 costs no
// more than an IPv4 /28.
package alloc

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"fairlead.dev/fairlead/internal/ipfamily"
)

// Range is every address from From to To, both included. Both are of one family and
// have no zone.
type Range struct {
	From, To netip.Addr
}

// ParseRange parses a CIDR, 192.0.2.0/24, or a from-to range,
// 2001:db8::10-2001:db8::1f. A CIDR means all of its addresses, the first and the last
// too. The error says what is wrong with s without repeating it. A CIDR with host
// bits is refused, because 192.0.2.5/24 may be meant as one address as well as as 256.
func ParseRange(s string) (Range, error) {
	if strings.Contains(s, "/") {
		return parseCIDR(s)
	}
	from, to, ok := strings.Cut(s, "-")
	if !ok {
		if a, err := parseAddr(s); err == nil {
			return Range{}, fmt.Errorf("is one address; write it as %s", netip.PrefixFrom(a, a.BitLen()))
		}
		return Range{}, errors.New("is neither a CIDR such as 192.0.2.0/24 nor a range such as 192.0.2.10-192.0.2.20")
	}
	first, err := parseAddr(from)
	if err != nil {
		return Range{}, err
	}
	last, err := parseAddr(to)
	switch {
	case err != nil:
		return Range{}, err
	case ipfamily.Of(first) != ipfamily.Of(last):
		return Range{}, errors.New("mixes IPv4 and IPv6")
	case last.Less(first):
		return Range{}, fmt.Errorf("is a reversed range; did you mean %s-%s?", to, from)
	}
	return Range{From: first, To: last}, nil
}

func parseCIDR(s string) (Range, error) {
	address, length, _ := strings.Cut(s, "/")
	a, err := parseAddr(address)
	if err != nil {
		return Range{}, err
	}
	p, err := netip.ParsePrefix(s)
	switch {
	case err != nil:
		return Range{}, fmt.Errorf("has the prefix length %q, which is not between 0 and %d", length, a.BitLen())
	case p.Masked() != p:
		return Range{}, fmt.Errorf("has bits beyond its prefix length; did you mean %s?", p.Masked())
	}
	return Range{From: p.Addr(), To: ipfamily.Last(p)}, nil
}

// parseAddr refuses zones, which mean something on one node only, and IPv4-mapped
// IPv6, which would be a second spelling of the same address.
func parseAddr(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	switch {
	case err != nil:
		return netip.Addr{}, fmt.Errorf("has %q, which is not an IP address", s)
	case a.Zone() != "":
		return netip.Addr{}, fmt.Errorf("has %q, which has a zone", s)
	case a.Is4In6():
		return netip.Addr{}, fmt.Errorf("has %q; write it as %s", s, a.Unmap())
	}
	return a, nil
}

// String returns r in the from-to form.
func (r Range) String() string { return r.From.String() + "-" + r.To.String() }

// Contains says whether a is in r.
func (r Range) Contains(a netip.Addr) bool {
	return a.BitLen() == r.From.BitLen() && r.From.Compare(a) <= 0 && a.Compare(r.To) <= 0
}
