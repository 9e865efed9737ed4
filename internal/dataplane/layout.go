package dataplane

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"fairlead.dev/fairlead/internal/ipfamily"
	"fairlead.dev/fairlead/internal/service"
)

// TableName is the name of our tables, one of family ip and one of family ip6. Nothing
// else is touched.
const TableName = "fairlead"

// Names of chains, sets and maps, the same in both tables.
const (
	chainPrerouting  = "prerouting"
	chainOutput      = "output"
	chainPostrouting = "postrouting"
	chainCluster     = "cluster"      // for ClusterIPs, from elsewhere than this node
	chainMasquerade  = "masquerade"   // marks for masquerading, then dispatches
	chainDispatch    = "dispatch"     // by number of endpoints
	chainFirst       = "endpoint_0"   // when the chosen slot has just gone
	chainRefuse      = "refuse"       // no endpoints
	chainEndpoints   = "endpoints_%d" // picks one of so many

	mapClusterPorts  = "cluster_ports"  // ClusterIP . protocol . port : scratch word
	mapExternalPorts = "external_ports" // LB or external IP . protocol . port : scratch word
	mapNodePorts     = "node_ports"     // protocol . port : scratch word
	mapEndpoints     = "endpoints"      // Service port id . slot : address . port
	mapDispatch      = "dispatch"       // number of endpoints : goto endpoints_n
	setClusterIPs    = "cluster_ips"
	setHairpins      = "hairpins" // address . the same address
	setNodeAddresses = "node_addresses"
)

const (
	// masqueradeMark is the bit of the packet mark that asks for masquerading between
	// our chains, the one that kube-proxy takes (--iptables-masquerade-bit 14).
	masqueradeMark = 1 << 14

	// readyClasses are the numbers of endpoints that chains are made for while the map
	// of endpoints is still empty: binding it to a rule later walks its elements.
	readyClasses = 64

	// Values of linux/netfilter/nf_conntrack_common.h and icmp.h, icmpv6.h.
	ctStatusDestinationNAT = 1 << 5
	icmpPortUnreachable    = 3
	icmp6PortUnreachable   = 4

	// The priorities of destination and source NAT (linux/netfilter_ipv4.h).
	priorityDestinationNAT = -100
	prioritySourceNAT      = 100

	reg0 = unix.NFT_REG32_00 // registers of four bytes, in a row
)

// Config is what the rules depend on beside Services.
type Config struct {
	// PodCIDRs are the ranges of all pods of the cluster, of both families. What
	// reaches a ClusterIP from elsewhere is masqueraded; with none of a family, only
	// the node's own traffic is.
	PodCIDRs []netip.Prefix
}

// shape is how a family lies in packets and registers.
type shape struct {
	family             ipfamily.Family
	addr               datatype
	srcOffset, dstOffs uint32
	words              uint32 // registers that an address takes
}

func shapeOf(f ipfamily.Family) shape {
	if f == ipfamily.IPv4 {
		return shape{family: f, addr: typeIPv4, srcOffset: 12, dstOffs: 16, words: 1}
	}
	return shape{family: f, addr: typeIPv6, srcOffset: 8, dstOffs: 24, words: 4}
}

func (s shape) sets() []setDef {
	frontend := []datatype{s.addr, typeProto, typeService}
	scratch := []datatype{typeClassID}
	return []setDef{
		{name: mapClusterPorts, key: frontend, data: scratch},
		{name: mapExternalPorts, key: frontend, data: scratch},
		{name: mapNodePorts, key: []datatype{typeProto, typeService}, data: scratch},
		// A slot has nft's type mark: a number of four bytes that nft can print.
		{name: mapEndpoints, key: []datatype{typeClassID, typeMark}, data: []datatype{s.addr, typeService}},
		{name: mapDispatch, key: scratch, verdicts: true},
		{name: setClusterIPs, key: []datatype{s.addr}},
		{name: setHairpins, key: []datatype{s.addr, s.addr}},
		{name: setNodeAddresses, key: []datatype{s.addr}},
	}
}

// addLayout adds a table with everything but the elements that come from Services.
func (b *batch) addLayout(cfg Config, f ipfamily.Family) {
	s := shapeOf(f)
	b.addTable(f)
	for i, def := range s.sets() {
		b.addSet(f, def, uint32(i+1))
	}
	for _, name := range []string{chainCluster, chainMasquerade, chainDispatch, chainFirst, chainRefuse} {
		b.addChain(f, name, nil)
	}
	b.addChain(f, chainPrerouting, &hook{unix.NF_INET_PRE_ROUTING, priorityDestinationNAT})
	b.addChain(f, chainOutput, &hook{unix.NF_INET_LOCAL_OUT, priorityDestinationNAT})
	b.addChain(f, chainPostrouting, &hook{unix.NF_INET_POST_ROUTING, prioritySourceNAT})
	s.addFrontendRules(b, chainPrerouting, chainCluster)
	s.addFrontendRules(b, chainOutput, chainMasquerade) // this node is no pod
	s.addClusterRules(b, cfg.PodCIDRs)
	b.addRule(f, chainMasquerade, append(orMark(masqueradeMark), goTo(chainDispatch))...)
	b.addRule(f, chainDispatch, readScratch(), maskBits(MaxEndpoints), lookupVerdict(mapDispatch))
	b.addRule(f, chainFirst, s.pick(1)...)
	b.addRule(f, chainRefuse, &expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg0},
		equals([]byte{byte(service.TCP)}), &expr.Reject{Type: unix.NFT_REJECT_TCP_RST})
	b.addRule(f, chainRefuse, s.portUnreachable())
	s.addPostrouting(b)
	b.elements(f, mapDispatch, unix.NFT_MSG_NEWSETELEM, []element{{key: native(0), goTo: className(0)}})
	for n := range uint32(readyClasses) {
		b.addClass(f, n+1)
	}
}

// className is the chain for Service ports of n endpoints.
func className(n uint32) string {
	if n == 0 {
		return chainRefuse
	}
	return fmt.Sprintf(chainEndpoints, n)
}

// addClass adds the chain that picks one of n endpoints.
func (b *batch) addClass(f ipfamily.Family, n uint32) {
	name := className(n)
	b.addChain(f, name, nil)
	b.addRule(f, name, readScratch(), maskBits(^uint32(MaxEndpoints)), writeScratch())
	b.addRule(f, name, shapeOf(f).pick(n)...)
	if n > 1 {
		b.addRule(f, name, goTo(chainFirst))
	}
	b.elements(f, mapDispatch, unix.NFT_MSG_NEWSETELEM, []element{{key: native(n), goTo: name}})
}

// addFrontendRules sends what is addressed to a Service on its way.
func (s shape) addFrontendRules(b *batch, chain, toCluster string) {
	b.addRule(s.family, chain, s.lookup(s.frontend(), mapClusterPorts, toCluster)...)
	b.addRule(s.family, chain, s.lookup(s.frontend(), mapExternalPorts, chainMasquerade)...)
	b.addRule(s.family, chain, append(s.member(setNodeAddresses), s.lookup(s.portOnly(), mapNodePorts, chainMasquerade)...)...)
	b.addRule(s.family, chain, append(s.member(setClusterIPs), goTo(chainRefuse))...)
}

// addClusterRules marks what reaches a ClusterIP from outside the pods' ranges.
func (s shape) addClusterRules(b *batch, podCIDRs []netip.Prefix) {
	known := false
	for _, cidr := range podCIDRs {
		if ipfamily.Of(cidr.Addr()) != s.family {
			continue
		}
		known = true
		mask := make([]byte, s.addr.size)
		for i := range cidr.Bits() {
			mask[i/8] |= 0x80 >> (i % 8)
		}
		b.addRule(s.family, chainCluster,
			&expr.Payload{DestRegister: reg0, Base: expr.PayloadBaseNetworkHeader, Offset: s.srcOffset, Len: s.addr.size},
			&expr.Bitwise{SourceRegister: reg0, DestRegister: reg0, Len: s.addr.size, Mask: mask, Xor: make([]byte, s.addr.size)},
			equals(cidr.Masked().Addr().AsSlice()), goTo(chainDispatch))
	}
	if known {
		b.addRule(s.family, chainCluster, goTo(chainMasquerade))
		return
	}
	b.addRule(s.family, chainCluster, goTo(chainDispatch))
}

// addPostrouting clears what the other chains left in the packet, and masquerades.
func (s shape) addPostrouting(b *batch) {
	translated := []expr.Any{
		&expr.Ct{Register: reg0, Key: expr.CtKeySTATUS},
		maskBits(ctStatusDestinationNAT), &expr.Cmp{Op: expr.CmpOpNeq, Register: reg0, Data: native(0)},
	}
	zero := &expr.Immediate{Register: reg0, Data: native(0)}
	b.addRule(s.family, chainPostrouting, slices.Concat(translated, []expr.Any{zero, writeScratch()})...)
	marked := []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: reg0}, maskBits(masqueradeMark),
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg0, Data: native(0)},
		&expr.Meta{Key: expr.MetaKeyMARK, Register: reg0}, maskBits(^uint32(masqueradeMark)),
		&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: reg0},
	}
	b.addRule(s.family, chainPostrouting, append(marked, &expr.Masq{FullyRandom: true})...)
	b.addRule(s.family, chainPostrouting, slices.Concat(translated, []expr.Any{
		&expr.Payload{DestRegister: reg0, Base: expr.PayloadBaseNetworkHeader, Offset: s.srcOffset, Len: s.addr.size},
		&expr.Payload{DestRegister: reg0 + s.words, Base: expr.PayloadBaseNetworkHeader, Offset: s.dstOffs, Len: s.addr.size},
		&expr.Lookup{SourceRegister: reg0, SetName: setHairpins}, &expr.Masq{FullyRandom: true},
	})...)
}

// frontend loads daddr . protocol . dport.
func (s shape) frontend() []expr.Any {
	return append([]expr.Any{
		&expr.Payload{DestRegister: reg0, Base: expr.PayloadBaseNetworkHeader, Offset: s.dstOffs, Len: s.addr.size},
	}, protocolAndPort(reg0+s.words)...)
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
		&expr.Payload{DestRegister: reg0, Base: expr.PayloadBaseNetworkHeader, Offset: s.dstOffs, Len: s.addr.size},
		&expr.Lookup{SourceRegister: reg0, SetName: set},
	}
}

// pick translates the destination to one of n slots at random.
func (s shape) pick(n uint32) []expr.Any {
	return []expr.Any{
		readScratch(),
		&expr.Numgen{Register: reg0 + 1, Modulus: n, Type: unix.NFT_NG_RANDOM},
		&expr.Lookup{SourceRegister: reg0, DestRegister: reg0, IsDestRegSet: true, SetName: mapEndpoints},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(family(s.family)), RegAddrMin: reg0, RegProtoMin: reg0 + s.words},
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

func orMark(bit uint32) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: reg0},
		&expr.Bitwise{SourceRegister: reg0, DestRegister: reg0, Len: 4, Mask: native(^bit), Xor: native(bit)},
		&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: reg0},
	}
}

func maskBits(mask uint32) expr.Any {
	return &expr.Bitwise{SourceRegister: reg0, DestRegister: reg0, Len: 4, Mask: native(mask), Xor: native(0)}
}

func equals(data []byte) expr.Any { return &expr.Cmp{Op: expr.CmpOpEq, Register: reg0, Data: data} }

func goTo(chain string) expr.Any { return &expr.Verdict{Kind: expr.VerdictGoto, Chain: chain} }

func lookupVerdict(set string) expr.Any {
	return &expr.Lookup{SourceRegister: reg0, DestRegister: unix.NFT_REG_VERDICT, IsDestRegSet: true, SetName: set}
}

func native(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }
