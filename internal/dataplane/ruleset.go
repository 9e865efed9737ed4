// Package dataplane turns Services into nftables state.
//
// Compile is a pure function from a service.Snapshot to a Program, Diff one from two
// Rulesets to the elements in which they differ, and Sink keeps the kernel's table at
// what was compiled last. Services are elements of a few maps, never chains or rules:
// a change costs some elements, at any number of Services.
package dataplane

import (
	"net/netip"
	"slices"

	"fairlead.dev/fairlead/internal/ipfamily"
	"fairlead.dev/fairlead/internal/persistent"
	"fairlead.dev/fairlead/internal/service"
)

const (
	// classBits is the part of a packet's scratch word that holds the number of a
	// Class, and where an endpoint was picked already its handle; the rest holds the
	// id of a set of endpoints.
	classBits = 13

	// MaxEndpoints is how many slots one set of endpoints can have; of more endpoints
	// of one family the first in address order are used, with affinity those that are
	// on this node or were there before.
	MaxEndpoints = 1<<classBits - 1

	// MaxPorts is how many Service ports there can be on one node. Each has two ids:
	// twice its number for its endpoints in the cluster, one more for those on this
	// node.
	MaxPorts = 1<<(31-classBits) - 1

	// localBit is the bit of a scratch word that tells the two ids of a Service port
	// apart.
	localBit = 1 << classBits
)

// FrontendKind says how a frontend is treated. Where two Services claim the same
// frontend, the lower kind wins: nobody takes a ClusterIP away by naming it as an
// externalIP (CVE-2020-8554).
type FrontendKind uint8

// The kinds of frontends.
const (
	ClusterIP FrontendKind = iota
	NodePort
	LoadBalancerIP
	ExternalIP
)

// frontendTable is the map of the kernel that a frontend stands in.
type frontendTable uint8

const (
	clusterTable       frontendTable = iota // ClusterIPs: pods keep their source
	externalTable                           // load balancer and external IPs: masqueraded
	nodePortTable                           // node ports: masqueraded, keyed without an address
	localTable                              // of externalTable those of policy Local: for clients outside
	localNodePortTable                      // the same of nodePortTable
)

// withoutAddress says whether the table's keys have none.
func (t frontendTable) withoutAddress() bool { return t == nodePortTable || t == localNodePortTable }

// Frontend is what a client addresses: a virtual address or node port, with protocol
// and port. For node ports Addr is the unspecified address of the family.
type Frontend struct {
	Table    frontendTable
	Addr     netip.Addr
	Protocol service.Protocol
	Port     uint16
}

// FrontendOf returns the frontend of a virtual address, as ReadCounters names it.
func FrontendOf(vip netip.AddrPort, protocol service.Protocol) Frontend {
	return Frontend{externalTable, vip.Addr(), protocol, vip.Port()}
}

// Target is where a frontend leads: the id of a set of endpoints, and the number of the
// Class that picks one.
type Target struct {
	ID    uint32
	Class uint32
}

// scratch returns the word that the rules carry in meta priority.
func (t Target) scratch() uint32 { return t.ID<<classBits | t.Class }

func targetOf(scratch uint32) Target {
	return Target{ID: scratch >> classBits, Class: scratch & MaxEndpoints}
}

// SlotKey names a set of endpoints in one family.
type SlotKey struct {
	Family ipfamily.Family
	ID     uint32
}

// Slot is one endpoint of a set. An invalid Addr is a missing slot, which only a table
// that somebody edited has.
type Slot struct {
	Addr netip.AddrPort
	// Handle names the endpoint among those of its Service port, for affinity, for as
	// long as it is one of them; 0 without affinity.
	Handle uint32
}

// Fence says who may reach a frontend, by loadBalancerSourceRanges.
type Fence struct {
	// Ranges are of the frontend's family, in order; none of them is inside another.
	Ranges []netip.Prefix
	// Barred says that this node may not, with none of its addresses in Ranges.
	Barred bool
}

func (f Fence) equal(o Fence) bool { return f.Barred == o.Barred && slices.Equal(f.Ranges, o.Ranges) }

// memberSet is a set of addresses or ranges in the kernel.
type memberSet uint8

const (
	clusterIPSet   memberSet = iota // other ports of these are refused
	hairpinSet                      // endpoints whose own packets can come back to them
	nodeAddrSet                     // where node ports are served
	podSet                          // ranges of pods
	keptSet                         // sources that reach ClusterIPs unmasqueraded
	serviceCIDRSet                  // ranges of ClusterIPs: what nobody has is dropped
)

// ranges says whether the set has ranges, not single addresses.
func (s memberSet) ranges() bool { return s == podSet || s == keptSet || s == serviceCIDRSet }

// Member is a range in a set; an address is a range of one.
type Member struct {
	Set   memberSet
	Range netip.Prefix
}

// Ruleset is what the kernel holds for Services. It is an immutable value.
type Ruleset struct {
	Frontends persistent.Map[Frontend, Target]
	Fences    persistent.Map[Frontend, Fence]
	Slots     persistent.Map[SlotKey, []Slot]
	Members   persistent.Map[Member, struct{}]
	// Classes are those beside the ones that every table has from the start.
	Classes persistent.Map[uint32, Class]
}
