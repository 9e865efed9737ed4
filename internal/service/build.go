package service

import (
	"net/netip"
	"slices"
	"strings"

	"fairlead.dev/fairlead/internal/ipfamily"
)

// candidate is an endpoint of one port of a Service.
type candidate struct {
	endpoint
	addr  netip.AddrPort
	zones string // that it is hinted for, joined by commas
}

// build joins a Service with its slices, which are in order of name, for a node in zone.
func build(spec *Service, all []*Slice, zone string) *Service {
	out := *spec
	out.Ports = slices.Clone(spec.Ports)
	localReady := map[netip.Addr]struct{}{} // an address counts once, whatever ports it has
	for i := range out.Ports {
		p := &out.Ports[i]
		candidates := gather(all, p.Name, p.Protocol)
		for _, c := range candidates {
			if out.HealthCheckNodePort != 0 && c.is(ready|here) {
				localReady[c.addr.Addr()] = struct{}{}
			}
		}
		for _, f := range ipfamily.All {
			n := 0
			for n < len(candidates) && ipfamily.Of(candidates[n].addr.Addr()) == f {
				n++
			}
			p.fill(f, candidates[:n], zone, out.InternalLocal || out.ExternalLocal)
			candidates = candidates[n:]
		}
	}
	for addr := range localReady {
		out.ReadyLocal[ipfamily.Of(addr)]++
	}
	for _, sl := range all {
		out.Faults = slices.Concat(out.Faults, sl.faults)
	}
	return &out
}

// gather returns the endpoints that all slices have for a port, in address order, IPv4
// first. Of the same address twice, the one that is not terminating counts, and of two
// such the one that is ready: a pod that moved between slices is in both for a moment,
// and another pod may have its address before it is gone.
func gather(all []*Slice, name string, protocol Protocol) []candidate {
	n := 0
	for _, sl := range all {
		n += len(sl.endpoints)
	}
	out := make([]candidate, 0, n)
	for _, sl := range all {
		for _, t := range sl.targets {
			if t.name != name || t.protocol != protocol {
				continue
			}
			for i, e := range sl.endpoints {
				c := candidate{endpoint: e, addr: netip.AddrPortFrom(netip.AddrFrom16(e.addr).Unmap(), t.port)}
				if sl.zones != nil {
					c.zones = sl.zones[i]
				}
				out = append(out, c)
			}
			break
		}
	}
	// Stable, so that what is equal in all that counts is taken from the first slice.
	slices.SortStableFunc(out, func(a, b candidate) int {
		if c := a.addr.Compare(b.addr); c != 0 {
			return c
		}
		return int(a.traits&terminating) - int(b.traits&terminating) + int(b.traits&ready) - int(a.traits&ready)
	})
	return slices.CompactFunc(out, func(a, b candidate) bool { return a.addr == b.addr })
}

// fill sorts the candidates of one family into p. The families are judged separately, as
// each has clients of its own.
func (p *Port) fill(f ipfamily.Family, candidates []candidate, zone string, withLocal bool) {
	inCluster := usable(candidates, preferred(candidates, zone))
	inLocal := func(*candidate) bool { return false }
	if withLocal {
		inLocal = usable(candidates, func(c *candidate) bool { return c.is(here) })
	}
	p.Cluster[f], p.Local[f] = backends(candidates, inCluster), backends(candidates, inLocal)
	for i := range candidates {
		if c := &candidates[i]; c.is(serving) && !inCluster(c) && !inLocal(c) {
			p.Serving[f] = append(p.Serving[f], c.addr)
		}
	}
}

// usable returns which of the candidates should get new connections, among some of them.
// Ready ones win; with none ready it falls back to those that are terminating but still
// serving (KEP-1669), so that a rolling restart drops no connections.
func usable(candidates []candidate, among func(*candidate) bool) func(*candidate) bool {
	want := ready
	if !slices.ContainsFunc(candidates, func(c candidate) bool { return c.is(ready) && among(&c) }) {
		want = serving | terminating
	}
	return func(c *candidate) bool { return c.is(want) && among(c) }
}

// preferred returns which candidates are for a node in zone, by their hints (KEP-4444,
// KEP-3015): those for this node when every ready one is hinted for nodes and one for
// this; else by the same rule those for the zone; else all. Where none is ready no hints
// count.
func preferred(candidates []candidate, zone string) func(*candidate) bool {
	forNode := func(c *candidate) bool { return c.is(nodeHintsHere) }
	forZone := func(c *candidate) bool { return c.hintedFor(zone) }
	allNode, allZone, anyNode, anyZone := true, true, false, false
	for i := range candidates {
		c := &candidates[i]
		if !c.is(ready) {
			continue
		}
		allNode, anyNode = allNode && c.is(nodeHints), anyNode || forNode(c)
		allZone, anyZone = allZone && c.zones != "", anyZone || forZone(c)
	}
	switch {
	case allNode && anyNode:
		return forNode
	case allZone && anyZone:
		return forZone
	default:
		return func(*candidate) bool { return true }
	}
}

func (c *candidate) hintedFor(zone string) bool {
	if zone == "" || c.zones == zone {
		return zone != ""
	}
	for name := range strings.SplitSeq(c.zones, ",") {
		if name == zone {
			return true
		}
	}
	return false
}

// backends returns the chosen candidates, nil for none, and as long as need be.
func backends(candidates []candidate, chosen func(*candidate) bool) []Backend {
	n := 0
	for i := range candidates {
		if chosen(&candidates[i]) {
			n++
		}
	}
	if n == 0 {
		return nil
	}
	out := make([]Backend, 0, n)
	for i := range candidates {
		if c := &candidates[i]; chosen(c) {
			out = append(out, Backend{Addr: c.addr, Local: c.traits&(here|nowhere) != 0, Weight: uint16(c.weight)})
		}
	}
	return out
}
