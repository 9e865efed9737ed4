package service

import (
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"

	"fairlead.dev/fairlead/internal/ipfamily"
)

// labelProxyName hands a Service to another proxy (KEP-2447): it is not ours then.
const labelProxyName = "service.kubernetes.io/service-proxy-name"

// spec is a Service without its backends.
type spec struct {
	created                                  time.Time
	uid                                      types.UID
	resourceVersion                          string
	clusterIPs, externalIPs, loadBalancerIPs []netip.Addr
	ports                                    []Port
}

// endpoint is one address of a slice with its conditions resolved: a nil ready is
// ready, a nil serving is serving, a nil terminating is not terminating (the API's own
// defaults, k8s.io/api/discovery/v1).
type endpoint struct {
	addr                        netip.Addr
	ready, serving, terminating bool
	local                       bool
}

// portKey joins the port of a Service with the ports of its slices.
type portKey struct {
	name     string
	protocol Protocol
}

// slice is what is kept of an EndpointSlice. targets are port numbers by port.
type slice struct {
	service   types.NamespacedName
	targets   map[portKey]uint16
	endpoints []endpoint
}

// decodeService returns nil for a Service that no node rules are made for: headless,
// ExternalName, without an address yet, or left to another proxy.
func decodeService(s *corev1.Service) *spec {
	if _, other := s.Labels[labelProxyName]; other || s.Spec.Type == corev1.ServiceTypeExternalName ||
		s.Spec.ClusterIP == corev1.ClusterIPNone || s.Spec.ClusterIP == "" {
		return nil
	}
	clusterIPs := s.Spec.ClusterIPs
	if len(clusterIPs) == 0 {
		clusterIPs = []string{s.Spec.ClusterIP}
	}
	out := &spec{
		created: s.CreationTimestamp.Time,
		uid:     s.UID, resourceVersion: s.ResourceVersion,
		clusterIPs:  parseAddrs(clusterIPs),
		externalIPs: parseAddrs(s.Spec.ExternalIPs),
	}
	for _, ingress := range s.Status.LoadBalancer.Ingress {
		// ipMode Proxy says that the load balancer delivers to node ports, KEP-1860.
		if ingress.IPMode == nil || *ingress.IPMode == corev1.LoadBalancerIPModeVIP {
			out.loadBalancerIPs = append(out.loadBalancerIPs, parseAddrs([]string{ingress.IP})...)
		}
	}
	for _, p := range s.Spec.Ports {
		if protocol, ok := decodeProtocol(p.Protocol); ok && validPort(p.Port) {
			out.ports = append(out.ports, Port{Name: p.Name, Protocol: protocol, Port: uint16(p.Port), NodePort: uint16(p.NodePort)})
		}
	}
	return out
}

// decodeSlice returns nil for a slice that holds nothing for node rules: FQDNs, those
// of headless Services, and those of no Service.
func decodeSlice(s *discoveryv1.EndpointSlice, node string) *slice {
	name := s.Labels[discoveryv1.LabelServiceName]
	if _, headless := s.Labels[corev1.IsHeadlessService]; headless || name == "" || s.AddressType == discoveryv1.AddressTypeFQDN {
		return nil
	}
	out := &slice{
		service: types.NamespacedName{Namespace: s.Namespace, Name: name},
		targets: make(map[portKey]uint16, len(s.Ports)),
	}
	for _, p := range s.Ports {
		protocol, ok := decodeProtocol(deref(p.Protocol, corev1.ProtocolTCP))
		if port := deref(p.Port, 0); ok && validPort(port) {
			out.targets[portKey{deref(p.Name, ""), protocol}] = uint16(port)
		}
	}
	for _, e := range s.Endpoints {
		// More than one address has no meaning and only the first counts (API docs).
		for _, addr := range parseAddrs(e.Addresses[:min(1, len(e.Addresses))]) {
			out.endpoints = append(out.endpoints, endpoint{
				addr:        addr,
				ready:       deref(e.Conditions.Ready, true),
				serving:     deref(e.Conditions.Serving, true),
				terminating: deref(e.Conditions.Terminating, false),
				local:       deref(e.NodeName, node) == node,
			})
		}
	}
	return out
}

// build joins a spec with the slices of its Service. The result does not depend on the
// order of the slices.
func build(name types.NamespacedName, s *spec, all map[string]*slice) *Service {
	out := &Service{
		Name: name, Created: s.created, UID: s.uid, ResourceVersion: s.resourceVersion,
		ClusterIPs: s.clusterIPs, ExternalIPs: s.externalIPs, LoadBalancerIPs: s.loadBalancerIPs,
		Ports: slices.Clone(s.ports),
	}
	for i := range out.Ports {
		p := &out.Ports[i]
		candidates := map[netip.AddrPort]endpoint{}
		for _, sl := range all {
			if target, ok := sl.targets[portKey{p.Name, p.Protocol}]; ok {
				collect(candidates, sl.endpoints, target)
			}
		}
		p.Cluster = usable(candidates)
	}
	return out
}

// collect adds endpoints to candidates. Of the same address twice, the one that is not
// terminating counts, and of two such the one that is ready: a pod that moved between
// slices is in both for a moment.
func collect(candidates map[netip.AddrPort]endpoint, endpoints []endpoint, port uint16) {
	for _, e := range endpoints {
		key := netip.AddrPortFrom(e.addr, port)
		old, seen := candidates[key]
		if !seen || (old.terminating && !e.terminating) || (old.terminating == e.terminating && !old.ready && e.ready) {
			candidates[key] = e
		}
	}
}

// usable returns the candidates that should get new connections, by family and in
// address order. Ready ones win; with none ready it falls back to those that are
// terminating but still serving (KEP-1669), so that a rolling restart drops no
// connections. The families are judged separately, as each has clients of its own.
func usable(candidates map[netip.AddrPort]endpoint) (out Backends) {
	var draining [len(ipfamily.All)][]Backend
	for addr, e := range candidates {
		f, b := ipfamily.Of(e.addr), Backend{Addr: addr, Local: e.local, Weight: 1}
		switch {
		case e.ready:
			out[f] = append(out[f], b)
		case e.serving && e.terminating:
			draining[f] = append(draining[f], b)
		}
	}
	for _, f := range ipfamily.All {
		if len(out[f]) == 0 {
			out[f] = draining[f]
		}
		// Sorted, because equal inputs must compile to equal rules.
		slices.SortFunc(out[f], func(a, b Backend) int { return a.Addr.Compare(b.Addr) })
	}
	return out
}

// parseAddrs leaves out what is no address: the API server has validated them, and one
// bad value must not take the others down.
func parseAddrs(in []string) []netip.Addr {
	var out []netip.Addr
	for _, s := range in {
		if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
			out = append(out, a.Unmap())
		}
	}
	return out
}

func decodeProtocol(p corev1.Protocol) (Protocol, bool) {
	switch p {
	case corev1.ProtocolTCP, "":
		return TCP, true
	case corev1.ProtocolUDP:
		return UDP, true
	case corev1.ProtocolSCTP:
		return SCTP, true
	default:
		return 0, false
	}
}

func validPort(p int32) bool { return p > 0 && p <= 65535 }

func deref[T any](p *T, otherwise T) T {
	if p == nil {
		return otherwise
	}
	return *p
}
