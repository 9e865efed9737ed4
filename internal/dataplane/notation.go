package dataplane

import (
	"fmt"
	"net/netip"
	"strings"

	"fairlead.dev/fairlead/internal/service"
)

func (e *explainer) element(f Frontend, t Target) {
	chain, _, _ := e.in.class(t.Class)
	e.Elements = append(e.Elements, Element{
		Set: "map " + frontendMaps[f.Table], Text: f.nft() + " : " + classID(t.scratch()), Chain: chain,
	})
}

func (e *explainer) fenceElements(f Frontend, fence Fence) {
	e.Elements = append(e.Elements, Element{Set: "set " + setFenced, Text: f.nft()})
	for _, r := range fence.Ranges {
		text := r.String()
		if r.IsSingleIP() {
			text = r.Addr().String()
		}
		e.Elements = append(e.Elements, Element{Set: "set " + setAllowed, Text: f.nft() + " . " + text})
	}
	if fence.Barred {
		e.Elements = append(e.Elements, Element{Set: "set " + setBarred, Text: f.nft()})
	}
}

// slotElement names the first of a set's slots: the others follow.
func (e *explainer) slotElement(s EndpointSet) {
	slots, _ := e.in.Ruleset.Slots.Get(SlotKey{e.family(), s.ID})
	if len(slots) == 0 || !slots[0].Addr.IsValid() {
		return
	}
	first := slots[0]
	text, set := endpointNFT(first.Addr), mapEndpoints
	if first.Handle != 0 {
		text, set = classID(handleWord(s.ID, first.Handle)), mapAffinitySlots
	}
	e.Elements = append(e.Elements, Element{
		Set: "map " + set, Text: fmt.Sprintf("%s . 0x%08x : %s", classID(Target{ID: s.ID}.scratch()), 0, text),
	})
	if first.Handle != 0 {
		e.Elements = append(e.Elements, Element{
			Set: "map " + mapAffinityEndpoints, Text: text + " : " + endpointNFT(first.Addr),
		})
	}
}

func endpointNFT(a netip.AddrPort) string { return fmt.Sprintf("%s . %d", a.Addr(), a.Port()) }

// nft returns the key of f as nft prints it.
func (f Frontend) nft() string {
	key := fmt.Sprintf("%s . %d", strings.ToLower(protocolName(f.Protocol)), f.Port)
	if f.Table.withoutAddress() {
		return key
	}
	return f.Addr.String() + " . " + key
}

// classID returns a word as nft prints its type classid: two numbers of 16 bits.
func classID(word uint32) string {
	if word == 0 {
		return "none"
	}
	return fmt.Sprintf("%x:%x", word>>16, word&0xffff)
}

func protocolName(p service.Protocol) string {
	switch p {
	case service.TCP:
		return "TCP"
	case service.UDP:
		return "UDP"
	case service.SCTP:
		return "SCTP"
	default:
		return fmt.Sprint(uint8(p))
	}
}
