package dataplane

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"fairlead.dev/fairlead/internal/ipfamily"
	"fairlead.dev/fairlead/internal/service"
)

// addPickRules translates the destination to an endpoint of the set in the scratch word.
func (s shape) addPickRules(b *batch, chain string, c Class) {
	b.addRule(s.family, chain, clearScratch(MaxEndpoints)...)
	b.addRule(s.family, chain, s.pick(c)...)
	if c.Slots > 1 {
		b.addRule(s.family, chain, goTo(chainFirst))
		return
	}
	// The set has become empty since the frontend was looked up. Without an endpoint
	// the packet must not go on to the virtual address: the sender repeats it.
	b.addRule(s.family, chain, drop())
}

// addAffinityRules does the same for a set whose clients stay with their endpoint. The
// scratch word holds the id of the set, then with the handle of the endpoint. Clients
// are remembered by Service port, whose id has the lowest bit clear, so that they keep
// their endpoint at all its addresses.
func (s shape) addAffinityRules(b *batch, chain string, c Class) {
	f := s.family
	add := func(exprs ...expr.Any) { b.addRule(f, chain, exprs...) }
	add(clearScratch(localBit | MaxEndpoints)...)
	add(append(s.clientKey(), &expr.Lookup{SourceRegister: reg0, DestRegister: reg0, IsDestRegSet: true, SetName: mapAffinity},
		writeScratch(), &expr.Verdict{Kind: expr.VerdictJump, Chain: knownChain(c)})...)
	// No endpoint yet, or one that has gone.
	add(clearScratch(localBit | MaxEndpoints)...)
	add(append(s.maskedClientKey(), s.remember(nftDynsetDelete, 0))...)
	if c.Local {
		add(setScratch(localBit)...)
	}
	slot := &expr.Lookup{SourceRegister: reg0, DestRegister: reg0, IsDestRegSet: true, SetName: mapAffinitySlots}
	add(append(s.chosenSlot(c), slot, writeScratch())...)
	if c.Slots > 1 { // when the chosen one has just gone; else nothing is found
		add(append(s.chosenSlot(Class{Slots: 1}), slot, writeScratch())...)
	}
	add(append(s.maskedClientKey(), s.remember(unix.NFT_DYNSET_OP_UPDATE, c.Affinity))...)
	add(s.toHandle()...)
	add(drop())
}

// addKnownRules are for a client that has an endpoint: its time starts again, and where
// the endpoint is in the set, the way ends there.
func (s shape) addKnownRules(b *batch, c Class) {
	chain := knownChain(c)
	b.addChain(s.family, chain, nil)
	b.addRule(s.family, chain, append(s.maskedClientKey(), s.remember(unix.NFT_DYNSET_OP_UPDATE, c.Affinity))...)
	if c.Local {
		b.addRule(s.family, chain, setScratch(localBit)...)
	} else {
		b.addRule(s.family, chain, clearScratch(localBit)...)
	}
	b.addRule(s.family, chain, s.toHandle()...)
}

// knownChain is one for each class with affinity.
func knownChain(c Class) string { return fmt.Sprintf(chainKnown, c.chain()) }

// clientKey loads Service port . client, where the scratch word has nothing else.
func (s shape) clientKey() []expr.Any { return []expr.Any{readScratch(), s.source(reg0 + 1)} }

// maskedClientKey does so where the scratch word has a handle too, which it loads behind.
func (s shape) maskedClientKey() []expr.Any {
	return []expr.Any{
		readScratch(), maskBits(^uint32(localBit | MaxEndpoints)), s.source(reg0 + 1),
		&expr.Meta{Key: expr.MetaKeyPRIORITY, Register: reg0 + 1 + s.words},
	}
}

// remember changes what is known of the client whose key is loaded. An update of one
// that is known starts its time again and leaves the handle (nft_dynset.c). The data
// register is named for deleting too: the kernel wants one for every map.
func (s shape) remember(operation uint32, timeout time.Duration) expr.Any {
	return &expr.Dynset{SrcRegKey: reg0, SrcRegData: reg0 + 1 + s.words, SetName: mapAffinity, Operation: operation, Timeout: timeout}
}

// toHandle translates the destination to the endpoint whose handle is in the scratch
// word; where there is none, the rule ends.
func (s shape) toHandle() []expr.Any {
	return []expr.Any{
		readScratch(),
		&expr.Lookup{SourceRegister: reg0, DestRegister: reg0, IsDestRegSet: true, SetName: mapAffinityEndpoints},
		s.translate(),
	}
}

// pick translates the destination to one of the slots of the set.
func (s shape) pick(c Class) []expr.Any {
	return append(s.chosenSlot(c),
		&expr.Lookup{SourceRegister: reg0, DestRegister: reg0, IsDestRegSet: true, SetName: mapEndpoints}, s.translate())
}

// chosenSlot loads set . slot.
func (s shape) chosenSlot(c Class) []expr.Any {
	switch c.Scheduler {
	case service.SourceHash, service.Maglev:
		return []expr.Any{readScratch(), s.source(reg0 + 2), &expr.Hash{
			SourceRegister: reg0 + 2, DestRegister: reg0 + 1, Length: s.addr.size, Modulus: c.Slots, Seed: hashSeed, Type: expr.HashTypeJenkins,
		}}
	case service.RoundRobin:
		return []expr.Any{readScratch(), &expr.Numgen{Register: reg0 + 1, Modulus: c.Slots, Type: unix.NFT_NG_INCREMENTAL}}
	default:
		return []expr.Any{readScratch(), &expr.Numgen{Register: reg0 + 1, Modulus: c.Slots, Type: unix.NFT_NG_RANDOM}}
	}
}

// translate takes the address and port that are loaded for the destination.
func (s shape) translate() expr.Any {
	return &expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(family(s.family)), RegAddrMin: reg0, RegProtoMin: reg0 + s.words}
}

// frontend loads daddr . protocol . dport.
func (s shape) frontend() []expr.Any {
	return append([]expr.Any{s.destination(reg0)}, protocolAndPort(reg0+s.words)...)
}

// portOnly loads protocol . dport.
func (shape) portOnly() []expr.Any { return protocolAndPort(reg0) }

func protocolAndPort(reg uint32) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg},
		&expr.Payload{DestRegister: reg + 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
	}
}

// lookup takes the scratch word out of a map and goes on in chain; where the map has
// nothing, the rule ends there.
func (shape) lookup(key []expr.Any, in, chain string) []expr.Any {
	return append(key,
		&expr.Lookup{SourceRegister: reg0, DestRegister: reg0, IsDestRegSet: true, SetName: in},
		writeScratch(), goTo(chain))
}

// member goes on where the destination is in a set.
func (s shape) member(set string) []expr.Any {
	return []expr.Any{
		s.destination(reg0), &expr.Lookup{SourceRegister: reg0, SetName: set},
	}
}

func (s shape) portUnreachable() expr.Any {
	if s.family == ipfamily.IPv4 {
		return &expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: icmpPortUnreachable}
	}
	return &expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: icmp6PortUnreachable}
}

// The scratch word lives in meta priority. Forwarding gives a packet a new priority
// anyway; for packets of this node, of which only the first of a connection passes
// here, postrouting clears it.
func readScratch() expr.Any { return &expr.Meta{Key: expr.MetaKeyPRIORITY, Register: reg0} }

func writeScratch() expr.Any {
	return &expr.Meta{Key: expr.MetaKeyPRIORITY, SourceRegister: true, Register: reg0}
}

// clearScratch clears bits of the scratch word, setScratch sets some.
func clearScratch(bits uint32) []expr.Any {
	return []expr.Any{readScratch(), maskBits(^bits), writeScratch()}
}

func setScratch(bits uint32) []expr.Any {
	return []expr.Any{readScratch(), orBits(bits), writeScratch()}
}

func orMark(bit uint32) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: reg0}, orBits(bit),
		&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: reg0},
	}
}

func orBits(bits uint32) expr.Any {
	return &expr.Bitwise{SourceRegister: reg0, DestRegister: reg0, Len: 4, Mask: native(^bits), Xor: native(bits)}
}

func maskBits(mask uint32) expr.Any {
	return &expr.Bitwise{SourceRegister: reg0, DestRegister: reg0, Len: 4, Mask: native(mask), Xor: native(0)}
}

func equals(data []byte) expr.Any { return equalsIn(reg0, data) }

func equalsIn(register uint32, data []byte) expr.Any {
	return &expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: data}
}

// source and destination load an address of the packet.
func (s shape) source(register uint32) expr.Any { return s.address(register, s.srcOffset) }

func (s shape) destination(register uint32) expr.Any { return s.address(register, s.dstOffs) }

func (s shape) address(register, offset uint32) expr.Any {
	return &expr.Payload{DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: s.addr.size}
}

func drop() expr.Any { return &expr.Verdict{Kind: expr.VerdictDrop} }

func goTo(chain string) expr.Any { return &expr.Verdict{Kind: expr.VerdictGoto, Chain: chain} }

func lookupVerdict(set string) expr.Any {
	return &expr.Lookup{SourceRegister: reg0, DestRegister: unix.NFT_REG_VERDICT, IsDestRegSet: true, SetName: set}
}

func native(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }
