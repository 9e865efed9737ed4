package dataplane

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"fairlead.dev/fairlead/internal/ipfamily"
	"fairlead.dev/fairlead/internal/persistent"
	"fairlead.dev/fairlead/internal/service"
)

// setRef is where an element stands: a set of a family.
type setRef struct {
	family ipfamily.Family
	name   string
}

// edits are the elements to delete from and to add to one set.
type edits struct{ del, add []element }

// frontendMaps and memberSets are the names of the kernel's sets.
var (
	frontendMaps = [...]string{clusterTable: mapClusterPorts, externalTable: mapExternalPorts, nodePortTable: mapNodePorts}
	memberSets   = [...]string{clusterIPSet: setClusterIPs, hairpinSet: setHairpins, nodeAddrSet: setNodeAddresses}
)

// phases returns the edits of c in an order in which every step leaves rules that work,
// for where they do not all fit into one transaction: endpoints come before what leads
// to them, and go after it.
func (c Changes) phases() [3]map[setRef]*edits {
	out := [3]map[setRef]*edits{{}, {}, {}}
	at := func(phase int, f ipfamily.Family, name string) *edits {
		e := out[phase][setRef{f, name}]
		if e == nil {
			e = &edits{}
			out[phase][setRef{f, name}] = e
		}
		return e
	}
	for _, ch := range c.Slots {
		key := slotKeyBytes(ch.Key.ID, ch.Slot)
		phase := 0
		if !ch.New.IsValid() {
			phase = 2
		}
		e := at(phase, ch.Key.Family, mapEndpoints)
		if ch.Old.IsValid() {
			e.del = append(e.del, element{key: key})
		}
		if ch.New.IsValid() {
			e.add = append(e.add, element{key: key, data: addrPortBytes(ch.New)})
		}
	}
	for _, ch := range c.Frontends {
		e := at(1, ipfamily.Of(ch.Key.Addr), frontendMaps[ch.Key.Table])
		key := frontendBytes(ch.Key)
		if ch.HadOld {
			e.del = append(e.del, element{key: key})
		}
		if ch.HasNew {
			e.add = append(e.add, element{key: key, data: native(ch.New.scratch())})
		}
	}
	for _, ch := range c.Members {
		el := element{key: memberBytes(ch.Key)}
		if ch.HasNew {
			e := at(0, ipfamily.Of(ch.Key.Addr), memberSets[ch.Key.Set])
			e.add = append(e.add, el)
		} else {
			e := at(2, ipfamily.Of(ch.Key.Addr), memberSets[ch.Key.Set])
			e.del = append(e.del, el)
		}
	}
	return out
}

// pad fills a field of a concatenation to whole registers.
func pad(out []byte) []byte { return append(out, make([]byte, -len(out)&3)...) }

func frontendBytes(f Frontend) []byte {
	var out []byte
	if f.Table != nodePortTable {
		out = f.Addr.AsSlice()
	}
	out = pad(append(out, byte(f.Protocol)))
	return pad(binary.BigEndian.AppendUint16(out, f.Port))
}

func slotKeyBytes(id, slot uint32) []byte {
	// The id stands where the rules have it, above the number of endpoints.
	return binary.NativeEndian.AppendUint32(native(Target{ID: id}.scratch()), slot)
}

func addrPortBytes(a netip.AddrPort) []byte {
	return pad(binary.BigEndian.AppendUint16(a.Addr().AsSlice(), a.Port()))
}

func memberBytes(m Member) []byte {
	out := m.Addr.AsSlice()
	if m.Set == hairpinSet {
		out = append(out, out...)
	}
	return out
}

// reader makes a Ruleset out of the elements that the kernel lists.
type reader struct {
	frontends *persistent.Edit[Frontend, Target]
	members   *persistent.Edit[Member, struct{}]
	slots     map[SlotKey][]netip.AddrPort
	classes   map[ipfamily.Family]map[uint32]bool
}

func newReader() *reader {
	r := &reader{
		frontends: Ruleset{}.Frontends.Edit(), members: Ruleset{}.Members.Edit(),
		slots: map[SlotKey][]netip.AddrPort{}, classes: map[ipfamily.Family]map[uint32]bool{},
	}
	for _, f := range ipfamily.All {
		r.classes[f] = map[uint32]bool{}
	}
	return r
}

func (r *reader) ruleset() Ruleset {
	slots := Ruleset{}.Slots.Edit()
	for k, v := range r.slots {
		slots.Set(k, v)
	}
	return Ruleset{Frontends: r.frontends.Map(), Slots: slots.Map(), Members: r.members.Map()}
}

// take reads one element. It returns an error for one that is none of ours in form; the
// table is made anew then.
func (r *reader) take(f ipfamily.Family, set string, key, data []byte) error {
	addrLen := int(shapeOf(f).addr.size)
	malformed := fmt.Errorf("element of %s %s has key %x, data %x", familyName(f), set, key, data)
	switch set {
	case mapClusterPorts, mapExternalPorts, mapNodePorts:
		return r.takeFrontend(f, set, key, data, malformed)
	case mapEndpoints:
		if len(key) != 8 || len(data) != addrLen+4 {
			return malformed
		}
		at := SlotKey{f, targetOf(binary.NativeEndian.Uint32(key)).ID}
		i := binary.NativeEndian.Uint32(key[4:])
		if i >= MaxEndpoints {
			return malformed
		}
		for uint32(len(r.slots[at])) <= i {
			r.slots[at] = append(r.slots[at], netip.AddrPort{})
		}
		addr, _ := netip.AddrFromSlice(data[:addrLen])
		r.slots[at][i] = netip.AddrPortFrom(addr, binary.BigEndian.Uint16(data[addrLen:]))
	case mapDispatch:
		if len(key) != 4 {
			return malformed
		}
		r.classes[f][binary.NativeEndian.Uint32(key)] = true
	default:
		return r.takeMember(set, key, addrLen, malformed)
	}
	return nil
}

func (r *reader) takeFrontend(f ipfamily.Family, set string, key, data []byte, malformed error) error {
	out := Frontend{Addr: unspecified(f)}
	for table, name := range frontendMaps {
		if name == set {
			out.Table = frontendTable(table)
		}
	}
	if out.Table != nodePortTable {
		n := int(shapeOf(f).addr.size)
		if len(key) < n {
			return malformed
		}
		out.Addr, _ = netip.AddrFromSlice(key[:n])
		key = key[n:]
	}
	if len(key) != 8 || len(data) != 4 {
		return malformed
	}
	out.Protocol, out.Port = service.Protocol(key[0]), binary.BigEndian.Uint16(key[4:])
	r.frontends.Set(out, targetOf(binary.NativeEndian.Uint32(data)))
	return nil
}

func (r *reader) takeMember(set string, key []byte, addrLen int, malformed error) error {
	for i, name := range memberSets {
		if name == set && len(key) >= addrLen {
			addr, _ := netip.AddrFromSlice(key[:addrLen])
			r.members.Set(Member{memberSet(i), addr}, struct{}{})
			return nil
		}
	}
	return malformed
}

func familyName(f ipfamily.Family) string {
	if f == ipfamily.IPv4 {
		return "ip"
	}
	return "ip6"
}
