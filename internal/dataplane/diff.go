package dataplane

import (
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

// Changes is what turns one Ruleset into another.
type Changes struct {
	Frontends []persistent.Change[Frontend, Target]
	Fences    []persistent.Change[Frontend, Fence]
	Slots     []SlotChange
	Handles   []HandleChange
	Members   []persistent.Change[Member, struct{}]
	Classes   []persistent.Change[uint32, Class]
}

// Len returns the number of entries that differ.
func (c Changes) Len() int {
	return len(c.Frontends) + len(c.Fences) + len(c.Slots) + len(c.Handles) + len(c.Members) + len(c.Classes)
}

// Diff returns what turns have into want. It costs what differs, where want was
// compiled from the Program of have.
func Diff(have, want Ruleset) Changes {
	return Changes{
		Frontends: collect(have.Frontends, want.Frontends, same[Target]),
		Fences:    collect(have.Fences, want.Fences, Fence.equal),
		Members:   collect(have.Members, want.Members, same[struct{}]),
		Classes:   collect(have.Classes, want.Classes, same[Class]),
	}.withSlots(have, want)
}

func same[V comparable](a, b V) bool { return a == b }

func collect[K comparable, V any](have, want persistent.Map[K, V], equal func(a, b V) bool) []persistent.Change[K, V] {
	return slices.Collect(persistent.Diff(have, want, equal))
}

func (c Changes) withSlots(have, want Ruleset) Changes {
	for ch := range persistent.Diff(have.Slots, want.Slots, slices.Equal) {
		for i := range max(len(ch.Old), len(ch.New)) {
			if before, after := slot(ch.Old, i), slot(ch.New, i); before != after {
				c.Slots = append(c.Slots, SlotChange{Key: ch.Key, Slot: uint32(i), Old: before, New: after})
			}
		}
		before, after := handles(ch.Old), handles(ch.New)
		for handle, addr := range before {
			if after[handle] != addr {
				c.Handles = append(c.Handles, HandleChange{ch.Key, handle, addr, after[handle]})
			}
		}
		for handle, addr := range after {
			if !before[handle].IsValid() {
				c.Handles = append(c.Handles, HandleChange{Key: ch.Key, Handle: handle, New: addr})
			}
		}
	}
	return c
}

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
