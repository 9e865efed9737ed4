package dataplane

import (
	"fmt"
	"net/netip"
	"slices"

	"k8s.io/apimachinery/pkg/types"

	"fairlead.dev/fairlead/internal/ipfamily"
	"fairlead.dev/fairlead/internal/persistent"
	"fairlead.dev/fairlead/internal/service"
)

// portKey names a Service port for as long as it exists.
type portKey struct {
	service  types.NamespacedName
	protocol service.Protocol
	port     uint16
}

// setID is the id of one of the two sets of endpoints of a Service port.
func setID(port uint32, local bool) uint32 {
	if local {
		return port<<1 | 1
	}
	return port << 1
}

// Program is a compiled Snapshot, with what the next Compile needs to pay only for what
// changed. It is an immutable value; the zero value is that of no Services.
type Program struct {
	Ruleset  Ruleset
	Snapshot *service.Snapshot
	// Refused says, by Service, why part of it could not be compiled.
	Refused persistent.Map[types.NamespacedName, error]

	ids     persistent.Map[portKey, uint32]
	taken   persistent.Map[uint32, portKey]
	lastID  uint32
	claims  persistent.Map[Frontend, []claim]
	members persistent.Map[Member, int]   // how many want it
	numbers persistent.Map[Class, uint32] // of Ruleset.Classes
	classes persistent.Map[SlotKey, Class]
	uses    persistent.Map[Class, int] // by how many entries of classes
}

// Compile returns the Program of s. Given the Program of an earlier Snapshot, it costs
// what differs between the two, and keeps ids and slots where they are; prev is left as
// it was.
func Compile(prev Program, s *service.Snapshot) Program {
	c := newCompiler(prev, s)
	var before service.Snapshot
	if prev.Snapshot != nil {
		before = *prev.Snapshot
	}
	for ch := range persistent.Diff(before.Services, s.Services, func(a, b *service.Service) bool { return a == b }) {
		c.refused.Delete(ch.Key)
		if ch.HadOld {
			c.withdraw(ch.Old)
		}
		if ch.HasNew {
			c.install(ch.New)
		}
		if ch.HadOld {
			c.release(ch.Old, ch.New)
		}
	}
	c.exchange(nodeAddrSet, singles(before.NodePortAddrs), singles(s.NodePortAddrs))
	c.exchange(podSet, apart(before.PodCIDRs), apart(s.PodCIDRs))
	if prev.Snapshot == nil {
		c.exchange(keptSet, nil, kept(s.PodCIDRs))
	} else {
		c.exchange(keptSet, kept(before.PodCIDRs), kept(s.PodCIDRs))
	}
	c.exchange(serviceCIDRSet, apart(before.ServiceCIDRs), apart(s.ServiceCIDRs))
	if !slices.Equal(before.NodeAddrs, s.NodeAddrs) {
		for f := range prev.Ruleset.Fences.All() {
			if claims, ok := c.claims.Get(f); ok {
				c.settle(f, claims) // whether this node may pass
			}
		}
	}
	if prev.Snapshot == nil {
		// Those that were adopted, of whom nobody knows yet whether they are in use.
		for _, class := range prev.Ruleset.Classes.All() {
			c.idle = append(c.idle, class)
		}
	}
	c.dropClasses()
	return c.program(s)
}

type compiler struct {
	lastID    uint32
	nodeAddrs []netip.Addr
	frontends *persistent.Edit[Frontend, Target]
	fences    *persistent.Edit[Frontend, Fence]
	slots     *persistent.Edit[SlotKey, []Slot]
	set       *persistent.Edit[Member, struct{}]
	ids       *persistent.Edit[portKey, uint32]
	taken     *persistent.Edit[uint32, portKey]
	refused   *persistent.Edit[types.NamespacedName, error]
	claims    *persistent.Edit[Frontend, []claim]
	members   *persistent.Edit[Member, int]
	byNumber  *persistent.Edit[uint32, Class]
	numbers   *persistent.Edit[Class, uint32]
	classes   *persistent.Edit[SlotKey, Class]
	uses      *persistent.Edit[Class, int]
	idle      []Class // those that lost a use
}

func newCompiler(prev Program, s *service.Snapshot) *compiler {
	return &compiler{
		lastID: prev.lastID, nodeAddrs: s.NodeAddrs,
		frontends: prev.Ruleset.Frontends.Edit(), fences: prev.Ruleset.Fences.Edit(),
		slots: prev.Ruleset.Slots.Edit(), set: prev.Ruleset.Members.Edit(),
		ids: prev.ids.Edit(), taken: prev.taken.Edit(), refused: prev.Refused.Edit(),
		claims: prev.claims.Edit(), members: prev.members.Edit(),
		byNumber: prev.Ruleset.Classes.Edit(), numbers: prev.numbers.Edit(),
		classes: prev.classes.Edit(), uses: prev.uses.Edit(),
	}
}

func (c *compiler) program(s *service.Snapshot) Program {
	return Program{
		Ruleset: Ruleset{
			Frontends: c.frontends.Map(), Fences: c.fences.Map(), Slots: c.slots.Map(), Members: c.set.Map(),
			Classes: c.byNumber.Map(),
		},
		Snapshot: s, Refused: c.refused.Map(),
		ids: c.ids.Map(), taken: c.taken.Map(), lastID: c.lastID,
		claims: c.claims.Map(), members: c.members.Map(),
		numbers: c.numbers.Map(), classes: c.classes.Map(), uses: c.uses.Map(),
	}
}

// install adds what svc wants.
func (c *compiler) install(svc *service.Service) {
	for i := range svc.Ports {
		p := &svc.Ports[i]
		key := keyOf(svc, p)
		id, ok := c.id(key)
		if !ok {
			c.refused.Set(svc.Name, fmt.Errorf("port %d: more than %d Service ports on one node", p.Port, MaxPorts))
			continue
		}
		o := &offer{owner: key, created: svc.Created, ranges: svc.SourceRanges, apart: svc.ExternalLocal}
		for _, f := range ipfamily.All {
			c.equip(o, svc, p, f, id)
		}
		for _, f := range frontends(svc, p) {
			c.claim(f.Frontend, claim{kind: f.kind, offer: o})
		}
		c.countHairpins(svc, p, +1)
	}
	c.wantAll(clusterIPSet, singles(svc.ClusterIPs), +1)
}

// withdraw takes back what svc wanted, but for its ids and slots, which release frees:
// a Service that changed keeps both.
func (c *compiler) withdraw(svc *service.Service) {
	for i := range svc.Ports {
		p := &svc.Ports[i]
		key := keyOf(svc, p)
		if _, ok := c.ids.Get(key); !ok {
			continue // it was refused, and has claimed nothing
		}
		for _, f := range frontends(svc, p) {
			c.unclaim(f.Frontend, key)
		}
		c.countHairpins(svc, p, -1)
	}
	c.wantAll(clusterIPSet, singles(svc.ClusterIPs), -1)
}

// release frees the ids and slots of the ports that old had and now has not. A nil now
// has none.
func (c *compiler) release(old, now *service.Service) {
	kept := map[portKey]bool{}
	if now != nil {
		for i := range now.Ports {
			kept[keyOf(now, &now.Ports[i])] = true
		}
	}
	for i := range old.Ports {
		key := keyOf(old, &old.Ports[i])
		id, ok := c.ids.Get(key)
		if !ok || kept[key] {
			continue
		}
		c.ids.Delete(key)
		c.taken.Delete(id)
		for _, f := range ipfamily.All {
			for _, local := range []bool{false, true} {
				c.empty(SlotKey{f, setID(id, local)})
			}
		}
	}
}

// id returns the id of a Service port, a new one where it has none. Ids are given out
// in turn, so that one that was freed rests as long as possible: a packet that is on
// its way through the rules while they change must not meet another Service's slots.
func (c *compiler) id(key portKey) (uint32, bool) {
	if id, ok := c.ids.Get(key); ok {
		return id, true
	}
	for range MaxPorts {
		c.lastID = c.lastID%MaxPorts + 1
		if _, used := c.taken.Get(c.lastID); !used {
			c.ids.Set(key, c.lastID)
			c.taken.Set(c.lastID, key)
			return c.lastID, true
		}
	}
	return 0, false
}

// countHairpins adds by to the wishes for the hairpin entries of p's local endpoints.
func (c *compiler) countHairpins(svc *service.Service, p *service.Port, by int) {
	for _, f := range ipfamily.All {
		for _, set := range [][]service.Backend{p.Cluster[f], p.Local[f]} {
			for _, b := range set {
				if b.Local {
					c.want(Member{hairpinSet, single(b.Addr.Addr())}, by)
				}
			}
			if !needsLocal(svc) {
				break
			}
		}
	}
}

// exchange replaces what a set has.
func (c *compiler) exchange(set memberSet, before, after []netip.Prefix) {
	if !slices.Equal(before, after) {
		c.wantAll(set, before, -1)
		c.wantAll(set, after, +1)
	}
}

func (c *compiler) wantAll(set memberSet, ranges []netip.Prefix, by int) {
	for _, r := range ranges {
		c.want(Member{set, r}, by)
	}
}

func (c *compiler) want(m Member, by int) {
	n, _ := c.members.Get(m)
	if n += by; n == 0 {
		c.members.Delete(m)
		c.set.Delete(m)
		return
	}
	c.members.Set(m, n)
	c.set.Set(m, struct{}{})
}

func single(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

func singles(addrs []netip.Addr) []netip.Prefix {
	out := make([]netip.Prefix, 0, len(addrs))
	for _, a := range addrs {
		out = append(out, single(a))
	}
	return out
}

// apart returns the ranges without those that are inside another, in order: the
// kernel's sets refuse ranges that overlap.
func apart(ranges []netip.Prefix) []netip.Prefix {
	var out []netip.Prefix
	sorted := slices.Clone(ranges)
	for i := range sorted {
		sorted[i] = sorted[i].Masked()
	}
	slices.SortFunc(sorted, netip.Prefix.Compare) // what holds others comes before them
	for _, r := range sorted {
		if len(out) == 0 || !out[len(out)-1].Overlaps(r) {
			out = append(out, r)
		}
	}
	return out
}

// kept returns the sources that reach ClusterIPs unmasqueraded where pods are told by
// ranges: all of a family that has none, for then nobody knows who is a pod.
func kept(pods []netip.Prefix) []netip.Prefix {
	out := slices.Clone(pods)
	for _, f := range ipfamily.All {
		if !slices.ContainsFunc(pods, func(p netip.Prefix) bool { return ipfamily.Of(p.Addr()) == f }) {
			out = append(out, netip.PrefixFrom(unspecified(f), 0))
		}
	}
	return apart(out)
}

func keyOf(svc *service.Service, p *service.Port) portKey {
	return portKey{svc.Name, p.Protocol, p.Port}
}
