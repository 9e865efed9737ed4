package dataplane

import (
	"slices"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"fairlead.dev/fairlead/internal/ipfamily"
	"fairlead.dev/fairlead/internal/service"
)

// TableName is the name of our tables, one of family ip and one of family ip6. Nothing
// else is touched.
const TableName = "fairlead"

// Names of chains, sets and maps, the same in both tables. None is a word of nft's own
// language: what nft lists, nft must load.
const (
	chainPrerouting    = "prerouting"
	chainOutput        = "output"
	chainPostrouting   = "postrouting"
	chainCluster       = "cluster"         // for ClusterIPs, from elsewhere than this node
	chainExternal      = "external"        // for LB and external IPs, the same
	chainLocal         = "external_local"  // those of policy Local
	chainNodePort      = "node_port"       // for node ports, the same
	chainNodePortLocal = "node_port_local" // those of policy Local
	chainOwnExternal   = "own_external"    // for LB and external IPs, from this node
	chainMasquerade    = "mark_masquerade" // marks for masquerading, then dispatches
	chainDispatch      = "dispatch"        // by class
	chainFirst         = "first"           // when the chosen slot has just gone
	chainRefuse        = "refuse"          // no endpoints
	chainDrop          = "discard"         // no endpoints on this node
	chainKnown         = "known_%s"        // the client has an endpoint already, by affinity

	mapClusterPorts       = "cluster_ports"        // ClusterIP . protocol . port : scratch word
	mapExternalPorts      = "external_ports"       // LB or external IP . protocol . port : scratch word
	mapNodePorts          = "node_ports"           // protocol . port : scratch word
	mapLocalExternalPorts = "local_external_ports" // of policy Local, for clients outside
	mapLocalNodePorts     = "local_node_ports"     // the same
	mapEndpoints          = "endpoints"            // set of endpoints . slot : address . port
	mapDispatch           = "dispatch"             // class : goto its chain
	mapAffinity           = "affinity"             // Service port . client : handle of its endpoint
	mapAffinitySlots      = "affinity_slots"       // set of endpoints . slot : handle
	mapAffinityEndpoints  = "affinity_endpoints"   // handle : address . port
	setClusterIPs         = "cluster_ips"
	setHairpins           = "hairpins" // address . the same address
	setNodeAddresses      = "node_addresses"
	setPods               = "pods"
	setKept               = "kept_sources" // of ClusterIPs: those of pods, or all of a family without ranges
	setServiceCIDRs       = "service_cidrs"
	setFenced             = "fenced"              // LB IP . protocol . port that not everyone may reach
	setAllowed            = "allowed_sources"     // the same . client that may
	setBarred             = "barred"              // the same that this node may not
	setConnections        = "counted_connections" // address . protocol . port as the client sees it, counted
	setPackets            = "counted_packets"     // the same
)

const (
	// masqueradeMark is the bit of the packet mark that asks for masquerading between
	// our chains, the one that kube-proxy takes (--iptables-masquerade-bit 14).
	masqueradeMark = 1 << 14

	// readyClasses are the numbers of endpoints that chains are made for while the map
	// of endpoints is still empty: binding it to a rule later walks its elements.
	readyClasses = 64

	// affinityClients is how many pairs of client and Service port one family can
	// remember; the kernel takes memory for those that are there only.
	affinityClients = 1 << 20

	// countedFrontends is how many frontends of a family can be counted.
	countedFrontends = 1 << 20

	// hashSeed is the same on all nodes, so that a client meets the same endpoint
	// whichever node it comes through. 0 would be a random one.
	hashSeed = 0x66616972

	// Values of linux/netfilter/nf_conntrack_common.h and icmp.h, icmpv6.h.
	ctStatusDestinationNAT = 1 << 5
	icmpPortUnreachable    = 3
	icmp6PortUnreachable   = 4

	// The priorities of destination and source NAT (linux/netfilter_ipv4.h).
	priorityDestinationNAT = -100
	prioritySourceNAT      = 100

	reg0 = unix.NFT_REG32_00 // registers of four bytes, in a row
)

// LocalTraffic says how packets of pods are told from others: by at most one of its
// fields, or not at all.
type LocalTraffic struct {
	// CIDRs tells them by the PodCIDRs of the Snapshot.
	CIDRs bool
	// Bridge is the name of the bridge they come in by, InterfacePrefix begins the names
	// of the interfaces they come in by.
	Bridge, InterfacePrefix string
}

// Config is what the rules depend on beside Services.
type Config struct {
	Local LocalTraffic
	// MasqueradeAll masquerades what pods send to ClusterIPs too.
	MasqueradeAll bool
	// Counters counts connections and packets of each frontend, for ReadCounters.
	Counters bool
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

func (s shape) sets(counters bool) []setDef {
	frontend := []datatype{s.addr, typeProto, typeService}
	portOnly := frontend[1:]
	word := []datatype{typeClassID}
	slot := []datatype{typeClassID, typeMark} // nft's type mark: a number of four bytes that nft can print
	endpoint := []datatype{s.addr, typeService}
	addr := []datatype{s.addr}
	out := []setDef{
		{name: mapClusterPorts, key: frontend, data: word},
		{name: mapExternalPorts, key: frontend, data: word},
		{name: mapNodePorts, key: portOnly, data: word},
		{name: mapLocalExternalPorts, key: frontend, data: word},
		{name: mapLocalNodePorts, key: portOnly, data: word},
		{name: mapEndpoints, key: slot, data: endpoint},
		{name: mapDispatch, key: word, verdicts: true},
		{name: mapAffinity, key: []datatype{typeClassID, s.addr}, data: word, dynamic: affinityClients, expires: true},
		{name: mapAffinitySlots, key: slot, data: word},
		{name: mapAffinityEndpoints, key: word, data: endpoint},
		{name: setClusterIPs, key: addr},
		{name: setHairpins, key: []datatype{s.addr, s.addr}},
		{name: setNodeAddresses, key: addr},
		{name: setPods, key: addr, interval: true},
		{name: setKept, key: addr, interval: true},
		{name: setServiceCIDRs, key: addr, interval: true},
		{name: setFenced, key: frontend},
		{name: setAllowed, key: slices.Concat(frontend, addr), interval: true},
		{name: setBarred, key: frontend},
	}
	if counters {
		out = append(out,
			setDef{name: setConnections, key: frontend, dynamic: countedFrontends},
			setDef{name: setPackets, key: frontend, dynamic: countedFrontends})
	}
	return out
}

// addLayout adds a table with everything but the elements that come from Services.
func (b *batch) addLayout(cfg Config, f ipfamily.Family) {
	s := shapeOf(f)
	b.addTable(f)
	for i, def := range s.sets(cfg.Counters) {
		b.addSet(f, def, uint32(i+1))
	}
	for _, name := range []string{
		chainCluster, chainExternal, chainLocal, chainNodePort, chainNodePortLocal, chainOwnExternal,
		chainMasquerade, chainDispatch, chainFirst, chainRefuse, chainDrop,
	} {
		b.addChain(f, name, nil)
	}
	b.addChain(f, chainPrerouting, &hook{number: unix.NF_INET_PRE_ROUTING, priority: priorityDestinationNAT})
	b.addChain(f, chainOutput, &hook{number: unix.NF_INET_LOCAL_OUT, priority: priorityDestinationNAT})
	b.addChain(f, chainPostrouting, &hook{number: unix.NF_INET_POST_ROUTING, priority: prioritySourceNAT})
	s.addFrontendRules(b, chainPrerouting, chainCluster, chainExternal, chainNodePort)
	s.addFrontendRules(b, chainOutput, chainMasquerade, chainOwnExternal, chainMasquerade) // this node is no pod
	s.addClusterRules(b, cfg)
	s.addExternalRules(b, cfg)
	b.addRule(f, chainMasquerade, append(orMark(masqueradeMark), goTo(chainDispatch))...)
	if cfg.Counters {
		s.addCounters(b)
	}
	b.addRule(f, chainDispatch, readScratch(), maskBits(MaxEndpoints), lookupVerdict(mapDispatch))
	b.addRule(f, chainDispatch, drop())
	b.addRule(f, chainFirst, s.pick(Class{Slots: 1})...)
	b.addRule(f, chainFirst, drop())
	b.addRule(f, chainRefuse, &expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg0},
		equals([]byte{byte(service.TCP)}), &expr.Reject{Type: unix.NFT_REJECT_TCP_RST})
	b.addRule(f, chainRefuse, s.portUnreachable())
	b.addRule(f, chainDrop, drop())
	s.addPostrouting(b)
	for n := range uint32(readyClasses) {
		b.addClass(f, n+1, Class{Slots: n + 1})
	}
	for _, number := range []uint32{refuseClass, dropClass} {
		b.addElements(f, mapDispatch, listOf(element{key: native(number), goTo: standardChain(number)}))
	}
}

// addFrontendRules sends what is addressed to a Service on its way.
func (s shape) addFrontendRules(b *batch, chain, toCluster, toExternal, toNodePort string) {
	b.addRule(s.family, chain, s.lookup(s.frontend(), mapClusterPorts, toCluster)...)
	b.addRule(s.family, chain, s.lookup(s.frontend(), mapExternalPorts, toExternal)...)
	b.addRule(s.family, chain, append(s.member(setNodeAddresses), s.lookup(s.portOnly(), mapNodePorts, toNodePort)...)...)
	b.addRule(s.family, chain, append(s.member(setClusterIPs), goTo(chainRefuse))...)
	b.addRule(s.family, chain, append(s.member(setServiceCIDRs), drop())...)
}

// fromPods matches packets of pods; nil where nothing tells them.
func (s shape) fromPods(l LocalTraffic) []expr.Any {
	switch {
	case l.CIDRs:
		return []expr.Any{s.source(reg0), &expr.Lookup{SourceRegister: reg0, SetName: setPods}}
	case l.Bridge != "":
		name := make([]byte, unix.IFNAMSIZ)
		copy(name, l.Bridge)
		return []expr.Any{&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: unix.NFT_REG_1}, equalsIn(unix.NFT_REG_1, name)}
	case l.InterfacePrefix != "":
		return []expr.Any{&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: unix.NFT_REG_1}, equalsIn(unix.NFT_REG_1, []byte(l.InterfacePrefix))}
	default:
		return nil
	}
}

// addClusterRules marks what reaches a ClusterIP from elsewhere than pods.
func (s shape) addClusterRules(b *batch, cfg Config) {
	pods := s.fromPods(cfg.Local)
	switch {
	case cfg.MasqueradeAll:
		b.addRule(s.family, chainCluster, goTo(chainMasquerade))
	case pods == nil:
		b.addRule(s.family, chainCluster, goTo(chainDispatch))
	default:
		if cfg.Local.CIDRs {
			pods = []expr.Any{s.source(reg0), &expr.Lookup{SourceRegister: reg0, SetName: setKept}}
		}
		b.addRule(s.family, chainCluster, append(pods, goTo(chainDispatch))...)
		b.addRule(s.family, chainCluster, goTo(chainMasquerade))
	}
}

// addExternalRules holds off who may not reach an LB IP, and takes those apart that
// have policy Local: from outside they lead to the endpoints on this node, from pods to
// all, and neither is masqueraded.
func (s shape) addExternalRules(b *batch, cfg Config) {
	f := s.family
	fenced := append(s.frontend(), &expr.Lookup{SourceRegister: reg0, SetName: setFenced})
	stranger := append(s.frontend(), s.source(reg0+s.words+2), &expr.Lookup{SourceRegister: reg0, SetName: setAllowed, Invert: true})
	b.addRule(f, chainExternal, slices.Concat(fenced, stranger, []expr.Any{drop()})...)
	b.addRule(f, chainExternal, s.lookup(s.frontend(), mapLocalExternalPorts, chainLocal)...)
	b.addRule(f, chainExternal, goTo(chainMasquerade))
	b.addRule(f, chainNodePort, s.lookup(s.portOnly(), mapLocalNodePorts, chainNodePortLocal)...)
	b.addRule(f, chainNodePort, goTo(chainMasquerade))
	if pods := s.fromPods(cfg.Local); pods != nil {
		b.addRule(f, chainLocal, slices.Concat(pods, s.lookup(s.frontend(), mapExternalPorts, chainDispatch))...)
		b.addRule(f, chainNodePortLocal, slices.Concat(pods, s.lookup(s.portOnly(), mapNodePorts, chainDispatch))...)
	}
	b.addRule(f, chainLocal, goTo(chainDispatch))
	b.addRule(f, chainNodePortLocal, goTo(chainDispatch))
	b.addRule(f, chainOwnExternal, append(s.frontend(), &expr.Lookup{SourceRegister: reg0, SetName: setBarred}, drop())...)
	b.addRule(f, chainOwnExternal, goTo(chainMasquerade))
}

// addPostrouting clears what the other chains left in the packet, and masquerades.
func (s shape) addPostrouting(b *batch) {
	zero := &expr.Immediate{Register: reg0, Data: native(0)}
	b.addRule(s.family, chainPostrouting, append(translated(), zero, writeScratch())...)
	marked := []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: reg0}, maskBits(masqueradeMark),
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg0, Data: native(0)},
		&expr.Meta{Key: expr.MetaKeyMARK, Register: reg0}, maskBits(^uint32(masqueradeMark)),
		&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: reg0},
	}
	b.addRule(s.family, chainPostrouting, append(marked, &expr.Masq{FullyRandom: true})...)
	b.addRule(s.family, chainPostrouting, append(translated(),
		s.source(reg0), s.destination(reg0+s.words),
		&expr.Lookup{SourceRegister: reg0, SetName: setHairpins}, &expr.Masq{FullyRandom: true})...)
}

// translated matches packets of connections whose destination was translated.
func translated() []expr.Any {
	return []expr.Any{
		&expr.Ct{Register: reg0, Key: expr.CtKeySTATUS},
		maskBits(ctStatusDestinationNAT), &expr.Cmp{Op: expr.CmpOpNeq, Register: reg0, Data: native(0)},
	}
}
