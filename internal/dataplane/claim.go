package dataplane

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"fairlead.dev/fairlead/internal/ipfamily"
	"fairlead.dev/fairlead/internal/service"
)

// offer is what a Service port has for whoever addresses it.
type offer struct {
	owner   portKey
	created time.Time
	// internal is where ClusterIPs lead, external where the other frontends do. outside
	// is where those lead for clients outside, where apart says that this differs.
	internal, external, outside [len(ipfamily.All)]Target
	apart                       bool
	ranges                      []netip.Prefix // who may reach LB IPs; nil is everyone
}

// claim is the wish of one Service port for a frontend.
type claim struct {
	kind FrontendKind
	*offer
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
		c.frontends.Delete(f.forOutside())
		c.fences.Delete(f)
		return
	}
	c.claims.Set(f, claims)
	first, family := claims[0], ipfamily.Of(f.Addr)
	if f.Table == clusterTable {
		c.frontends.Set(f, first.internal[family])
		return
	}
	c.frontends.Set(f, first.external[family])
	if first.apart {
		c.frontends.Set(f.forOutside(), first.outside[family])
	} else {
		c.frontends.Delete(f.forOutside())
	}
	if first.kind == LoadBalancerIP && first.ranges != nil {
		c.fences.Set(f, fenceOf(family, first.ranges, c.nodeAddrs))
	} else {
		c.fences.Delete(f)
	}
}

// forOutside is the frontend for clients outside, of one that leads elsewhere for them.
func (f Frontend) forOutside() Frontend {
	if f.Table == nodePortTable {
		f.Table = localNodePortTable
	} else {
		f.Table = localTable
	}
	return f
}

// fenceOf returns the Fence of a frontend of the family. A family without ranges is
// closed. The node passes with any of its addresses.
func fenceOf(f ipfamily.Family, ranges []netip.Prefix, nodeAddrs []netip.Addr) Fence {
	var out Fence
	for _, r := range apart(ranges) {
		if ipfamily.Of(r.Addr()) == f {
			out.Ranges = append(out.Ranges, r)
		}
	}
	out.Barred = !slices.ContainsFunc(nodeAddrs, func(a netip.Addr) bool {
		return slices.ContainsFunc(out.Ranges, func(r netip.Prefix) bool { return r.Contains(a) })
	})
	return out
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
