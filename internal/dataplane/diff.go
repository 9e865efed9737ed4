package dataplane

import (
	"iter"
	"net/netip"
	"slices"

	"fairlead.dev/fairlead/internal/ipfamily"
	"fairlead.dev/fairlead/internal/persistent"
	"fairlead.dev/fairlead/internal/service"
)

// SlotChange is one slot that differs. An invalid address is no slot.
type SlotChange struct {
	Key      SlotKey
	Slot     uint32
	Old, New Slot
}

// HandleChange is one handle that differs. An invalid address is no handle.
type HandleChange struct {
	Key      SlotKey
	Handle   uint32
	Old, New netip.AddrPort
}

// Changes is what turns one Ruleset into another. What differs is found when it is asked
// for, and nowhere stored: at a start that is everything.
type Changes struct{ have, want Ruleset }

// Diff returns what turns have into want. It costs what differs, where want was
// compiled from the Program of have.
func Diff(have, want Ruleset) Changes { return Changes{have, want} }

// Frontends iterates over the frontends that differ.
func (c Changes) Frontends() iter.Seq[persistent.Change[Frontend, Target]] {
	return persistent.Diff(c.have.Frontends, c.want.Frontends, same[Target])
}

// Fences iterates over the fences that differ.
func (c Changes) Fences() iter.Seq[persistent.Change[Frontend, Fence]] {
	return persistent.Diff(c.have.Fences, c.want.Fences, Fence.equal)
}

// Members iterates over the members of sets that differ.
func (c Changes) Members() iter.Seq[persistent.Change[Member, struct{}]] {
	return persistent.Diff(c.have.Members, c.want.Members, same[struct{}])
}

// Classes returns the classes that differ.
func (c Changes) Classes() []persistent.Change[uint32, Class] {
	return slices.Collect(persistent.Diff(c.have.Classes, c.want.Classes, same[Class]))
}

// Slots iterates over the slots that differ.
func (c Changes) Slots() iter.Seq[SlotChange] {
	return func(yield func(SlotChange) bool) {
		for ch := range persistent.Diff(c.have.Slots, c.want.Slots, slices.Equal) {
			for i := range max(len(ch.Old), len(ch.New)) {
				before, after := slot(ch.Old, i), slot(ch.New, i)
				if before != after && !yield(SlotChange{Key: ch.Key, Slot: uint32(i), Old: before, New: after}) {
					return
				}
			}
		}
	}
}

// Handles iterates over the handles that differ.
func (c Changes) Handles() iter.Seq[HandleChange] {
	return func(yield func(HandleChange) bool) {
		for ch := range persistent.Diff(c.have.Slots, c.want.Slots, slices.Equal) {
			before, after := handles(ch.Old), handles(ch.New)
			for handle, addr := range before {
				if after[handle] != addr && !yield(HandleChange{ch.Key, handle, addr, after[handle]}) {
					return
				}
			}
			for handle, addr := range after {
				if !before[handle].IsValid() && !yield(HandleChange{Key: ch.Key, Handle: handle, New: addr}) {
					return
				}
			}
		}
	}
}

func same[V comparable](a, b V) bool { return a == b }

// handles returns the endpoints of slots that have a handle; nil for none.
func handles(slots []Slot) map[uint32]netip.AddrPort {
	var out map[uint32]netip.AddrPort
	for _, s := range slots {
		if s.Handle != 0 && s.Addr.IsValid() {
			if out == nil {
				out = make(map[uint32]netip.AddrPort, len(slots))
			}
			out[s.Handle] = s.Addr
		}
	}
	return out
}

func slot(slots []Slot, i int) Slot {
	if i < len(slots) {
		return slots[i]
	}
	return Slot{}
}

// Adopt returns a Program to compile s from that keeps the ids, slots and classes which
// the kernel's have shows for the Services of s, so that an agent that starts anew
// changes only what differs.
func Adopt(have Ruleset, s *service.Snapshot) Program {
	ids, taken, slots := Program{}.ids.Edit(), Program{}.taken.Edit(), Ruleset{}.Slots.Edit()
	var lastID uint32
	for _, svc := range s.Services.All() {
		for i := range svc.Ports {
			id, ok := idIn(have, svc, &svc.Ports[i])
			if _, twice := taken.Get(id); !ok || twice {
				continue
			}
			key := keyOf(svc, &svc.Ports[i])
			ids.Set(key, id)
			taken.Set(id, key)
			lastID = max(lastID, id)
			for _, f := range ipfamily.All {
				for _, local := range []bool{false, true} {
					at := SlotKey{f, setID(id, local)}
					if old, ok := have.Slots.Get(at); ok {
						slots.Set(at, old)
					}
				}
			}
		}
	}
	numbers := Program{}.numbers.Edit()
	for n, class := range have.Classes.All() {
		numbers.Set(class, n)
	}
	return Program{
		Ruleset: Ruleset{Slots: slots.Map(), Classes: have.Classes},
		ids:     ids.Map(), taken: taken.Map(), lastID: lastID, numbers: numbers.Map(),
	}
}

// idIn returns the id that have knows the port by: that of its first ClusterIP, which
// no two Services share.
func idIn(have Ruleset, svc *service.Service, p *service.Port) (uint32, bool) {
	if len(svc.ClusterIPs) == 0 {
		return 0, false
	}
	t, ok := have.Frontends.Get(Frontend{clusterTable, svc.ClusterIPs[0], p.Protocol, p.Port})
	return t.ID >> 1, ok && t.ID>>1 != 0
}
