package service

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
	"unique"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"fairlead.dev/fairlead/api/v1alpha1"
	"fairlead.dev/fairlead/internal/ipfamily"
)

const (
	// labelProxyName hands a Service to another proxy (KEP-2447): it is not ours then.
	labelProxyName = "service.kubernetes.io/service-proxy-name"

	// maxAffinity is the API server's own limit of the affinity timeout, in seconds.
	maxAffinity = 86400
)

// Spec is a decoded Service: what a node has to know of it but for what stands behind
// it. It is immutable, and does not hold on to the object it came from.
type Spec struct {
	name types.NamespacedName
	// service is nil for a Service that no node rules are made for.
	service *Service
}

// DecodeService decodes s, for Store.PutService. It may run in any goroutine.
func DecodeService(s *corev1.Service) *Spec {
	out := &Spec{name: types.NamespacedName{Namespace: intern(s.Namespace), Name: s.Name}}
	// Headless, ExternalName, without an address yet, or left to another proxy.
	if _, other := s.Labels[labelProxyName]; other || s.Spec.Type == corev1.ServiceTypeExternalName ||
		s.Spec.ClusterIP == corev1.ClusterIPNone || s.Spec.ClusterIP == "" {
		return out
	}
	d := &decoder{Service: &Service{
		Name: out.name, Created: s.CreationTimestamp.Time, UID: s.UID, ResourceVersion: s.ResourceVersion,
	}}
	d.addresses(s)
	d.ports(s)
	d.policies(s)
	d.affinity(s)
	d.sourceRanges(s.Spec.LoadBalancerSourceRanges)
	d.scheduler(s.Annotations)
	out.service = d.Service
	return out
}

// decoder fills a Service, and notes what of the object it could not use.
type decoder struct{ *Service }

func (d *decoder) fault(path *field.Path, value any, must string) {
	d.Faults = append(d.Faults, field.Invalid(path, value, must).Error())
}

func (d *decoder) addresses(s *corev1.Service) {
	spec := field.NewPath("spec")
	if len(s.Spec.ClusterIPs) == 0 {
		d.ClusterIPs = d.address(nil, spec.Child("clusterIP"), s.Spec.ClusterIP)
	}
	for i, ip := range s.Spec.ClusterIPs {
		d.ClusterIPs = d.address(d.ClusterIPs, spec.Child("clusterIPs").Index(i), ip)
	}
	for i, ip := range s.Spec.ExternalIPs {
		d.ExternalIPs = d.address(d.ExternalIPs, spec.Child("externalIPs").Index(i), ip)
	}
	for i, ingress := range s.Status.LoadBalancer.Ingress {
		// ipMode Proxy says that the load balancer delivers to node ports, KEP-1860.
		if ingress.IP != "" && deref(ingress.IPMode, corev1.LoadBalancerIPModeVIP) == corev1.LoadBalancerIPModeVIP {
			path := field.NewPath("status", "loadBalancer", "ingress").Index(i).Child("ip")
			d.LoadBalancerIPs = d.address(d.LoadBalancerIPs, path, ingress.IP)
		}
	}
}

func (d *decoder) address(to []netip.Addr, path *field.Path, s string) []netip.Addr {
	addr, ok := parseAddr(s)
	if !ok {
		d.fault(path, s, "must be an IP address")
		return to
	}
	return append(to, addr)
}

func (d *decoder) ports(s *corev1.Service) {
	for i, p := range s.Spec.Ports {
		path := field.NewPath("spec", "ports").Index(i)
		protocol, ok := decodeProtocol(p.Protocol)
		switch {
		case !ok:
			d.fault(path.Child("protocol"), p.Protocol, "must be TCP, UDP or SCTP")
		case !validPort(p.Port):
			d.fault(path.Child("port"), p.Port, mustBePort)
		default:
			d.Ports = append(d.Ports, Port{Name: intern(p.Name), Protocol: protocol, Port: uint16(p.Port),
				NodePort: d.port(path.Child("nodePort"), p.NodePort)})
		}
	}
}

const mustBePort = "must be a port between 1 and 65535"

// port returns 0 for none, and for one that cannot be used.
func (d *decoder) port(path *field.Path, p int32) uint16 {
	if p == 0 {
		return 0
	}
	if !validPort(p) {
		d.fault(path, p, mustBePort)
		return 0
	}
	return uint16(p)
}

// policies decodes what kube-proxy reads of the traffic policies
// (k8s.io/kubernetes/pkg/api/v1/service): the external one says nothing where a Service
// cannot be reached from outside.
func (d *decoder) policies(s *corev1.Service) {
	spec := field.NewPath("spec")
	d.InternalLocal = d.local(spec.Child("internalTrafficPolicy"), string(deref(s.Spec.InternalTrafficPolicy, "")))
	reachable := s.Spec.Type == corev1.ServiceTypeLoadBalancer || s.Spec.Type == corev1.ServiceTypeNodePort || len(s.Spec.ExternalIPs) > 0
	d.ExternalLocal = d.local(spec.Child("externalTrafficPolicy"), string(s.Spec.ExternalTrafficPolicy)) && reachable
	if d.ExternalLocal && s.Spec.Type == corev1.ServiceTypeLoadBalancer {
		d.HealthCheckNodePort = d.port(spec.Child("healthCheckNodePort"), s.Spec.HealthCheckNodePort)
	}
}

func (d *decoder) local(path *field.Path, policy string) bool {
	switch policy {
	case "", "Cluster":
		return false
	case "Local":
		return true
	default:
		d.fault(path, policy, "must be Cluster or Local")
		return false
	}
}

func (d *decoder) affinity(s *corev1.Service) {
	spec := field.NewPath("spec")
	switch s.Spec.SessionAffinity {
	case "", corev1.ServiceAffinityNone:
		return
	case corev1.ServiceAffinityClientIP:
	default:
		d.fault(spec.Child("sessionAffinity"), s.Spec.SessionAffinity, "must be None or ClientIP")
		return
	}
	seconds := corev1.DefaultClientIPServiceAffinitySeconds
	if config := s.Spec.SessionAffinityConfig; config != nil && config.ClientIP != nil {
		asked := deref(config.ClientIP.TimeoutSeconds, seconds)
		if asked > 0 && asked <= maxAffinity {
			seconds = asked
		} else {
			d.fault(spec.Child("sessionAffinityConfig", "clientIP", "timeoutSeconds"), asked, "must be between 1 and "+strconv.Itoa(maxAffinity))
		}
	}
	d.Affinity = time.Duration(seconds) * time.Second
}

// sourceRanges decodes spec.loadBalancerSourceRanges. The annotation of the same meaning
// says nothing here, because it says nothing to kube-proxy: it is for cloud providers.
//
// A range of length 0 opens its family, and a family without a range too: who writes
// 0.0.0.0/0 alone means everyone, on a dual-stack Service as well. Without one, a family
// that has no range is closed while the other has some.
func (d *decoder) sourceRanges(in []string) {
	var ranges [len(ipfamily.All)][]netip.Prefix
	var open [len(ipfamily.All)]bool
	asked, all := false, false
	for i, s := range in {
		s = strings.TrimSpace(s) // the API lets space around them in
		if s == "" {
			continue
		}
		asked = true
		p, ok := parsePrefix(s)
		if !ok {
			d.fault(field.NewPath("spec", "loadBalancerSourceRanges").Index(i), s, "must be a CIDR")
			continue
		}
		f := ipfamily.Of(p.Addr())
		ranges[f] = append(ranges[f], p)
		open[f] = open[f] || p.Bits() == 0
		all = all || p.Bits() == 0
	}
	everyone := true
	out := []netip.Prefix{}
	for _, f := range ipfamily.All {
		if open[f] || all && len(ranges[f]) == 0 {
			ranges[f] = []netip.Prefix{zeroPrefix[f]}
		} else {
			everyone = false
		}
		slices.SortFunc(ranges[f], comparePrefixes)
		out = append(out, slices.Compact(ranges[f])...)
	}
	if asked && !everyone {
		d.SourceRanges = out
	}
}

var zeroPrefix = [len(ipfamily.All)]netip.Prefix{
	ipfamily.IPv4: netip.PrefixFrom(netip.IPv4Unspecified(), 0),
	ipfamily.IPv6: netip.PrefixFrom(netip.IPv6Unspecified(), 0),
}

var schedulers = map[string]Scheduler{
	"":                           Random,
	v1alpha1.SchedulerRandom:     Random,
	v1alpha1.SchedulerRoundRobin: RoundRobin,
	v1alpha1.SchedulerSourceHash: SourceHash,
	v1alpha1.SchedulerMaglev:     Maglev,
}

func (d *decoder) scheduler(annotations map[string]string) {
	asked := annotations[v1alpha1.AnnotationScheduler]
	scheduler, ok := schedulers[asked]
	if !ok {
		d.fault(field.NewPath("metadata", "annotations").Key(v1alpha1.AnnotationScheduler), asked,
			"must be random, round-robin, source-hash or maglev")
	}
	d.Scheduler = scheduler
}

// parseAddr reads an address as Kubernetes does. Objects from before validation was
// strict may have zeros in front, which are decimal to Kubernetes, and so to us.
func parseAddr(s string) (netip.Addr, bool) {
	a, err := netip.ParseAddr(trimZeros(s))
	return a.Unmap(), err == nil && a.Zone() == ""
}

func trimZeros(s string) string {
	if strings.Contains(s, ":") || !strings.HasPrefix(s, "0") && !strings.Contains(s, ".0") {
		return s
	}
	octets := strings.Split(s, ".")
	for i, octet := range octets {
		octets[i] = cmp.Or(strings.TrimLeft(octet, "0"), octet[:min(1, len(octet))])
	}
	return strings.Join(octets, ".")
}

// parsePrefix reads a CIDR like parseAddr, without the bits beyond its length.
func parsePrefix(s string) (netip.Prefix, bool) {
	address, length, _ := strings.Cut(s, "/")
	p, err := netip.ParsePrefix(trimZeros(address) + "/" + length)
	if err != nil {
		return netip.Prefix{}, false
	}
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p.Masked(), true
}

func comparePrefixes(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
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

// intern returns the one copy of a string that many objects have.
func intern(s string) string { return unique.Make(s).Value() }

func deref[T any](p *T, otherwise T) T {
	if p == nil {
		return otherwise
	}
	return *p
}
