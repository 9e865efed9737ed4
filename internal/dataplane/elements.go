package dataplane

import (
	"bytes"
	"encoding/binary"
	"errors"
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

// phases returns the edits of c in the order for where they do not all fit into one
// transaction: endpoints come before what leads to them and go after it, and what
// refuses comes last.
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
			phase := 0
			if ch.Key.Set == clusterIPSet {
				phase = 2
			}
			e := at(phase, ipfamily.Of(ch.Key.Addr), memberSets[ch.Key.Set])
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

// errForeign means that a table of ours holds what we never write, so that no edit of
// elements leads from there to what is wanted: it is made anew.
var errForeign = errors.New("an element that is not ours")

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

// take reads one element. It returns errForeign for one that we would not have written
// in just this form: an edit could not delete it.
func (r *reader) take(f ipfamily.Family, set string, e element) error {
	ours := false
	switch set {
	case mapClusterPorts, mapExternalPorts, mapNodePorts:
		ours = r.takeFrontend(f, set, e)
	case mapEndpoints:
		ours = r.takeSlot(f, e)
	case mapDispatch:
		ours = r.takeClass(f, e)
	default:
		ours = r.takeMember(f, set, e)
	}
	if !ours {
		return fmt.Errorf("%s %s has the key %x with data %x, chain %q: %w", familyName(f), set, e.key, e.data, e.goTo, errForeign)
	}
	return nil
}

func (r *reader) takeSlot(f ipfamily.Family, e element) bool {
	addrLen := int(shapeOf(f).addr.size)
	if len(e.key) != 8 || len(e.data) != addrLen+4 {
		return false
	}
	id, i := targetOf(binary.NativeEndian.Uint32(e.key)).ID, binary.NativeEndian.Uint32(e.key[4:])
	addr, _ := netip.AddrFromSlice(e.data[:addrLen])
	to := netip.AddrPortFrom(addr, binary.BigEndian.Uint16(e.data[addrLen:]))
	if i >= MaxEndpoints || !bytes.Equal(e.key, slotKeyBytes(id, i)) || !bytes.Equal(e.data, addrPortBytes(to)) {
		return false
	}
	at := SlotKey{f, id}
	for uint32(len(r.slots[at])) <= i {
		r.slots[at] = append(r.slots[at], netip.AddrPort{})
	}
	r.slots[at][i] = to
	return true
}

func (r *reader) takeClass(f ipfamily.Family, e element) bool {
	if len(e.key) != 4 {
		return false
	}
	n := binary.NativeEndian.Uint32(e.key)
	r.classes[f][n] = true
	return e.goTo == className(n)
}

func (r *reader) takeFrontend(f ipfamily.Family, set string, e element) bool {
	out := Frontend{Addr: unspecified(f)}
	for table, name := range frontendMaps {
		if name == set {
			out.Table = frontendTable(table)
		}
	}
	rest := e.key
	if out.Table != nodePortTable {
		n := int(shapeOf(f).addr.size)
		if len(rest) < n {
			return false
		}
		out.Addr, _ = netip.AddrFromSlice(rest[:n])
		rest = rest[n:]
	}
	if len(rest) != 8 || len(e.data) != 4 {
		return false
	}
	out.Protocol, out.Port = service.Protocol(rest[0]), binary.BigEndian.Uint16(rest[4:])
	r.frontends.Set(out, targetOf(binary.NativeEndian.Uint32(e.data)))
	return bytes.Equal(e.key, frontendBytes(out))
}

func (r *reader) takeMember(f ipfamily.Family, set string, e element) bool {
	n := int(shapeOf(f).addr.size)
	for i, name := range memberSets {
		if name == set && len(e.key) >= n {
			addr, _ := netip.AddrFromSlice(e.key[:n])
			m := Member{memberSet(i), addr}
			r.members.Set(m, struct{}{})
			return bytes.Equal(e.key, memberBytes(m))
		}
	}
	return false
}

func familyName(f ipfamily.Family) string {
	if f == ipfamily.IPv4 {
		return "ip"
	}
	return "ip6"
}
