package main

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"

	"fairlead.dev/fairlead/test/netlab"
)

const (
	// askTimeout bounds one request: the answer takes below 1 ms, and a lost SYN is
	// sent again after 1 s.
	askTimeout = 3 * time.Second

	// moreRequests is up to how many times as many requests are made as were asked for
	// when not every pod has answered yet. Of 150 random choices among 3 pods all miss
	// one with a probability below 1e-25.
	moreRequests = 5
)

// ingressIP is the kind of a route to an address of a LoadBalancer Service.
const ingressIP = "ingress IP"

// protocols are what every path is tried with.
var protocols = []string{"HTTP", "UDP"}

// route is a way to a Service: who asks where, and what the pods must see.
type route struct {
	from    *netlab.Host
	kind    string // "ClusterIP", ...
	to      netip.AddrPort
	sources []source // any of these
	kept    bool     // the source is from's own
}

// source is an address that pods may see, and whose it is.
type source struct {
	addr netip.Addr
	name string
}

func (r route) String() string { return fmt.Sprintf("%s -> %s %s", r.from.Name, r.kind, r.to) }

// frontends are what the Services of config/samples can be reached at.
type frontends struct {
	cluster, lb []netip.AddrPort
	nodePort    uint16
}

// frontendsOf picks the frontends out of the Services, by what they are.
func frontendsOf(services []corev1.Service) (frontends, error) {
	var f frontends
	for i := range services {
		svc := &services[i]
		if len(svc.Spec.Selector) == 0 || svc.Spec.ClusterIP == corev1.ClusterIPNone {
			continue
		}
		port := uint16(svc.Spec.Ports[0].Port)
		switch svc.Spec.Type {
		case corev1.ServiceTypeClusterIP:
			f.cluster = addrPorts(svc.Spec.ClusterIPs, port)
		case corev1.ServiceTypeNodePort:
			f.nodePort = uint16(svc.Spec.Ports[0].NodePort)
		case corev1.ServiceTypeLoadBalancer:
			f.lb = addrPorts(ingressIPs(svc), port)
			if want := len(svc.Spec.IPFamilies); len(f.lb) < want {
				return f, fmt.Errorf("%s has %d ingress addresses, not %d", svc.Name, len(f.lb), want)
			}
		default: // ExternalName has no address
		}
	}
	if len(f.cluster) == 0 || len(f.lb) == 0 || f.nodePort == 0 {
		return f, fmt.Errorf("the samples lack a Service of type ClusterIP, NodePort or LoadBalancer")
	}
	return f, nil
}

func ingressIPs(svc *corev1.Service) []string {
	var out []string
	for _, ingress := range svc.Status.LoadBalancer.Ingress {
		if ingress.IP != "" {
			out = append(out, ingress.IP)
		}
	}
	return out
}

// addrPorts adds port to those of ips that are addresses.
func addrPorts(ips []string, port uint16) []netip.AddrPort {
	var out []netip.AddrPort
	for _, ip := range ips {
		if addr, err := netip.ParseAddr(ip); err == nil {
			out = append(out, netip.AddrPortFrom(addr, port))
		}
	}
	return out
}

// virtualIPs returns what nodes must have rules for, beside node ports: every port of
// every ClusterIP and ingress address of all Services.
func virtualIPs(services []corev1.Service) map[frontend]bool {
	out := map[frontend]bool{}
	for i := range services {
		svc := &services[i]
		ips := append(append([]string{}, svc.Spec.ClusterIPs...), ingressIPs(svc)...)
		for _, port := range svc.Spec.Ports {
			for _, to := range addrPorts(ips, uint16(port.Port)) {
				out[frontend{to.Addr(), protocolName(string(port.Protocol)), to.Port()}] = true
			}
		}
	}
	return out
}

// routes returns every way to try. Outside clients have no route to ClusterIPs. What
// pods see is what the first column of dataplane.md's table says: a pod's address is
// kept to a ClusterIP; everything else comes from the node that translated it.
func (w *world) routes(f frontends) []route {
	shell, first := w.pod("shell"), &w.nodes[0].Host
	var out []route
	for _, from := range []*netlab.Host{shell.Host, first, w.client} {
		own := w.nodesOf(from)
		if from != w.client {
			for _, to := range f.cluster {
				r := route{from: from, kind: "ClusterIP", to: to, kept: from == shell.Host, sources: translators(own, to.Addr())}
				if r.kept {
					r.sources = []source{{addrOf(from, to.Addr()), from.Name}}
				}
				out = append(out, r)
			}
		}
		for _, n := range w.nodes {
			to := netip.AddrPortFrom(n.IPv4, f.nodePort)
			out = append(out, route{from: from, kind: "node port", to: to, sources: translators([]*node{n}, to.Addr())})
		}
		for _, to := range f.lb {
			out = append(out, route{from: from, kind: ingressIP, to: to, sources: translators(own, to.Addr())})
		}
	}
	return out
}

// nodesOf returns the nodes that packets of host come to first: its own one, or any for
// a client outside.
func (w *world) nodesOf(host *netlab.Host) []*node {
	for _, n := range w.nodes {
		if &n.Host == host {
			return []*node{n}
		}
	}
	for _, p := range w.pods {
		if p.Host == host {
			return []*node{p.node}
		}
	}
	return w.nodes
}

func translators(nodes []*node, like netip.Addr) []source {
	var out []source
	for _, n := range nodes {
		out = append(out, source{addrOf(&n.Host, like), n.Name})
	}
	return out
}

// tally counts answers.
type tally struct {
	pods    map[string]int
	sources map[netip.Addr]int
}

func newTally() tally { return tally{pods: map[string]int{}, sources: map[netip.Addr]int{}} }

// ask makes n requests, and more until every one of pods has answered.
func (r route) ask(ctx context.Context, protocol string, n int, pods []string) (tally, error) {
	t := newTally()
	for i := range n * moreRequests {
		if i >= n && t.answeredAll(pods) {
			break
		}
		if err := r.askOnce(ctx, protocol, t); err != nil {
			return t, fmt.Errorf("%s over %s, request %d: %w", r, protocol, i+1, err)
		}
	}
	return t, nil
}

// askOnce makes one request over a connection of its own, and counts the answer.
func (r route) askOnce(ctx context.Context, protocol string, t tally) error {
	timed, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	request := r.from.HTTP
	if protocol == "UDP" {
		request = r.from.UDP
	}
	name, from, err := request(timed, r.to)
	if err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return err
	}
	t.pods[name]++
	t.sources[from.Addr().Unmap()]++
	return nil
}

func (t tally) answeredAll(pods []string) bool {
	for _, p := range pods {
		if t.pods[p] == 0 {
			return false
		}
	}
	return true
}
