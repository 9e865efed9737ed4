package dataplane_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"fairlead.dev/fairlead/internal/dataplane"
	"fairlead.dev/fairlead/internal/ipfamily"
	"fairlead.dev/fairlead/test/netlab"
)

// silence is for how long a packet that must not be answered is waited for.
const silence = 300 * time.Millisecond

// request asks the Echo at an address who it is and whom it sees.
type request func(*netlab.Host, context.Context, netip.AddrPort) (string, netip.AddrPort, error)

// protocols are what all that is promised holds for. The refusal is what a client gets
// where there is nothing to reach.
var protocols = []struct {
	name    corev1.Protocol
	ask     request
	refusal string
}{
	{corev1.ProtocolTCP, (*netlab.Host).HTTP, "RST"},
	{corev1.ProtocolUDP, (*netlab.Host).UDP, "ICMP"},
	{corev1.ProtocolSCTP, (*netlab.Host).SCTP, "ICMP"},
}

var allProtocols = []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP}

// The kinds of addresses a Service is reached at.
const (
	clusterIP      = "ClusterIP"
	nodePort       = "NodePort"
	loadBalancerIP = "LoadBalancerIP"
	externalIP     = "ExternalIP"
)

var vipKinds = []string{clusterIP, nodePort, loadBalancerIP, externalIP}

// vipPrefixes are where the addresses of Services are; the first of each family is the
// ServiceCIDR.
var vipPrefixes = []netip.Prefix{
	netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:10:96::/112"),
	netip.MustParsePrefix("198.18.0.0/24"), netip.MustParsePrefix("fd00:172:18:1::/112"),
	netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("2001:db8::/112"),
}

// vipOf returns the address of a kind of the i-th Service.
func vipOf(f ipfamily.Family, kind string, i int) netip.Addr {
	format := map[string][2]string{
		clusterIP:      {"10.96.0.%d", "fd00:10:96::%d"},
		loadBalancerIP: {"198.18.0.%d", "fd00:172:18:1::%d"},
		externalIP:     {"198.51.100.%d", "2001:db8::%d"},
	}[kind][f]
	return netip.MustParseAddr(fmt.Sprintf(format, i))
}

// numbered is a Service with every kind of address, of both families: port 80, and node
// port 30000 + i. It is of type LoadBalancer.
func numbered(i int, endpoints ...*netlab.Host) svc {
	both := func(kind string) []string {
		return []string{vipOf(ipfamily.IPv4, kind, i).String(), vipOf(ipfamily.IPv6, kind, i).String()}
	}
	return svc{
		name: fmt.Sprint("s", i), clusterIPs: both(clusterIP), lbIPs: both(loadBalancerIP), externals: both(externalIP),
		port: 80, target: 8080, nodePort: int32(30000 + i), endpoints: hostAddrs(endpoints), protocols: allProtocols,
		edit: []func(*corev1.Service){func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeLoadBalancer }},
	}
}

func externalLocal(s *corev1.Service) {
	s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
}

func internalLocal(s *corev1.Service) {
	s.Spec.InternalTrafficPolicy = new(corev1.ServiceInternalTrafficPolicyLocal)
}

func hostAddrs(hosts []*netlab.Host) (out []string) {
	for _, h := range hosts {
		out = append(out, h.IPv4.String(), h.IPv6.String())
	}
	return out
}

func addrOf(h *netlab.Host, f ipfamily.Family) netip.Addr {
	if f == ipfamily.IPv4 {
		return h.IPv4
	}
	return h.IPv6
}

// scene is a world with everybody who may ask. The addresses of Services are routed to
// node1 from outside.
type scene struct {
	*world
	t           testing.TB
	pod, remote *netlab.Host // on node1 and node2
	sinks       []*nodeSink
	around      []surroundings
	asked       uint16 // how often census asked, from port 10001 on
}

// secondAddr is another address of node1, which it uses towards the addresses of
// Services: what is masqueraded has the first.
var secondAddr = [2]netip.Prefix{netip.MustParsePrefix("172.18.0.61/24"), netip.MustParsePrefix("fd00:172:18::61/64")}

func newScene(t testing.TB, nodes int, cfg dataplane.Config) *scene {
	t.Helper()
	s := &scene{world: newWorld(t, nodes), t: t, asked: 10000}
	var err error
	s.pod, err = s.nodes[0].AddPod("pod")
	must(t, err)
	if nodes > 1 {
		s.remote, err = s.nodes[1].AddPod("remote-pod")
		must(t, err)
	}
	node := s.nodes[0]
	for _, a := range secondAddr {
		must(t, node.AddAddr(a))
	}
	// Deprecated, so that it is the source only where a route says so.
	s.ip("addr", "change", secondAddr[ipfamily.IPv6].String(), "dev", node.Link, "preferred_lft", "0")
	for _, prefix := range vipPrefixes {
		f := ipfamily.Of(prefix.Addr())
		must(t, s.client.AddRoute(prefix, addrOf(&node.Host, f)))
		s.ip("route", "replace", prefix.String(), "via", addrOf(s.lab.Gateway(), f).String(), "src", secondAddr[f].Addr().String())
	}
	for i, n := range s.nodes {
		s.sinks = append(s.sinks, s.on(t, i, cfg))
		s.around = append(s.around, surroundings{
			node: n.Name, nodePortAddrs: []netip.Addr{n.IPv4, n.IPv6}, nodeAddrs: []netip.Addr{n.IPv4, n.IPv6},
			podCIDRs: podCIDRs, serviceCIDRs: vipPrefixes[:2],
		})
	}
	return s
}

// byCIDRs is the usual configuration.
var byCIDRs = dataplane.Config{Local: dataplane.LocalTraffic{CIDRs: true}}

// ip runs the ip command on node1.
func (s *scene) ip(args ...string) {
	s.t.Helper()
	if out, err := s.nodes[0].Output(s.t.Context(), "ip", args...); err != nil {
		s.t.Fatalf("ip %v: %v\n%s", args, err, out)
	}
}

// apply writes the rules of the services on all nodes.
func (s *scene) apply(services ...svc) {
	s.t.Helper()
	for i, sink := range s.sinks {
		sink.apply(s.around[i].of(services...))
	}
}

// clients are everybody who may ask, by the words of the tables.
func (s *scene) clients() map[string]*netlab.Host {
	return map[string]*netlab.Host{"pod": s.pod, "remote pod": s.remote, "node": &s.nodes[0].Host, "outside": s.client}
}

// vip returns where the i-th Service is reached at by a client: node ports are those of
// its own node, or of node1 from outside.
func (s *scene) vip(f ipfamily.Family, client *netlab.Host, kind string, i int) netip.AddrPort {
	if kind != nodePort {
		return netip.AddrPortFrom(vipOf(f, kind, i), 80)
	}
	return netip.AddrPortFrom(addrOf(s.through(client), f), uint16(30000+i))
}

// through returns the node whose rules the packets of a client meet.
func (s *scene) through(client *netlab.Host) *netlab.Host {
	if client == s.remote {
		return &s.nodes[1].Host
	}
	return &s.nodes[0].Host
}

// source says in a word what the endpoint saw of the client's address.
func (s *scene) source(client *netlab.Host, source netip.Addr) string {
	f := ipfamily.Of(source)
	switch {
	case source == addrOf(s.through(client), f):
		return "masqueraded"
	case source == addrOf(client, f), client == &s.nodes[0].Host && source == secondAddr[f].Addr():
		return "kept"
	default:
		return source.String()
	}
}

// outcome asks once and says in words what came: the name of the endpoint and what it saw
// of the source, "RST", "ICMP" or "silence".
func (s *scene) outcome(ask request, client *netlab.Host, vip netip.AddrPort, wait time.Duration) string {
	ctx, cancel := context.WithTimeout(s.t.Context(), wait)
	defer cancel()
	name, source, err := ask(client, ctx, vip)
	switch {
	case err == nil:
		return name + " " + s.source(client, source.Addr())
	case errors.Is(err, netlab.ErrICMP):
		return "ICMP by way of TCP"
	case errors.Is(err, syscall.ECONNREFUSED) && strings.Contains(err.Error(), "over HTTP"):
		return "RST"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "ICMP"
	case errors.Is(err, context.DeadlineExceeded):
		return "silence"
	default:
		return err.Error()
	}
}

const (
	// enough requests to meet each of three endpoints but for a chance of 1 in 10^17.
	enough = 100
	// some requests meet a third endpoint that must not answer but for a chance of 1 in
	// 130, in each of at least six ways.
	some = 12
)

// want checks that exactly these outcomes come, every one of them.
func (s *scene) want(t *testing.T, ask request, client *netlab.Host, vip netip.AddrPort, want ...string) {
	t.Helper()
	wait := testTimeout
	times := enough
	if slices.Contains(want, "silence") {
		wait, times = silence, 1
	}
	seen := map[string]bool{}
	for i := range times {
		if i == 0 && t.Failed() {
			return // one silence of testTimeout is enough
		}
		got := s.outcome(ask, client, vip, wait)
		if !slices.Contains(want, got) {
			t.Errorf("%s to %s: %s, want %s", client.Name, vip, got, strings.Join(want, " or "))
			return
		}
		if seen[got] = true; len(seen) == len(want) && (i+1 >= some || len(want) == 1 && i > 0) {
			return
		}
	}
	if len(seen) != len(want) {
		t.Errorf("%s to %s: only %v, want all of %v", client.Name, vip, slices.Sorted(maps.Keys(seen)), want)
	}
}

// seenBy returns the outcomes of endpoints that all see the source in the same way.
func seenBy(source string, endpoints ...*netlab.Host) []string {
	var out []string
	for _, e := range endpoints {
		out = append(out, e.Name+" "+source)
	}
	return out
}
