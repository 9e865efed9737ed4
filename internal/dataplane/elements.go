package dataplane

import (
	"encoding/binary"
	"iter"
	"net/netip"
	"slices"

	"fairlead.dev/fairlead/internal/ipfamily"
	"fairlead.dev/fairlead/internal/persistent"
)

// setRef is where an element stands: a set of a family.
type setRef struct {
	family ipfamily.Family
	name   string
}

// edits are the elements to delete from and to add to one set.
type edits struct{ del, add elementList }

// frontendMaps and memberSets are the names of the kernel's sets.
var (
	frontendMaps = [...]string{
		clusterTable: mapClusterPorts, externalTable: mapExternalPorts, nodePortTable: mapNodePorts,
		localTable: mapLocalExternalPorts, localNodePortTable: mapLocalNodePorts,
	}
	memberSets = [...]string{
		clusterIPSet: setClusterIPs, hairpinSet: setHairpins, nodeAddrSet: setNodeAddresses,
		podSet: setPods, keptSet: setKept, serviceCIDRSet: setServiceCIDRs,
	}
)

// phases are the edits by the order for where they do not all fit into one transaction:
// endpoints come before what leads to them and go after it, what holds off comes before
// what lets in, and what refuses comes last.
type phases struct {
	sets [3]map[setRef]*edits
	len  int // entries that differ
}

func (p *phases) at(phase int, f ipfamily.Family, set string) *edits {
	e := p.sets[phase][setRef{f, set}]
	if e == nil {
		e = &edits{}
		p.sets[phase][setRef{f, set}] = e
	}
	return e
}

// phases returns the edits of c, but for its classes.
func (c Changes) phases() phases {
	out := phases{sets: [3]map[setRef]*edits{{}, {}, {}}}
	out.len = each(c.Slots(), out.changeSlot) + each(c.Handles(), out.changeHandle) +
		each(c.Frontends(), out.changeFrontend) + each(c.Fences(), out.changeFence) + each(c.Members(), out.changeMember)
	return out
}

// each calls change with every entry, and returns how many there are.
func each[T any](entries iter.Seq[T], change func(T)) (n int) {
	for e := range entries {
		change(e)
		n++
	}
	return n
}

func (p *phases) changeHandle(ch HandleChange) {
	phase := 0
	if !ch.New.IsValid() {
		phase = 2
	}
	e := p.at(phase, ch.Key.Family, mapAffinityEndpoints)
	key := native(handleWord(ch.Key.ID, ch.Handle))
	if ch.Old.IsValid() {
		e.del.append(element{key: key})
	}
	if ch.New.IsValid() {
		e.add.append(element{key: key, data: addrPortBytes(ch.New)})
	}
}

func (p *phases) changeFrontend(ch persistent.Change[Frontend, Target]) {
	e := p.at(1, ipfamily.Of(ch.Key.Addr), frontendMaps[ch.Key.Table])
	key := frontendBytes(ch.Key)
	if ch.HadOld {
		e.del.append(element{key: key})
	}
	if ch.HasNew {
		e.add.append(element{key: key, data: native(ch.New.scratch())})
	}
}

func (p *phases) changeSlot(ch SlotChange) {
	key := slotKeyBytes(ch.Key.ID, ch.Slot)
	phase := 0
	if !ch.New.Addr.IsValid() {
		phase = 2
	}
	if ch.Old.Addr.IsValid() {
		set, _ := slotElement(key, ch.Key, ch.Old)
		e := p.at(phase, ch.Key.Family, set)
		e.del.append(element{key: key})
	}
	if ch.New.Addr.IsValid() {
		set, el := slotElement(key, ch.Key, ch.New)
		e := p.at(phase, ch.Key.Family, set)
		e.add.append(el)
	}
}

// slotElement returns where a slot stands, and as what.
func slotElement(key []byte, of SlotKey, s Slot) (set string, e element) {
	if s.Handle != 0 {
		return mapAffinitySlots, element{key: key, data: native(handleWord(of.ID, s.Handle))}
	}
	return mapEndpoints, element{key: key, data: addrPortBytes(s.Addr)}
}

func (p *phases) changeFence(ch persistent.Change[Frontend, Fence]) {
	f, key := ipfamily.Of(ch.Key.Addr), frontendBytes(ch.Key)
	phase := 0
	if !ch.HasNew {
		phase = 2
	}
	change := func(set string, had, has bool) {
		switch e := p.at(phase, f, set); {
		case had && !has:
			e.del.append(element{key: key})
		case has && !had:
			e.add.append(element{key: key})
		}
	}
	change(setFenced, ch.HadOld, ch.HasNew)
	change(setBarred, ch.HadOld && ch.Old.Barred, ch.HasNew && ch.New.Barred)
	allowed := p.at(phase, f, setAllowed)
	for _, r := range ch.Old.Ranges {
		if !slices.Contains(ch.New.Ranges, r) {
			allowed.del.append(allowedElement(key, r))
		}
	}
	for _, r := range ch.New.Ranges {
		if !slices.Contains(ch.Old.Ranges, r) {
			allowed.add.append(allowedElement(key, r))
		}
	}
}

func (p *phases) changeMember(ch persistent.Change[Member, struct{}]) {
	f, phase := ipfamily.Of(ch.Key.Range.Addr()), 2
	switch {
	case ch.Key.Set == podSet, ch.Key.Set == keptSet:
		phase = 0 // both: what goes may overlap with what comes, and goes first
	case ch.HasNew && ch.Key.Set != clusterIPSet && ch.Key.Set != serviceCIDRSet:
		phase = 0
	}
	e := p.at(phase, f, memberSets[ch.Key.Set])
	if ch.HasNew {
		e.add.append(memberElements(ch.Key)...)
	} else {
		e.del.append(memberElements(ch.Key)...)
	}
}

// pad fills a field of a concatenation to whole registers.
func pad(out []byte) []byte { return append(out, make([]byte, -len(out)&3)...) }

func frontendBytes(f Frontend) []byte {
	var out []byte
	if !f.Table.withoutAddress() {
		out = f.Addr.AsSlice()
	}
	out = pad(append(out, byte(f.Protocol)))
	return pad(binary.BigEndian.AppendUint16(out, f.Port))
}

func slotKeyBytes(id, slot uint32) []byte {
	// The id stands where the rules have it, above the class.
	return binary.NativeEndian.AppendUint32(native(Target{ID: id}.scratch()), slot)
}

// handleWord is the scratch word of an endpoint that was picked.
func handleWord(id, handle uint32) uint32 { return id<<classBits | handle }

func addrPortBytes(a netip.AddrPort) []byte {
	return pad(binary.BigEndian.AppendUint16(a.Addr().AsSlice(), a.Port()))
}

// memberElements returns the one element of an address, and of a range its first
// address and the one behind its last, where there is one.
func memberElements(m Member) []element {
	first := m.Range.Addr().AsSlice()
	switch {
	case m.Set == hairpinSet:
		return []element{{key: append(first, first...)}}
	case !m.Set.ranges():
		return []element{{key: first}}
	}
	out := []element{{key: first}}
	if behind := ipfamily.Last(m.Range).Next(); behind.IsValid() {
		out = append(out, element{key: behind.AsSlice(), end: true})
	}
	return out
}

func allowedElement(frontend []byte, r netip.Prefix) element {
	return element{key: slices.Concat(frontend, r.Addr().AsSlice()), keyEnd: slices.Concat(frontend, ipfamily.Last(r).AsSlice())}
}
