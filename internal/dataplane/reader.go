package dataplane

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"fairlead.dev/fairlead/internal/ipfamily"
	"fairlead.dev/fairlead/internal/persistent"
	"fairlead.dev/fairlead/internal/service"
)

// errForeign means that a table of ours holds what we never write, so that no edit of
// elements leads from there to what is wanted: it is made anew.
var errForeign = errors.New("an element that is not ours")

// reader makes a Ruleset out of the elements that the kernel lists.
type reader struct {
	frontends *persistent.Edit[Frontend, Target]
	members   *persistent.Edit[Member, struct{}]
	slots     map[SlotKey][]Slot
	endpoints map[SlotKey]map[uint32]netip.AddrPort // of handles
	fences    map[Frontend]Fence
	fenced    map[Frontend]bool
	classes   [len(ipfamily.All)]map[uint32]string // by number, the chain
	bounds    map[memberSet][]bound                // of both families
}

func newReader() *reader {
	r := &reader{
		frontends: Ruleset{}.Frontends.Edit(), members: Ruleset{}.Members.Edit(),
		slots: map[SlotKey][]Slot{}, endpoints: map[SlotKey]map[uint32]netip.AddrPort{},
		fences: map[Frontend]Fence{}, fenced: map[Frontend]bool{}, bounds: map[memberSet][]bound{},
	}
	for _, f := range ipfamily.All {
		r.classes[f] = map[uint32]string{}
	}
	return r
}

// ruleset returns what was read. It returns errForeign where parts do not fit together.
func (r *reader) ruleset() (Ruleset, error) {
	if err := r.resolveBounds(); err != nil {
		return Ruleset{}, err
	}
	slots, fences, classes := Ruleset{}.Slots.Edit(), Ruleset{}.Fences.Edit(), Ruleset{}.Classes.Edit()
	for k, v := range r.slots {
		if !r.resolve(k, v) {
			return Ruleset{}, fmt.Errorf("the handles of %s set %d: %w", familyName(k.Family), k.ID, errForeign)
		}
		slots.Set(k, v)
	}
	for f, fence := range r.fences {
		if !r.fenced[f] {
			return Ruleset{}, fmt.Errorf("sources of %s port %d, which has no fence: %w", f.Addr, f.Port, errForeign)
		}
		slices.SortFunc(fence.Ranges, netip.Prefix.Compare)
		fences.Set(f, fence)
	}
	for f := range r.fenced {
		if _, ok := r.fences[f]; !ok {
			fences.Set(f, Fence{})
		}
	}
	if !maps.Equal(r.classes[ipfamily.IPv4], r.classes[ipfamily.IPv6]) {
		return Ruleset{}, fmt.Errorf("the families have other numbers for ways to pick endpoints: %w", errForeign)
	}
	for n, chain := range r.classes[ipfamily.IPv4] {
		if n < firstClass {
			continue
		}
		class, ok := classOf(chain)
		if !ok {
			return Ruleset{}, fmt.Errorf("chain %s: %w", chain, errForeign)
		}
		classes.Set(n, class)
	}
	return Ruleset{
		Frontends: r.frontends.Map(), Members: r.members.Map(),
		Slots: slots.Map(), Fences: fences.Map(), Classes: classes.Map(),
	}, nil
}

// resolve gives slots the endpoints of their handles, and says whether all handles are
// used.
func (r *reader) resolve(key SlotKey, slots []Slot) bool {
	used := map[uint32]bool{}
	for i, s := range slots {
		if s.Handle == 0 {
			continue
		}
		addr, ok := r.endpoints[key][s.Handle]
		if !ok {
			return false
		}
		slots[i].Addr, used[s.Handle] = addr, true
	}
	return len(used) == len(r.endpoints[key])
}

// take reads one element. It returns errForeign for one that we would not have written
// in just this form: an edit could not delete it.
func (r *reader) take(f ipfamily.Family, set string, e element) error {
	ours := false
	switch set {
	case mapEndpoints, mapAffinitySlots:
		ours = r.takeSlot(f, set, e)
	case mapAffinityEndpoints:
		ours = r.takeHandle(f, e)
	case mapDispatch:
		ours = r.takeClass(f, e)
	case setFenced, setAllowed, setBarred:
		ours = r.takeFence(f, set, e)
	default:
		if table := slices.Index(frontendMaps[:], set); table >= 0 {
			ours = r.takeFrontend(f, frontendTable(table), e)
		} else if at := slices.Index(memberSets[:], set); at >= 0 {
			ours = r.takeMember(f, memberSet(at), e)
		}
	}
	if !ours {
		return fmt.Errorf("%s %s has the key %x with data %x, chain %q: %w", familyName(f), set, e.key, e.data, e.goTo, errForeign)
	}
	return nil
}

func (r *reader) takeSlot(f ipfamily.Family, set string, e element) bool {
	if len(e.key) != 8 {
		return false
	}
	at, i := SlotKey{f, targetOf(binary.NativeEndian.Uint32(e.key)).ID}, binary.NativeEndian.Uint32(e.key[4:])
	if i >= MaxEndpoints || !bytes.Equal(e.key, slotKeyBytes(at.ID, i)) {
		return false
	}
	var s Slot
	if set == mapEndpoints {
		to, ok := endpointOf(f, e.data)
		if !ok {
			return false
		}
		s.Addr = to
	} else {
		if len(e.data) != 4 {
			return false
		}
		word := targetOf(binary.NativeEndian.Uint32(e.data))
		if s.Handle = word.Class; word.ID != at.ID || s.Handle == 0 {
			return false
		}
	}
	for uint32(len(r.slots[at])) <= i {
		r.slots[at] = append(r.slots[at], Slot{})
	}
	if r.slots[at][i] != (Slot{}) {
		return false // with and without affinity at once
	}
	r.slots[at][i] = s
	return true
}

func endpointOf(f ipfamily.Family, data []byte) (netip.AddrPort, bool) {
	n := int(shapeOf(f).addr.size)
	if len(data) != n+4 {
		return netip.AddrPort{}, false
	}
	addr, _ := netip.AddrFromSlice(data[:n])
	to := netip.AddrPortFrom(addr, binary.BigEndian.Uint16(data[n:]))
	return to, bytes.Equal(data, addrPortBytes(to))
}

func (r *reader) takeHandle(f ipfamily.Family, e element) bool {
	to, ok := endpointOf(f, e.data)
	if !ok || len(e.key) != 4 {
		return false
	}
	word := targetOf(binary.NativeEndian.Uint32(e.key))
	at := SlotKey{f, word.ID}
	if r.endpoints[at] == nil {
		r.endpoints[at] = map[uint32]netip.AddrPort{}
	}
	r.endpoints[at][word.Class] = to
	if r.slots[at] == nil {
		r.slots[at] = []Slot{} // so that ruleset meets handles without slots
	}
	return true
}

func (r *reader) takeClass(f ipfamily.Family, e element) bool {
	if len(e.key) != 4 {
		return false
	}
	n := binary.NativeEndian.Uint32(e.key)
	r.classes[f][n] = e.goTo
	return n >= firstClass || e.goTo == standardChain(n)
}

func (r *reader) takeFrontend(f ipfamily.Family, table frontendTable, e element) bool {
	front, rest, ok := frontendOf(f, table, e.key)
	if !ok || len(rest) > 0 || len(e.data) != 4 {
		return false
	}
	r.frontends.Set(front, targetOf(binary.NativeEndian.Uint32(e.data)))
	return true
}

// frontendOf reads what frontendBytes writes, and returns what stands behind it.
func frontendOf(f ipfamily.Family, table frontendTable, key []byte) (out Frontend, rest []byte, ok bool) {
	out, rest = Frontend{Table: table, Addr: unspecified(f)}, key
	if !table.withoutAddress() {
		n := int(shapeOf(f).addr.size)
		if len(rest) < n {
			return out, nil, false
		}
		out.Addr, _ = netip.AddrFromSlice(rest[:n])
		rest = rest[n:]
	}
	if len(rest) < 8 {
		return out, nil, false
	}
	out.Protocol, out.Port = service.Protocol(rest[0]), binary.BigEndian.Uint16(rest[4:])
	rest = rest[8:]
	return out, rest, bytes.Equal(key[:len(key)-len(rest)], frontendBytes(out))
}

func (r *reader) takeFence(f ipfamily.Family, set string, e element) bool {
	front, rest, ok := frontendOf(f, externalTable, e.key)
	if !ok {
		return false
	}
	if set == setFenced {
		r.fenced[front] = true
		return len(rest) == 0
	}
	fence := r.fences[front]
	defer func() { r.fences[front] = fence }()
	if set == setBarred {
		fence.Barred = true
		return len(rest) == 0
	}
	first, ok1 := netip.AddrFromSlice(rest)
	_, end, ok2 := frontendOf(f, externalTable, e.keyEnd)
	behind, ok3 := netip.AddrFromSlice(end)
	if !ok1 || !ok2 || !ok3 {
		return false
	}
	p, ok := prefixOf(first, behind)
	fence.Ranges = append(fence.Ranges, p)
	return ok
}

// prefixOf returns the prefix from first to last.
func prefixOf(first, end netip.Addr) (netip.Prefix, bool) {
	for bits := range first.BitLen() + 1 {
		if p := netip.PrefixFrom(first, bits); p.Masked() == p && ipfamily.Last(p) == end {
			return p, true
		}
	}
	return netip.Prefix{}, false
}

func (r *reader) takeMember(f ipfamily.Family, set memberSet, e element) bool {
	n := int(shapeOf(f).addr.size)
	if len(e.key) < n {
		return false
	}
	addr, _ := netip.AddrFromSlice(e.key[:n])
	if set.ranges() {
		r.bounds[set] = append(r.bounds[set], bound{addr, e.end})
		return true
	}
	m := Member{set, netip.PrefixFrom(addr, addr.BitLen())}
	r.members.Set(m, struct{}{})
	return bytes.Equal(e.key, memberElements(m)[0].key)
}

// bound is where a range begins, or the first address behind its end.
type bound struct {
	addr netip.Addr
	end  bool
}

func (r *reader) resolveBounds() error {
	for set, bounds := range r.bounds {
		if !r.resolveRanges(set, bounds) {
			return fmt.Errorf("the ranges of set %s: %w", memberSets[set], errForeign)
		}
	}
	return nil
}

// resolveRanges makes ranges of their bounds, which kernels list in one order or the
// other. It returns false for what is no prefix.
func (r *reader) resolveRanges(set memberSet, bounds []bound) bool {
	slices.SortFunc(bounds, func(a, b bound) int {
		if c := a.addr.Compare(b.addr); c != 0 || a.end == b.end {
			return c
		}
		if a.end {
			return -1 // one range ends where the next begins
		}
		return 1
	})
	for i := 0; i < len(bounds); i++ {
		from := bounds[i]
		until := ipfamily.Last(netip.PrefixFrom(from.addr, 0)) // none is behind the highest address
		if i+1 < len(bounds) && bounds[i+1].end && bounds[i+1].addr.BitLen() == from.addr.BitLen() {
			i++
			until = bounds[i].addr.Prev()
		}
		p, ok := prefixOf(from.addr, until)
		if from.end || !ok {
			return false
		}
		r.members.Set(Member{set, p}, struct{}{})
	}
	return true
}

func familyName(f ipfamily.Family) string {
	if f == ipfamily.IPv4 {
		return "ip"
	}
	return "ip6"
}
