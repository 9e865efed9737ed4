package dataplane

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"time"

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

// claim is the wish of one Service port for a frontend.
type claim struct {
	kind    FrontendKind
	created time.Time
	owner   portKey
	target  Target
}

// compare orders claims for the same frontend: by kind, then the older Service, then
// by name, so that the winner does not depend on the order of events.
func (c claim) compare(o claim) int {
	return cmp.Or(
		cmp.Compare(c.kind, o.kind),
		c.created.Compare(o.created),
		cmp.Compare(c.owner.service.String(), o.owner.service.String()),
		cmp.Compare(c.owner.port, o.owner.port),
	)
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
	members persistent.Map[Member, int] // how many Service ports want it
}

// Compile returns the Program of s. Given the Program of an earlier Snapshot, it costs
// what differs between the two, and keeps ids and slots where they are; prev is left as
// it was.
func Compile(prev Program, s *service.Snapshot) Program {
	c := &compiler{
		lastID:    prev.lastID,
		frontends: prev.Ruleset.Frontends.Edit(), slots: prev.Ruleset.Slots.Edit(), set: prev.Ruleset.Members.Edit(),
		ids: prev.ids.Edit(), taken: prev.taken.Edit(), refused: prev.Refused.Edit(),
		claims: prev.claims.Edit(), members: prev.members.Edit(),
	}
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
	for _, a := range before.NodePortAddrs {
		c.want(Member{nodeAddrSet, a}, -1)
	}
	for _, a := range s.NodePortAddrs {
		c.want(Member{nodeAddrSet, a}, +1)
	}
	return Program{
		Ruleset:  Ruleset{Frontends: c.frontends.Map(), Slots: c.slots.Map(), Members: c.set.Map()},
		Snapshot: s, Refused: c.refused.Map(),
		ids: c.ids.Map(), taken: c.taken.Map(), lastID: c.lastID,
		claims: c.claims.Map(), members: c.members.Map(),
	}
}

type compiler struct {
	lastID    uint32
	frontends *persistent.Edit[Frontend, Target]
	slots     *persistent.Edit[SlotKey, []netip.AddrPort]
	set       *persistent.Edit[Member, struct{}]
	ids       *persistent.Edit[portKey, uint32]
	taken     *persistent.Edit[uint32, portKey]
	refused   *persistent.Edit[types.NamespacedName, error]
	claims    *persistent.Edit[Frontend, []claim]
	members   *persistent.Edit[Member, int]
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
		for _, f := range ipfamily.All {
			backends := p.Cluster[f][:min(len(p.Cluster[f]), MaxEndpoints)]
			if len(backends) < len(p.Cluster[f]) {
				c.refused.Set(svc.Name, fmt.Errorf("port %d: only the first %d of %d endpoints are used",
					p.Port, MaxEndpoints, len(p.Cluster[f])))
			}
			c.place(SlotKey{f, id}, backends)
		}
		for _, f := range frontends(svc, p) {
			target := Target{ID: id, Endpoints: uint32(min(len(p.Cluster[ipfamily.Of(f.Addr)]), MaxEndpoints))}
			c.claim(f.Frontend, claim{kind: f.kind, created: svc.Created, owner: key, target: target})
		}
		c.count(p, +1)
	}
	for _, a := range svc.ClusterIPs {
		c.want(Member{clusterIPSet, a}, +1)
	}
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
		c.count(p, -1)
	}
	for _, a := range svc.ClusterIPs {
		c.want(Member{clusterIPSet, a}, -1)
	}
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
			c.slots.Delete(SlotKey{f, id})
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

// place gives every backend a slot. Backends that had one keep it as far as they can,
// so that one that comes or goes costs at most two slots.
func (c *compiler) place(key SlotKey, backends []service.Backend) {
	old, _ := c.slots.Get(key)
	now := place(old, backends)
	switch {
	case len(now) == 0:
		c.slots.Delete(key)
	case !slices.Equal(old, now):
		c.slots.Set(key, now)
	}
}

// place returns the backends in slots 0 to n-1. One whose slot in old is among those
// keeps it, the others fill the gaps in order.
func place(old []netip.AddrPort, backends []service.Backend) []netip.AddrPort {
	homeless := make(map[netip.AddrPort]bool, len(backends))
	for _, b := range backends {
		homeless[b.Addr] = true
	}
	now := make([]netip.AddrPort, len(backends))
	for i := range min(len(old), len(now)) {
		if homeless[old[i]] {
			now[i] = old[i]
			delete(homeless, old[i])
		}
	}
	i := 0
	for _, b := range backends {
		if !homeless[b.Addr] {
			continue
		}
		for now[i].IsValid() {
			i++
		}
		now[i] = b.Addr
	}
	return now
}

func (c *compiler) claim(f Frontend, wish claim) {
	old, _ := c.claims.Get(f)
	at, _ := slices.BinarySearchFunc(old, wish, claim.compare)
	c.settle(f, slices.Insert(slices.Clone(old), at, wish))
}

func (c *compiler) unclaim(f Frontend, owner portKey) {
	old, _ := c.claims.Get(f)
	c.settle(f, slices.DeleteFunc(slices.Clone(old), func(cl claim) bool { return cl.owner == owner }))
}

// settle gives the frontend to the first of its claims.
func (c *compiler) settle(f Frontend, claims []claim) {
	if len(claims) == 0 {
		c.claims.Delete(f)
		c.frontends.Delete(f)
		return
	}
	c.claims.Set(f, claims)
	c.frontends.Set(f, claims[0].target)
}

// count adds by to the wishes for the hairpin entries of p's local endpoints.
func (c *compiler) count(p *service.Port, by int) {
	for _, f := range ipfamily.All {
		for _, b := range p.Cluster[f] {
			if b.Local {
				c.want(Member{hairpinSet, b.Addr.Addr()}, by)
			}
		}
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

func keyOf(svc *service.Service, p *service.Port) portKey {
	return portKey{svc.Name, p.Protocol, p.Port}
}

type kindOfFrontend struct {
	Frontend
	kind FrontendKind
}

// frontends returns every frontend that the port wants, each once, the strongest kind
// of each first.
func frontends(svc *service.Service, p *service.Port) []kindOfFrontend {
	var out []kindOfFrontend
	var has [len(ipfamily.All)]bool
	for _, a := range svc.ClusterIPs {
		has[ipfamily.Of(a)] = true
	}
	add := func(kind FrontendKind, table frontendTable, addrs []netip.Addr, port uint16) {
		for _, a := range addrs {
			f := Frontend{table, a, p.Protocol, port}
			// A Service has endpoints of the families of its ClusterIPs only; an address
			// of another is not its own to refuse at.
			if !has[ipfamily.Of(a)] {
				continue
			}
			if !slices.ContainsFunc(out, func(k kindOfFrontend) bool { return k.Frontend == f }) {
				out = append(out, kindOfFrontend{f, kind})
			}
		}
	}
	add(ClusterIP, clusterTable, svc.ClusterIPs, p.Port)
	add(LoadBalancerIP, externalTable, svc.LoadBalancerIPs, p.Port)
	add(ExternalIP, externalTable, svc.ExternalIPs, p.Port)
	if p.NodePort != 0 {
		for _, a := range svc.ClusterIPs { // a node port serves the families of its Service
			add(NodePort, nodePortTable, []netip.Addr{unspecified(ipfamily.Of(a))}, p.NodePort)
		}
	}
	return out
}

func unspecified(f ipfamily.Family) netip.Addr {
	if f == ipfamily.IPv4 {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}
