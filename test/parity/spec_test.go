package parity_test

import (
	"fmt"
	"math/rand/v2"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"fairlead.dev/fairlead/internal/ipfamily"
)

// spec is a Service that both programs get, each with the addresses of its own side.
type spec struct {
	number    int // in all addresses and names
	service   corev1.ServiceSpec
	labels    map[string]string
	external  bool // has externalIPs
	ingress   bool // has an address of a load balancer
	ipMode    *corev1.LoadBalancerIPMode
	endpoints []endpoint
}

// endpoint is one on a host of each side.
type endpoint struct {
	host       string // a key of side.hosts
	conditions discoveryv1.EndpointConditions
	hints      []string // zones
	nodeHints  []string // keys of side.hosts
	noNode     bool     // does not say which node it is on
}

// feature is something that a Service or its endpoints may have, by chance.
type feature struct {
	name   string
	chance float64
	apply  func(*rand.Rand, *spec)
}

// Endpoints, on the node under test, elsewhere and on the network of a node.
var hosts = []string{"local-1", "local-2", "remote-1", "remote-2", "node", "remote-node"}

var features = []feature{
	{"NodePort", 0.3, func(_ *rand.Rand, s *spec) { s.service.Type = corev1.ServiceTypeNodePort }},
	{"LoadBalancer", 0.5, func(_ *rand.Rand, s *spec) { s.service.Type, s.ingress = corev1.ServiceTypeLoadBalancer, true }},
	{"ipMode Proxy", 0.1, func(_ *rand.Rand, s *spec) { s.ipMode = new(corev1.LoadBalancerIPModeProxy) }},
	{"ipMode VIP", 0.2, func(_ *rand.Rand, s *spec) { s.ipMode = new(corev1.LoadBalancerIPModeVIP) }},
	{"externalIPs", 0.3, func(_ *rand.Rand, s *spec) { s.external = true }},
	{"single stack", 0.2, func(r *rand.Rand, s *spec) {
		s.service.IPFamilies = []corev1.IPFamily{[]corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol}[r.IntN(2)]}
		s.service.IPFamilyPolicy = new(corev1.IPFamilyPolicySingleStack)
	}},
	{"several ports", 0.3, func(_ *rand.Rand, s *spec) {
		s.service.Ports = append(s.service.Ports, corev1.ServicePort{Name: "more", Protocol: corev1.ProtocolTCP, Port: 443, TargetPort: intstr.FromInt32(8081)})
	}},
	{"UDP only", 0.2, func(_ *rand.Rand, s *spec) { s.service.Ports = s.service.Ports[1:] }},
	{"externalTrafficPolicy Local", 0.4, func(_ *rand.Rand, s *spec) {
		if s.service.Type != corev1.ServiceTypeClusterIP || s.external {
			s.service.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
		}
	}},
	{"internalTrafficPolicy Local", 0.3, func(_ *rand.Rand, s *spec) {
		s.service.InternalTrafficPolicy = new(corev1.ServiceInternalTrafficPolicyLocal)
	}},
	{"session affinity", 0.2, func(_ *rand.Rand, s *spec) {
		s.service.SessionAffinity = corev1.ServiceAffinityClientIP
		s.settleAffinity()
	}},
	{"source ranges", 0.3, func(r *rand.Rand, s *spec) {
		if s.service.Type == corev1.ServiceTypeLoadBalancer {
			s.service.LoadBalancerSourceRanges = [][]string{
				{"172.18.0.0/24", "fd00:172:18::/64"}, {"10.244.0.0/16", "fd00:10:244::/48"}, {"192.0.2.0/24", "2001:db8:ffff::/64"},
				{"172.18.0.0/24"}, {"fd00:10:244::/48"}, {"0.0.0.0/0", "::/0"}, {"0.0.0.0/0", "192.0.2.0/24"},
			}[r.IntN(7)]
		}
	}},
	{"no endpoints", 0.1, func(_ *rand.Rand, s *spec) { s.endpoints = nil }},
	{"no local endpoints", 0.15, func(_ *rand.Rand, s *spec) {
		s.keep(func(e endpoint) bool { return strings.HasPrefix(e.host, "remote") })
	}},
	{"draining", 0.3, func(r *rand.Rand, s *spec) {
		for i := range s.endpoints {
			if r.IntN(2) == 0 {
				s.endpoints[i].conditions = discoveryv1.EndpointConditions{Ready: new(false), Serving: new(r.IntN(3) > 0), Terminating: new(true)}
			}
		}
	}},
	{"all draining", 0.1, func(r *rand.Rand, s *spec) {
		for i := range s.endpoints {
			s.endpoints[i].conditions = discoveryv1.EndpointConditions{Ready: new(false), Serving: new(r.IntN(3) > 0), Terminating: new(true)}
		}
	}},
	{"not ready", 0.3, func(r *rand.Rand, s *spec) {
		if len(s.endpoints) > 0 {
			s.endpoints[r.IntN(len(s.endpoints))].conditions = discoveryv1.EndpointConditions{Ready: new(false), Serving: new(false)}
		}
	}},
	{"zone hints", 0.25, func(r *rand.Rand, s *spec) {
		for i := range s.endpoints {
			s.endpoints[i].hints = [][]string{{"z1"}, {"z2"}, {"z1", "z2"}}[r.IntN(3)]
		}
		if r.IntN(4) == 0 && len(s.endpoints) > 0 {
			s.endpoints[0].hints = nil // which switches them off
		}
	}},
	{"node hints", 0.2, func(_ *rand.Rand, s *spec) {
		for i, e := range s.endpoints {
			s.endpoints[i].nodeHints = []string{"node"}
			if strings.HasPrefix(e.host, "remote") {
				s.endpoints[i].nodeHints = []string{"remote-node"}
			}
		}
	}},
	{"endpoints without a node", 0.1, func(_ *rand.Rand, s *spec) {
		for i := range s.endpoints {
			s.endpoints[i].noNode = true
		}
	}},
	{"headless", 0.05, func(_ *rand.Rand, s *spec) {
		*s = spec{number: s.number, service: s.service, endpoints: s.endpoints}
		s.headless()
	}},
	{"of another proxy", 0.05, func(_ *rand.Rand, s *spec) {
		s.labels = map[string]string{"service.kubernetes.io/service-proxy-name": "other"}
	}},
	{"ExternalName", 0.05, func(_ *rand.Rand, s *spec) {
		*s = spec{number: s.number, service: corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "example.com"}}
	}},
}

func (s *spec) keep(wanted func(endpoint) bool) {
	var kept []endpoint
	for _, e := range s.endpoints {
		if wanted(e) {
			kept = append(kept, e)
		}
	}
	s.endpoints = kept
}

// settleAffinity leaves no endpoint out of which the source would tell which one chance
// picked: what the node itself serves is never masqueraded.
func (s *spec) settleAffinity() {
	if s.service.SessionAffinity == corev1.ServiceAffinityClientIP {
		s.keep(func(e endpoint) bool { return e.host != "node" })
	}
}

func (s *spec) headless() {
	s.service = corev1.ServiceSpec{Type: corev1.ServiceTypeClusterIP, ClusterIP: corev1.ClusterIPNone, Ports: s.service.Ports}
}

// newService is a Service without any feature.
func newService() corev1.ServiceSpec {
	return corev1.ServiceSpec{
		Type:           corev1.ServiceTypeClusterIP,
		IPFamilies:     []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol},
		IPFamilyPolicy: new(corev1.IPFamilyPolicyRequireDualStack),
		Ports: []corev1.ServicePort{
			{Name: "tcp", Protocol: corev1.ProtocolTCP, Port: 80, TargetPort: intstr.FromInt32(8080)},
			{Name: "udp", Protocol: corev1.ProtocolUDP, Port: 80, TargetPort: intstr.FromInt32(8080)},
		},
	}
}

// generate returns a random Service and the names of its features.
func generate(r *rand.Rand, number int) (*spec, []string) {
	s := &spec{number: number, service: newService()}
	for _, i := range r.Perm(len(hosts))[:1+r.IntN(4)] {
		s.endpoints = append(s.endpoints, endpoint{host: hosts[i]})
	}
	var names []string
	for _, f := range features {
		if r.Float64() < f.chance {
			f.apply(r, s)
			names = append(names, f.name)
		}
	}
	return s, names
}

// has says whether the Service has addresses of the family.
func (s *spec) has(f ipfamily.Family) bool {
	if s.service.ClusterIP == corev1.ClusterIPNone {
		return false
	}
	for _, have := range s.service.IPFamilies {
		if (have == corev1.IPv6Protocol) == (f == ipfamily.IPv6) {
			return true
		}
	}
	return false
}

func (s *spec) name(side *side) string { return fmt.Sprintf("s%d-%s", s.number, side.name) }

// object is the Service of one side.
func (s *spec) object(side *side) *corev1.Service {
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: s.name(side), Labels: s.labels}, Spec: *s.service.DeepCopy()}
	for _, f := range ipfamily.All {
		if !s.has(f) {
			continue
		}
		svc.Spec.ClusterIPs = append(svc.Spec.ClusterIPs, side.address(clusterIP, f, s.number).String())
		if s.external {
			svc.Spec.ExternalIPs = append(svc.Spec.ExternalIPs, side.address(externalIP, f, s.number).String())
		}
	}
	if len(svc.Spec.ClusterIPs) > 0 {
		svc.Spec.ClusterIP = svc.Spec.ClusterIPs[0]
	}
	return svc
}

// status is what a load balancer would write.
func (s *spec) status(side *side) (out corev1.LoadBalancerStatus) {
	for _, f := range ipfamily.All {
		if s.ingress && s.has(f) {
			out.Ingress = append(out.Ingress, corev1.LoadBalancerIngress{IP: side.address(loadBalancerIP, f, s.number).String(), IPMode: s.ipMode})
		}
	}
	return out
}

// slices are the EndpointSlices of one side, one for each family.
func (s *spec) slices(side *side) (out []*discoveryv1.EndpointSlice) {
	for i, kind := range []discoveryv1.AddressType{discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6} {
		slice := &discoveryv1.EndpointSlice{
			ObjectMeta:  metav1.ObjectMeta{Name: fmt.Sprintf("%s-%d", s.name(side), i), Labels: map[string]string{discoveryv1.LabelServiceName: s.name(side)}},
			AddressType: kind,
		}
		for _, p := range s.service.Ports {
			slice.Ports = append(slice.Ports, discoveryv1.EndpointPort{Name: new(p.Name), Protocol: new(p.Protocol), Port: new(p.TargetPort.IntVal)})
		}
		for _, e := range s.endpoints {
			slice.Endpoints = append(slice.Endpoints, e.object(side, ipfamily.All[i]))
		}
		out = append(out, slice)
	}
	return out
}

func (e endpoint) object(side *side, f ipfamily.Family) discoveryv1.Endpoint {
	out := discoveryv1.Endpoint{Addresses: []string{addrOf(side.hosts[e.host], f).String()}, Conditions: e.conditions}
	if !e.noNode {
		out.NodeName = new(side.node.Name)
		if strings.HasPrefix(e.host, "remote") {
			out.NodeName = new(side.hosts["remote-node"].Name)
		}
	}
	if len(e.hints)+len(e.nodeHints) > 0 {
		out.Hints = &discoveryv1.EndpointHints{}
	}
	for _, zone := range e.hints {
		out.Hints.ForZones = append(out.Hints.ForZones, discoveryv1.ForZone{Name: zone})
	}
	for _, node := range e.nodeHints {
		out.Hints.ForNodes = append(out.Hints.ForNodes, discoveryv1.ForNode{Name: side.hosts[node].Name})
	}
	return out
}
