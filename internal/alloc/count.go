package alloc

import (
	"encoding/binary"
	"math"
	"math/bits"
	"net/netip"
)

// Count is a number of addresses below 2^128.
type Count struct{ hi, lo uint64 }

// Minus returns c-n, and 0 where n is more than c.
func (c Count) Minus(n int) Count {
	lo, borrow := bits.Sub64(c.lo, uint64(max(n, 0)), 0)
	if borrow > c.hi {
		return Count{}
	}
	return Count{hi: c.hi - borrow, lo: lo}
}

// Int64 returns c, or the largest int64 where c does not fit: an IPv6 /64 has more
// addresses than any field of the Kubernetes API can count.
func (c Count) Int64() int64 {
	if c.hi > 0 || c.lo > math.MaxInt64 {
		return math.MaxInt64
	}
	return int64(c.lo)
}

// plus saturates at 2^128-1: all of IPv6, ::/0, has one address more.
func (c Count) plus(d Count) Count {
	lo, carry := bits.Add64(c.lo, d.lo, 0)
	hi, over := bits.Add64(c.hi, d.hi, carry)
	if over > 0 {
		return Count{hi: math.MaxUint64, lo: math.MaxUint64}
	}
	return Count{hi: hi, lo: lo}
}

// size returns how many addresses r has.
func (r Range) size() Count {
	from, to := value(r.From), value(r.To)
	lo, borrow := bits.Sub64(to.lo, from.lo, 0)
	hi, _ := bits.Sub64(to.hi, from.hi, borrow)
	return Count{hi: hi, lo: lo}.plus(Count{lo: 1})
}

func value(a netip.Addr) Count {
	raw := a.As16()
	return Count{hi: binary.BigEndian.Uint64(raw[:8]), lo: binary.BigEndian.Uint64(raw[8:])}
}
