package dataplane

import (
	"encoding/binary"
	"hash/fnv"
	"net/netip"

	"fairlead.dev/fairlead/internal/service"
)

// Sizes of the table of a Service with scheduler maglev: prime numbers, so that every
// step of a permutation meets all slots. With so many endpoints of equal weight at the
// most, the shares of any two differ by some 10% (Eisenbud et al., Maglev, NSDI 2016,
// section 5.3, has 1% at 100 slots for each).
const (
	maglevSmall          = 1021
	maglevSmallEndpoints = 32
	maglevLarge          = 8191
)

// spread returns the address of every slot that the scheduler wants, in order: as often
// as an endpoint's weight says, or less where these would be too many slots, but once.
func spread(s service.Scheduler, backends []service.Backend) []netip.AddrPort {
	divisor, total := 0, 0
	for _, b := range backends {
		divisor = gcd(divisor, int(max(b.Weight, 1)))
	}
	for _, b := range backends {
		total += int(max(b.Weight, 1)) / divisor
	}
	var out []netip.AddrPort
	for _, b := range backends {
		turns := int(max(b.Weight, 1)) / divisor
		if total > MaxEndpoints {
			turns = 1 + (turns-1)*max(MaxEndpoints-len(backends), 0)/max(total-len(backends), 1)
		}
		for range turns {
			out = append(out, b.Addr)
		}
	}
	if s == service.Maglev && len(out) > 1 {
		return maglev(out)
	}
	return out
}

func gcd(a, b int) int {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

// maglev fills a table with addresses, each as often as it is named in turns, such that
// one that comes or goes moves few of the others (Eisenbud et al., NSDI 2016, section
// 3.4). It depends on the addresses alone, not on what was there before.
func maglev(turns []netip.AddrPort) []netip.AddrPort {
	size := uint64(maglevSmall)
	if len(turns) > maglevSmallEndpoints {
		size = maglevLarge
	}
	if uint64(len(turns)) >= size {
		return turns // more endpoints than slots: a plain hash
	}
	out := make([]netip.AddrPort, size)
	walks := map[netip.AddrPort]*walk{}
	for _, a := range turns {
		walks[a] = newWalk(a, size)
	}
	for filled := uint64(0); ; {
		for _, a := range turns {
			w := walks[a]
			for out[w.at].IsValid() {
				w.step(size)
			}
			out[w.at] = a
			if filled++; filled == size {
				return out
			}
		}
	}
}

// walk is the way of an address through the table: it meets every slot once.
type walk struct{ at, skip uint64 }

func (w *walk) step(size uint64) { w.at = (w.at + w.skip) % size }

func newWalk(a netip.AddrPort, size uint64) *walk {
	h := fnv.New128a()
	raw, _ := a.MarshalBinary() // an address never fails, nor does a hash
	_, _ = h.Write(raw)
	sum := h.Sum(nil)
	return &walk{
		at:   scramble(binary.BigEndian.Uint64(sum)) % size,
		skip: scramble(binary.BigEndian.Uint64(sum[8:]))%(size-1) + 1,
	}
}

// scramble spreads what differs in few bits over all (the finalizer of MurmurHash3).
func scramble(x uint64) uint64 {
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	x *= 0xc4ceb9fe1a85ec53
	return x ^ x>>33
}
