package dataplane

import (
	"net/netip"
	"slices"

	"fairlead.dev/fairlead/internal/ipfamily"
	"fairlead.dev/fairlead/internal/persistent"
	"fairlead.dev/fairlead/internal/service"
)

// SlotChange is one endpoint slot that differs. An invalid address is no slot.
type SlotChange struct {
	Key      SlotKey
	Slot     uint32
	Old, New netip.AddrPort
}

// Changes is what turns one Ruleset into another.
type Changes struct {
	Frontends []persistent.Change[Frontend, Target]
	Slots     []SlotChange
	Members   []persistent.Change[Member, struct{}]
}

// Len returns the number of elements that differ.
func (c Changes) Len() int { return len(c.Frontends) + len(c.Slots) + len(c.Members) }

// Diff returns what turns have into want. It costs what differs, where want was
// compiled from the Program of have.
func Diff(have, want Ruleset) Changes {
	var out Changes
	for ch := range persistent.Diff(have.Frontends, want.Frontends, func(a, b Target) bool { return a == b }) {
		out.Frontends = append(out.Frontends, ch)
	}
	for ch := range persistent.Diff(have.Slots, want.Slots, slices.Equal) {
		for i := range max(len(ch.Old), len(ch.New)) {
			if before, after := slot(ch.Old, i), slot(ch.New, i); before != after {
				out.Slots = append(out.Slots, SlotChange{Key: ch.Key, Slot: uint32(i), Old: before, New: after})
			}
		}
	}
	for ch := range persistent.Diff(have.Members, want.Members, func(_, _ struct{}) bool { return true }) {
		out.Members = append(out.Members, ch)
	}
	return out
}

func slot(slots []netip.AddrPort, i int) netip.AddrPort {
	if i < len(slots) {
		return slots[i]
	}
	return netip.AddrPort{}
}

// Adopt returns a Program to compile s from that keeps the ids and slots which the
// kernel's have shows for the Services of s, so that an agent that starts anew changes
// only what differs.
func Adopt(have Ruleset, s *service.Snapshot) Program {
	ids, taken, slots := Program{}.ids.Edit(), Program{}.taken.Edit(), Ruleset{}.Slots.Edit()
	var last uint32
	for _, svc := range s.Services.All() {
		for i := range svc.Ports {
			id, ok := idIn(have, svc, &svc.Ports[i])
			if _, twice := taken.Get(id); !ok || twice {
				continue
			}
			key := keyOf(svc, &svc.Ports[i])
			ids.Set(key, id)
			taken.Set(id, key)
			last = max(last, id)
			for _, f := range ipfamily.All {
				if old, ok := have.Slots.Get(SlotKey{f, id}); ok {
					slots.Set(SlotKey{f, id}, old)
				}
			}
		}
	}
	return Program{Ruleset: Ruleset{Slots: slots.Map()}, ids: ids.Map(), taken: taken.Map(), lastID: last}
}

// idIn returns the id that have knows the port by: that of its first ClusterIP, which
// no two Services share.
func idIn(have Ruleset, svc *service.Service, p *service.Port) (uint32, bool) {
	if len(svc.ClusterIPs) == 0 {
		return 0, false
	}
	t, ok := have.Frontends.Get(Frontend{clusterTable, svc.ClusterIPs[0], p.Protocol, p.Port})
	return t.ID, ok && t.ID != 0
}
