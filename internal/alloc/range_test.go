package alloc_test

import (
	"math"
	"net/netip"
	"testing"

	"fairlead.dev/fairlead/internal/alloc"
	"fairlead.dev/fairlead/internal/ipfamily"
)

func TestParseRange(t *testing.T) {
	for name, tc := range map[string]struct{ in, want, err string }{
		"an IPv4 CIDR":           {in: "192.0.2.0/30", want: "192.0.2.0-192.0.2.3"},
		"an IPv6 CIDR":           {in: "2001:db8::/126", want: "2001:db8::-2001:db8::3"},
		"a CIDR within a byte":   {in: "192.0.2.128/27", want: "192.0.2.128-192.0.2.159"},
		"one IPv4 address":       {in: "192.0.2.7/32", want: "192.0.2.7-192.0.2.7"},
		"all of IPv6":            {in: "::/0", want: "::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"},
		"an IPv4 range":          {in: "192.0.2.9-192.0.2.10", want: "192.0.2.9-192.0.2.10"},
		"an IPv6 range":          {in: "2001:DB8::f-2001:db8::10", want: "2001:db8::f-2001:db8::10"},
		"a range of one address": {in: "::1-::1", want: "::1-::1"},

		"nothing":                   {in: "", err: "is neither a CIDR such as 192.0.2.0/24 nor a range such as 192.0.2.10-192.0.2.20"},
		"a bare IPv4 address":       {in: "192.0.2.7", err: "is one address; write it as 192.0.2.7/32"},
		"a bare IPv6 address":       {in: "2001:db8::7", err: "is one address; write it as 2001:db8::7/128"},
		"a word":                    {in: "banana", err: "is neither a CIDR such as 192.0.2.0/24 nor a range such as 192.0.2.10-192.0.2.20"},
		"a CIDR of a word":          {in: "banana/24", err: `has "banana", which is not an IP address`},
		"an IPv4 prefix too long":   {in: "192.0.2.0/33", err: `has the prefix length "33", which is not between 0 and 32`},
		"an IPv6 prefix too long":   {in: "2001:db8::/129", err: `has the prefix length "129", which is not between 0 and 128`},
		"a CIDR without a length":   {in: "192.0.2.0/", err: `has the prefix length "", which is not between 0 and 32`},
		"IPv4 host bits":            {in: "192.0.2.5/24", err: "has bits beyond its prefix length; did you mean 192.0.2.0/24?"},
		"IPv6 host bits":            {in: "2001:db8::1/64", err: "has bits beyond its prefix length; did you mean 2001:db8::/64?"},
		"a reversed IPv4 range":     {in: "192.0.2.10-192.0.2.9", err: "is a reversed range; did you mean 192.0.2.9-192.0.2.10?"},
		"a reversed IPv6 range":     {in: "2001:db8::10-2001:db8::f", err: "is a reversed range; did you mean 2001:db8::f-2001:db8::10?"},
		"mixed families":            {in: "192.0.2.1-2001:db8::1", err: "mixes IPv4 and IPv6"},
		"three ends":                {in: "192.0.2.1-192.0.2.2-192.0.2.3", err: `has "192.0.2.2-192.0.2.3", which is not an IP address`},
		"a zone":                    {in: "fe80::1%eth0-fe80::2%eth0", err: `has "fe80::1%eth0", which has a zone`},
		"IPv4 written as IPv6":      {in: "::ffff:192.0.2.1-::ffff:192.0.2.2", err: `has "::ffff:192.0.2.1"; write it as 192.0.2.1`},
		"a CIDR written as IPv6":    {in: "::ffff:192.0.2.0/120", err: `has "::ffff:192.0.2.0"; write it as 192.0.2.0`},
		"spaces are not a spelling": {in: "192.0.2.1 - 192.0.2.2", err: `has "192.0.2.1 ", which is not an IP address`},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := alloc.ParseRange(tc.in)
			if tc.err != "" {
				if err == nil || err.Error() != tc.err {
					t.Fatalf("ParseRange(%q) = %v, %v; want the error %q", tc.in, got, err, tc.err)
				}
				return
			}
			if err != nil || got.String() != tc.want {
				t.Errorf("ParseRange(%q) = %v, %v; want %s", tc.in, got, err, tc.want)
			}
		})
	}
}

func FuzzParseRange(f *testing.F) {
	for _, s := range []string{"192.0.2.0/24", "2001:db8::/64", "192.0.2.1-192.0.2.9", "::-::1", "1.2.3.4", "/", "-", "::ffff:1.2.3.4-::ffff:1.2.3.5"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := alloc.ParseRange(s)
		if err != nil {
			return
		}
		if !r.From.IsValid() || r.From.BitLen() != r.To.BitLen() || r.To.Less(r.From) || r.From.Zone()+r.To.Zone() != "" {
			t.Fatalf("ParseRange(%q) = %v, which is no range", s, r)
		}
		again, err := alloc.ParseRange(r.String())
		if err != nil || again != r {
			t.Errorf("ParseRange(%q) = %v, which parses as %v, %v", s, r, again, err)
		}
		if p, err := netip.ParsePrefix(s); err == nil && (!p.Contains(r.To) || p.Contains(r.To.Next()) || p.Addr() != r.From) {
			t.Errorf("ParseRange(%q) = %v, not the addresses of the prefix", s, r)
		}
	})
}

func TestCount(t *testing.T) {
	for _, tc := range []struct {
		ranges  []string
		v4, v6  int64
		taken   int
		v6After int64
	}{
		{ranges: nil},
		{ranges: []string{"192.0.2.0/28", "192.0.2.8-192.0.2.19"}, v4: 20},
		{ranges: []string{"0.0.0.0/0", "2001:db8::/112"}, v4: 1 << 32, v6: 1 << 16, taken: 6, v6After: 1<<16 - 6},
		{ranges: []string{"2001:db8::/65"}, v6: math.MaxInt64, taken: 3, v6After: math.MaxInt64 - 2},
		{ranges: []string{"2001:db8::/64"}, v6: math.MaxInt64, taken: 3, v6After: math.MaxInt64},
		{ranges: []string{"::/1", "8000::/1"}, v6: math.MaxInt64, taken: 3, v6After: math.MaxInt64},
		{ranges: []string{"2001:db8::/126"}, v6: 4, taken: 5},
	} {
		set := setOf(t, tc.ranges...)
		v6 := set.Count(ipfamily.IPv6)
		if got := set.Count(ipfamily.IPv4).Int64(); got != tc.v4 {
			t.Errorf("%v: %d IPv4 addresses, want %d", tc.ranges, got, tc.v4)
		}
		if v6.Int64() != tc.v6 {
			t.Errorf("%v: %d IPv6 addresses, want %d", tc.ranges, v6.Int64(), tc.v6)
		}
		if got := v6.Minus(tc.taken).Int64(); got != tc.v6After {
			t.Errorf("%v: %d IPv6 addresses without %d, want %d", tc.ranges, got, tc.taken, tc.v6After)
		}
	}
}

func setOf(t testing.TB, ranges ...string) alloc.Set {
	t.Helper()
	var parsed []alloc.Range
	for _, s := range ranges {
		r, err := alloc.ParseRange(s)
		if err != nil {
			t.Fatalf("%q %v", s, err)
		}
		parsed = append(parsed, r)
	}
	return alloc.NewSet(parsed...)
}
