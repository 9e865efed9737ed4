// Package dataplane turns Services into nftables state.
//
// Compile is a pure function from a service.Snapshot to a Program, Diff one from two
// Rulesets to the elements in which they differ, and Sink keeps the kernel's table at
// what was compiled last. Services are elements of a few maps, never chains or rules:
// a change costs some elements, at any number of Services.
package dataplane

import (
	"net/netip"

	"fairlead.dev/fairlead/internal/ipfamily"
	"fairlead.dev/fairlead/internal/persistent"
	"fairlead.dev/fairlead/internal/service"
)

const (
	// classBits is the part of a packet's scratch word that holds the number of
	// endpoints, the rest holds the id of the Service port: 8,191 endpoints for a
	// Service port, and 524,287 Service ports.
	classBits = 13

	// MaxEndpoints is how many endpoints of one family a Service port can have; of
	// more, the first in address order are used.
	MaxEndpoints = 1<<classBits - 1

	// MaxPorts is how many Service ports there can be on one node.
	MaxPorts = 1<<(32-classBits) - 1
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
	clusterTable  frontendTable = iota // ClusterIPs: pods keep their source
	externalTable                      // load balancer and external IPs: masqueraded
	nodePortTable                      // node ports: masqueraded, keyed without an address
)

// Frontend is what a client addresses: a virtual address or node port, with protocol
// and port. For node ports Addr is the unspecified address of the family.
type Frontend struct {
	Table    frontendTable
	Addr     netip.Addr
	Protocol service.Protocol
	Port     uint16
}

// Target is where a frontend leads: the id of a Service port, and how many endpoints
// it has in the family of the frontend; 0 refuses.
type Target struct {
	ID        uint32
	Endpoints uint32
}

// scratch returns the word that the rules carry in meta priority.
func (t Target) scratch() uint32 { return t.ID<<classBits | t.Endpoints }

func targetOf(scratch uint32) Target {
	return Target{ID: scratch >> classBits, Endpoints: scratch & MaxEndpoints}
}

// SlotKey names the endpoints of one Service port in one family.
type SlotKey struct {
	Family ipfamily.Family
	ID     uint32
}

// memberSet is a set of addresses in the kernel.
type memberSet uint8

const (
	clusterIPSet memberSet = iota // other ports of these are refused
	hairpinSet                    // endpoints whose own packets can come back to them
	nodeAddrSet                   // where node ports are served
)

// Member is an address in a set.
type Member struct {
	Set  memberSet
	Addr netip.Addr
}

// Ruleset is what the kernel holds for Services. It is an immutable value.
type Ruleset struct {
	Frontends persistent.Map[Frontend, Target]
	// Slots are the endpoints by slot. An invalid AddrPort is a missing slot, which
	// only a table that somebody edited has.
	Slots   persistent.Map[SlotKey, []netip.AddrPort]
	Members persistent.Map[Member, struct{}]
}

// elements returns how many elements the kernel has of r.
func (r Ruleset) elements() int {
	n := r.Frontends.Len() + r.Members.Len()
	for _, slots := range r.Slots.All() {
		n += len(slots)
	}
	return n
}
