package dataplane

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"fairlead.dev/fairlead/internal/ipfamily"
	"fairlead.dev/fairlead/internal/service"
)

// needsLocal says whether the endpoints on this node are a set of their own.
func needsLocal(svc *service.Service) bool { return svc.InternalLocal || svc.ExternalLocal }

// needsCluster says whether anything leads to the endpoints of the whole cluster.
func needsCluster(svc *service.Service, p *service.Port) bool {
	return !svc.InternalLocal || p.NodePort != 0 || len(svc.ExternalIPs)+len(svc.LoadBalancerIPs) > 0
}

// equip gives the endpoints of p in one family their slots, and the offer its targets.
func (c *compiler) equip(o *offer, svc *service.Service, p *service.Port, f ipfamily.Family, id uint32) {
	all, here := SlotKey{f, setID(id, false)}, SlotKey{f, setID(id, true)}
	handles := c.handles(svc, p, f, id)
	cluster, local := Target{ID: all.ID, Class: refuseClass}, Target{ID: here.ID, Class: refuseClass}
	if needsCluster(svc, p) {
		cluster.Class = c.fill(svc, p, all, p.Cluster[f], handles)
	} else {
		c.empty(all)
	}
	if needsLocal(svc) {
		local.Class = c.fill(svc, p, here, p.Local[f], handles)
		if local.Class == refuseClass && len(p.Cluster[f]) > 0 {
			local.Class = dropClass
		}
	} else {
		c.empty(here)
	}
	o.internal[f], o.external[f], o.outside[f] = cluster, cluster, local
	if svc.InternalLocal {
		o.internal[f] = local
	}
}

// fill gives the backends slots of the set, and returns the number of the class that
// picks one.
func (c *compiler) fill(svc *service.Service, p *service.Port, key SlotKey, backends []service.Backend, handles map[netip.AddrPort]uint32) uint32 {
	want := spread(svc.Scheduler, backends)
	all := len(want)
	if svc.Affinity > 0 { // those beyond the handles that there are
		want = slices.DeleteFunc(want, func(a netip.AddrPort) bool { return handles[a] == 0 })
	}
	want = want[:min(len(want), MaxEndpoints)]
	if len(want) < all {
		c.refused.Set(svc.Name, fmt.Errorf("port %d: only %d of %d endpoints are used", p.Port, len(want), all))
	}
	if len(want) == 0 {
		c.empty(key)
		return refuseClass
	}
	old, _ := c.slots.Get(key)
	var now []Slot
	switch svc.Scheduler {
	case service.SourceHash, service.Maglev:
		// The same on every node: the order says it all.
		for _, a := range want {
			now = append(now, Slot{Addr: a, Handle: handles[a]})
		}
	default:
		now = place(old, want, handles)
	}
	if !slices.Equal(old, now) {
		c.slots.Set(key, now)
	}
	class := Class{Scheduler: svc.Scheduler, Slots: uint32(len(now)), Affinity: svc.Affinity.Truncate(time.Second)}
	if class.Scheduler == service.Maglev {
		class.Scheduler = service.SourceHash
	}
	if class.Scheduler == service.RoundRobin {
		class.Owner = key.ID
	}
	class.Local = class.Affinity > 0 && key.ID&1 != 0
	number, ok := c.number(key, class)
	if !ok {
		c.refused.Set(svc.Name, fmt.Errorf("port %d: more than %d ways to pick endpoints on one node", p.Port, MaxEndpoints-firstClass))
	}
	return number
}

// empty takes all slots of the set away.
func (c *compiler) empty(key SlotKey) {
	c.slots.Delete(key)
	c.useClass(key, Class{})
}

// place returns the addresses in slots. Where an address has a slot in old that is among
// those, it keeps it, the others fill the gaps in order: one endpoint that comes or goes
// costs at most two slots.
func place(old []Slot, want []netip.AddrPort, handles map[netip.AddrPort]uint32) []Slot {
	homeless := make(map[netip.AddrPort]int, len(want))
	for _, a := range want {
		homeless[a]++
	}
	now := make([]Slot, len(want))
	for i := range min(len(old), len(now)) {
		if a := old[i].Addr; homeless[a] > 0 {
			now[i] = Slot{Addr: a, Handle: handles[a]}
			homeless[a]--
		}
	}
	i := 0
	for _, a := range want {
		if homeless[a] == 0 {
			continue
		}
		homeless[a]--
		for now[i].Addr.IsValid() {
			i++
		}
		now[i] = Slot{Addr: a, Handle: handles[a]}
	}
	return now
}

// handles returns the handle of each endpoint of p, nil without affinity. An endpoint
// keeps its handle as long as it is one of them. Of more than MaxEndpoints, some have
// none.
func (c *compiler) handles(svc *service.Service, p *service.Port, f ipfamily.Family, id uint32) map[netip.AddrPort]uint32 {
	if svc.Affinity == 0 {
		return nil
	}
	known, used := c.knownHandles(f, id)
	out := map[netip.AddrPort]uint32{}
	var homeless []netip.AddrPort
	for _, b := range slices.Concat(p.Local[f], p.Cluster[f]) {
		if h := known[b.Addr]; h != 0 {
			out[b.Addr] = h
		} else {
			homeless = append(homeless, b.Addr)
		}
	}
	var last uint32
	for h := range used {
		last = max(last, h)
	}
	// What clients may remember of an endpoint that is gone leads nowhere, for as long as
	// there are other handles.
	if len(used)+len(homeless) > MaxEndpoints {
		clear(used)
		for _, h := range out {
			used[h] = true
		}
	}
	for _, a := range homeless {
		if out[a] != 0 || len(used) == MaxEndpoints {
			continue
		}
		for used[last%MaxEndpoints+1] {
			last++
		}
		last = last%MaxEndpoints + 1
		used[last], out[a] = true, last
	}
	return out
}

// knownHandles returns the handles that the endpoints of a Service port have now.
func (c *compiler) knownHandles(f ipfamily.Family, id uint32) (known map[netip.AddrPort]uint32, used map[uint32]bool) {
	known, used = map[netip.AddrPort]uint32{}, map[uint32]bool{}
	for _, local := range []bool{false, true} {
		slots, _ := c.slots.Get(SlotKey{f, setID(id, local)})
		for _, s := range slots {
			if s.Handle != 0 && !used[s.Handle] && known[s.Addr] == 0 {
				known[s.Addr], used[s.Handle] = s.Handle, true
			}
		}
	}
	return known, used
}
