// Package conntrack removes flows that the kernel's connection tracking would go on
// translating to endpoints that are gone: only the first packet of a flow meets the
// rules, and a UDP flow lives for as long as its client keeps sending.
//
// It computes which frontends may have such flows from what changes between two
// Snapshots, walks the kernel's table datagram by datagram, and removes what it finds.
// Established TCP connections are left to their own end.
package conntrack

import (
	"net/netip"
	"slices"

	"fairlead.dev/fairlead/internal/ipfamily"
	"fairlead.dev/fairlead/internal/persistent"
	"fairlead.dev/fairlead/internal/service"
)

// frontend is where clients send: an address and port of a Service, or a node port on an
// address of this node.
type frontend struct {
	protocol service.Protocol
	addr     netip.AddrPort
}

// frontends is a set of them.
type frontends map[frontend]struct{}

// claim is a Service port that is reached at a frontend. It is an index, so that claims
// can be compared.
type claim struct {
	service *service.Service
	port    int
}

// keeps says whether flows to backend are the claim's to end.
func (c claim) keeps(backend netip.AddrPort) bool {
	f, p := ipfamily.Of(backend.Addr()), &c.service.Ports[c.port]
	return has(p.Cluster[f], backend) || has(p.Local[f], backend) || serves(p.Serving[f], backend)
}

func has(backends []service.Backend, addr netip.AddrPort) bool {
	_, ok := slices.BinarySearchFunc(backends, addr, func(b service.Backend, a netip.AddrPort) int { return b.Addr.Compare(a) })
	return ok
}

func serves(backends []netip.AddrPort, addr netip.AddrPort) bool {
	_, ok := slices.BinarySearchFunc(backends, addr, netip.AddrPort.Compare)
	return ok
}

// backends calls each for the claim's backends in family f until it says false, and says
// whether all were true.
func (c claim) backends(f ipfamily.Family, each func(netip.AddrPort) bool) bool {
	p := &c.service.Ports[c.port]
	for _, backends := range [][]service.Backend{p.Cluster[f], p.Local[f]} {
		for i := range backends {
			if !each(backends[i].Addr) {
				return false
			}
		}
	}
	for _, addr := range p.Serving[f] {
		if !each(addr) {
			return false
		}
	}
	return true
}

// claims knows who has which frontend. Where several Services want the same, as two may
// name one externalIP, all of them count: a backend of the one that lost may have flows
// from the time when it had the frontend, and no client is sent away too early.
type claims struct {
	snapshot *service.Snapshot // the last that was taken in
	by       map[frontend][]claim
}

// take moves on to next, and adds to touched the frontends where flows may have become
// stale: those that are new or gone, and those that lost a backend. It costs what
// changed, but that a change of NodePortAddrs costs all Services with node ports.
func (c *claims) take(next *service.Snapshot, touched frontends) {
	var prev service.Snapshot
	if c.snapshot != nil {
		prev = *c.snapshot
	}
	same := func(a, b *service.Service) bool { return a == b }
	for ch := range persistent.Diff(prev.Services, next.Services, same) {
		c.replace(wishes(ch.Old, prev.NodePortAddrs), wishes(ch.New, next.NodePortAddrs), touched)
	}
	if !slices.Equal(prev.NodePortAddrs, next.NodePortAddrs) {
		for name, svc := range next.Services.All() {
			if old, ok := prev.Services.Get(name); ok && old == svc && hasNodePort(svc) {
				c.replace(wishes(svc, prev.NodePortAddrs), wishes(svc, next.NodePortAddrs), touched)
			}
		}
	}
	c.snapshot = next
}

func hasNodePort(svc *service.Service) bool {
	return slices.ContainsFunc(svc.Ports, func(p service.Port) bool { return p.NodePort != 0 })
}

// replace takes back the old wishes of a Service and takes in its new ones.
func (c *claims) replace(old, now map[frontend][]claim, touched frontends) {
	for f, wanted := range old {
		left := slices.DeleteFunc(slices.Clone(c.by[f]), func(cl claim) bool { return slices.Contains(wanted, cl) })
		if len(left) == 0 {
			delete(c.by, f)
		} else {
			c.by[f] = left
		}
	}
	for f, wanted := range now {
		c.by[f] = append(c.by[f], wanted...)
		if _, had := old[f]; !had {
			touched[f] = struct{}{}
		}
	}
	for f, had := range old {
		if len(c.by[f]) == 0 || slices.ContainsFunc(had, func(cl claim) bool { return c.loses(f, cl) }) {
			touched[f] = struct{}{}
		}
	}
}

// loses says whether a backend of the claim may have flows at f no more.
func (c *claims) loses(f frontend, had claim) bool {
	return !had.backends(ipfamily.Of(f.addr.Addr()), func(a netip.AddrPort) bool { return c.keeps(f, a) })
}

func (c *claims) keeps(f frontend, backend netip.AddrPort) bool {
	return slices.ContainsFunc(c.by[f], func(cl claim) bool { return cl.keeps(backend) })
}

// all adds every frontend to touched.
func (c *claims) all(touched frontends) {
	for f := range c.by {
		touched[f] = struct{}{}
	}
}

// stale says whether a flow to a touched frontend has to go.
func (c *claims) stale(fl *flow) bool {
	f := frontend{fl.protocol, fl.to}
	switch {
	case fl.protocol == service.TCP && !fl.opening, c.keeps(f, fl.backend):
		return false
	case fl.backend == fl.to:
		// Never translated: it began before the rules knew the frontend. With nobody there
		// it is none of ours, and in another zone it is how others see a flow that we do
		// translate. A frontend without endpoints refuses, which beats silence.
		return len(c.by[f]) > 0 && len(fl.zone) == 0
	default:
		return true
	}
}

// wishes returns the claims of svc, by frontend. Only TCP and UDP have flows that are
// removed. A nil svc has none.
func wishes(svc *service.Service, nodeAddrs []netip.Addr) map[frontend][]claim {
	if svc == nil {
		return nil
	}
	var families [len(ipfamily.All)]bool
	for _, a := range svc.ClusterIPs {
		families[ipfamily.Of(a)] = true
	}
	out := map[frontend][]claim{}
	for i := range svc.Ports {
		p, cl := &svc.Ports[i], claim{svc, i}
		if p.Protocol != service.TCP && p.Protocol != service.UDP {
			continue
		}
		add := func(addrs []netip.Addr, port uint16) {
			for _, a := range addrs {
				// It has no rules at addresses of a family that it has no ClusterIP of.
				f := frontend{p.Protocol, netip.AddrPortFrom(a, port)}
				if families[ipfamily.Of(a)] && port != 0 && !slices.Contains(out[f], cl) {
					out[f] = append(out[f], cl)
				}
			}
		}
		add(svc.ClusterIPs, p.Port)
		add(svc.LoadBalancerIPs, p.Port)
		add(svc.ExternalIPs, p.Port)
		add(nodeAddrs, p.NodePort)
	}
	return out
}
