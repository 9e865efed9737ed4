package dataplane

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"fairlead.dev/fairlead/internal/ipfamily"
	"fairlead.dev/fairlead/internal/service"
)

// Sender is a kind of client that the rules tell from others.
type Sender uint8

// The kinds of clients.
const (
	Everyone Sender = iota
	Pods
	ThisNode
	Elsewhere // neither of both
	Others    // pods and elsewhere, where that is all the same
)

// Fate is what becomes of the first packet of a connection.
type Fate uint8

// What the rules do with a packet.
const (
	Untouched  Fate = iota // as if there were no rules
	Refused                // TCP RST, else ICMP port unreachable
	Dropped                // silence
	Translated             // on to an endpoint
)

// whyNoneHere is the reason of a path of policy Local that ends here.
const whyNoneHere = "there are endpoints, but none on this node"

// Path is what new connections of one kind of client meet.
type Path struct {
	From Sender
	Fate Fate
	// Why is the reason, always there for all but Translated.
	Why string
	// Chains are those of nftables on the way; the last one decides.
	Chains []string
	// Class is how one of the endpoints of set ID is picked, where Fate is Translated.
	Class Class
	ID    uint32
	// Masqueraded says that endpoints see this node for the client.
	Masqueraded bool
	// Fenced says that only clients in Ranges get that far, and that others are dropped.
	Fenced bool
	Ranges []netip.Prefix
}

// Endpoint is one of a set of endpoints.
type Endpoint struct {
	Addr  netip.AddrPort
	Slots int // of the set's: its share of new connections
	// Hairpin says that it is masqueraded when it reaches itself.
	Hairpin bool
}

// EndpointSet is what one of several endpoints is picked from.
type EndpointSet struct {
	ID        uint32
	Slots     int        // as the chain that picks has it
	Endpoints []Endpoint // in order of address
}

// Local says whether the set is of the endpoints on this node only.
func (s EndpointSet) Local() bool { return s.ID&1 != 0 }

// Element is an element of a set or map of nftables, as nft prints it.
type Element struct {
	Set, Text string
	Chain     string // that it leads to, if any
}

// Explanation is what a packet meets that is addressed to At. It is an immutable value.
type Explanation struct {
	At       netip.AddrPort
	Protocol service.Protocol // 0 for all that have no rule of their own
	Kind     string
	Paths    []Path
	Sets     []EndpointSet // that Paths lead to, each once
	Elements []Element     // that decide it
	// PodRanges are what pods are told by where Local says so.
	PodRanges []netip.Prefix
	Local     LocalTraffic
	Count     *Count // nil without counters
}

// Protocols returns those that have a rule of their own at an address and port, in order.
func (in Installed) Protocols(at netip.AddrPort) (out []service.Protocol) {
	for _, p := range []service.Protocol{service.TCP, service.UDP, service.SCTP} {
		e := explainer{in, Explanation{At: at, Protocol: p}}
		if _, ok := e.frontend(); ok {
			out = append(out, p)
		}
	}
	return out
}

// Explain says what a packet meets that is addressed to at.
func (in Installed) Explain(at netip.AddrPort, p service.Protocol) Explanation {
	return in.explain(at, p, in.members(podSet))
}

func (in Installed) explain(at netip.AddrPort, p service.Protocol, pods [len(ipfamily.All)][]netip.Prefix) Explanation {
	e := explainer{in, Explanation{At: at, Protocol: p, Local: in.Config.Local, PodRanges: pods[ipfamily.Of(at.Addr())]}}
	f, ok := e.frontend()
	if !ok {
		e.explainOther()
		return e.Explanation
	}
	e.explainFrontend(f)
	if in.Config.Counters {
		c := in.Counts[FrontendOf(at, p)]
		e.Count = &c
	}
	return e.Explanation
}

// members returns what a set has, by family and in order.
func (in Installed) members(set memberSet) (out [len(ipfamily.All)][]netip.Prefix) {
	for m := range in.Ruleset.Members.All() {
		if m.Set == set {
			f := ipfamily.Of(m.Range.Addr())
			out[f] = append(out[f], m.Range)
		}
	}
	for _, ranges := range out {
		slices.SortFunc(ranges, netip.Prefix.Compare)
	}
	return out
}

// All returns what all frontends meet, in order of address, port and protocol. Node
// ports are named with each address that serves them, and with the unspecified one where
// none does.
func (in Installed) All() []Explanation {
	pods, nodeAddrs := in.members(podSet), in.members(nodeAddrSet)
	var out []Explanation
	for f := range in.Ruleset.Frontends.All() {
		addrs := []netip.Prefix{single(f.Addr)}
		switch f.Table {
		case localTable, localNodePortTable:
			continue
		case nodePortTable:
			if serving := nodeAddrs[ipfamily.Of(f.Addr)]; len(serving) > 0 {
				addrs = serving
			}
		default:
		}
		for _, a := range addrs {
			out = append(out, in.explain(netip.AddrPortFrom(a.Addr(), f.Port), f.Protocol, pods))
		}
	}
	compare := func(a, b Explanation) int {
		return cmp.Or(a.At.Compare(b.At), cmp.Compare(a.Protocol, b.Protocol))
	}
	slices.SortFunc(out, compare)
	return slices.CompactFunc(out, func(a, b Explanation) bool { return compare(a, b) == 0 })
}

// NodePortAddrs returns the addresses that serve node ports, in order.
func (in Installed) NodePortAddrs() (out []netip.Addr) {
	for _, ranges := range in.members(nodeAddrSet) {
		for _, r := range ranges {
			out = append(out, r.Addr())
		}
	}
	return out
}

type explainer struct {
	in Installed
	Explanation
}

func (e *explainer) family() ipfamily.Family { return ipfamily.Of(e.At.Addr()) }

func (e *explainer) has(set memberSet) bool {
	_, ok := e.in.Ruleset.Members.Get(Member{set, single(e.At.Addr())})
	return ok
}

// frontend returns the first of the frontends that the rules look for. A node port that
// no address serves is found at the unspecified one.
func (e *explainer) frontend() (Frontend, bool) {
	none := unspecified(e.family())
	for _, f := range []Frontend{
		{clusterTable, e.At.Addr(), e.Protocol, e.At.Port()},
		{externalTable, e.At.Addr(), e.Protocol, e.At.Port()},
		{nodePortTable, none, e.Protocol, e.At.Port()},
	} {
		if f.Table == nodePortTable && e.At.Addr() != none && !e.has(nodeAddrSet) {
			continue
		}
		if _, ok := e.in.Ruleset.Frontends.Get(f); ok {
			return f, true
		}
	}
	return Frontend{}, false
}

func (e *explainer) explainFrontend(f Frontend) {
	target, _ := e.in.Ruleset.Frontends.Get(f)
	outside, apart := e.in.Ruleset.Frontends.Get(f.forOutside())
	apart = apart && f.Table != clusterTable
	e.element(f, target)
	if apart {
		e.element(f.forOutside(), outside)
	}
	switch f.Table {
	case clusterTable:
		e.Kind = "ClusterIP"
		e.clusterPaths(target)
		e.add(Path{From: ThisNode, Chains: []string{chainOutput, chainMasquerade}, Masqueraded: true}, target)
	case externalTable:
		e.Kind = "LoadBalancer or external IP"
		e.externalPaths(f, target, outside, apart)
	default:
		e.Kind = "node port"
		if e.has(nodeAddrSet) {
			e.Elements = append(e.Elements, Element{Set: "set " + setNodeAddresses, Text: e.At.Addr().String()})
		} else {
			e.Kind = "node port that no address of this node serves"
		}
		e.policyPaths(Path{Chains: []string{chainPrerouting, chainNodePort}}, chainNodePortLocal, target, outside, apart)
		e.add(Path{From: ThisNode, Chains: []string{chainOutput, chainMasquerade}, Masqueraded: true}, target)
	}
	for _, s := range e.Sets {
		e.slotElement(s)
	}
}

// tellsPods says whether the rules know packets of pods.
func (e *explainer) tellsPods() bool { return e.in.Config.Local != LocalTraffic{} }

// clusterPaths are those of chain `cluster`.
func (e *explainer) clusterPaths(target Target) {
	kept := []string{chainPrerouting, chainCluster}
	masqueraded := append(slices.Clone(kept), chainMasquerade)
	switch {
	case e.in.Config.MasqueradeAll:
		e.add(Path{From: Others, Chains: masqueraded, Masqueraded: true}, target)
	case !e.tellsPods(), e.in.Config.Local.CIDRs && len(e.PodRanges) == 0:
		e.add(Path{From: Others, Chains: kept}, target)
	default:
		e.add(Path{From: Pods, Chains: kept}, target)
		e.add(Path{From: Elsewhere, Chains: masqueraded, Masqueraded: true}, target)
	}
}

// externalPaths are those of the chains `external` and `own_external`.
func (e *explainer) externalPaths(f Frontend, target, outside Target, apart bool) {
	fence, fenced := e.in.Ruleset.Fences.Get(f)
	own := Path{From: ThisNode, Chains: []string{chainOutput, chainOwnExternal}}
	base := Path{Chains: []string{chainPrerouting, chainExternal}, Fenced: fenced, Ranges: fence.Ranges}
	if fenced {
		e.fenceElements(f, fence)
	}
	if fenced && len(fence.Ranges) == 0 {
		base.From, base.Fate, base.Why = Others, Dropped, fmt.Sprintf("the source ranges have none of %s", e.family())
		e.Paths = append(e.Paths, base)
	} else {
		e.policyPaths(base, chainLocal, target, outside, apart)
	}
	if fence.Barred {
		own.Fate, own.Why = Dropped, "no address of this node is in the source ranges"
		e.Paths = append(e.Paths, own)
		return
	}
	if fenced {
		own.Why = "an address of this node is in the source ranges"
	}
	own.Chains, own.Masqueraded = append(own.Chains, chainMasquerade), true
	e.add(own, target)
}

// policyPaths lead to target or, where the Service has policy Local, from elsewhere to
// the endpoints on this node.
func (e *explainer) policyPaths(base Path, localChain string, target, outside Target, apart bool) {
	from := func(sender Sender, chain string) Path {
		p := base
		p.From, p.Chains = sender, append(slices.Clone(base.Chains), chain)
		return p
	}
	switch {
	case !apart:
		p := from(Others, chainMasquerade)
		p.Masqueraded = true
		e.add(p, target)
	case e.tellsPods():
		e.add(from(Pods, localChain), target)
		e.add(from(Elsewhere, localChain), outside)
	default:
		e.add(from(Others, localChain), outside)
	}
}

// add ends the path where the target leads.
func (e *explainer) add(p Path, t Target) {
	chain, class, ok := e.in.class(t.Class)
	p.Chains = append(p.Chains, chainDispatch)
	if ok {
		p.Chains = append(p.Chains, chain)
	}
	switch {
	case !ok:
		p.Fate, p.Why = Untouched, fmt.Sprintf("map %s has no element %s, somebody took it away", mapDispatch, classID(t.Class))
	case t.Class == refuseClass:
		p.Fate, p.Why = Refused, "there are no endpoints"
	case t.Class == dropClass:
		p.Fate, p.Why = Dropped, whyNoneHere
	default:
		p.Fate, p.Class, p.ID = Translated, class, t.ID
		if !slices.ContainsFunc(e.Sets, func(s EndpointSet) bool { return s.ID == t.ID }) {
			e.Sets = append(e.Sets, e.endpoints(t.ID, class))
		}
	}
	e.Paths = append(e.Paths, p)
}

// class returns the chain of a number, and what it does.
func (in Installed) class(number uint32) (chain string, c Class, ok bool) {
	switch {
	case number == refuseClass, number == dropClass:
		return standardChain(number), c, true
	case number < firstClass:
		return standardChain(number), Class{Slots: number}, true
	default:
		c, ok = in.Ruleset.Classes.Get(number)
		return c.chain(), c, ok
	}
}

func (e *explainer) endpoints(id uint32, class Class) EndpointSet {
	slots, _ := e.in.Ruleset.Slots.Get(SlotKey{e.family(), id})
	out := EndpointSet{ID: id, Slots: int(class.Slots)}
	count := map[netip.AddrPort]int{}
	for _, s := range slots[:min(len(slots), out.Slots)] {
		if s.Addr.IsValid() {
			count[s.Addr]++
		}
	}
	for a, n := range count {
		_, hairpin := e.in.Ruleset.Members.Get(Member{hairpinSet, single(a.Addr())})
		out.Endpoints = append(out.Endpoints, Endpoint{Addr: a, Slots: n, Hairpin: hairpin})
	}
	slices.SortFunc(out.Endpoints, func(a, b Endpoint) int { return a.Addr.Compare(b.Addr) })
	return out
}

// explainOther is for what is nobody's frontend.
func (e *explainer) explainOther() {
	both := []string{chainPrerouting + " or " + chainOutput}
	if e.has(clusterIPSet) {
		e.Kind = "another port of a ClusterIP"
		e.Elements = []Element{{Set: "set " + setClusterIPs, Text: e.At.Addr().String(), Chain: chainRefuse}}
		e.Paths = []Path{{From: Everyone, Fate: Refused, Why: "the ClusterIP has no such port", Chains: append(both, chainRefuse)}}
		return
	}
	for _, r := range e.in.members(serviceCIDRSet)[e.family()] {
		if r.Contains(e.At.Addr()) {
			e.Kind = "unassigned address of a ServiceCIDR"
			e.Elements = []Element{{Set: "set " + setServiceCIDRs, Text: r.String()}}
			e.Paths = []Path{{From: Everyone, Fate: Dropped, Why: "no Service has this address", Chains: both}}
			return
		}
	}
	e.Kind = "no address of a Service"
	e.Paths = []Path{{From: Everyone, Fate: Untouched, Why: "no rule is about this address and port", Chains: both}}
}
