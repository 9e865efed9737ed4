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

	"fairlead.dev/fairlead/internal/ipfamily"
	"fairlead.dev/fairlead/test/netlab"
)

// matrix is the table of spec/dataplane.md for the default policy: who asks, at which
// kind of address, and what the endpoint sees as the source. Every row is tried over
// TCP and UDP, IPv4 and IPv6, with endpoints on both nodes.
var matrix = []struct {
	client, vip, source string
}{
	{"pod", "ClusterIP", "kept"},
	{"pod", "NodePort", "masqueraded"},
	{"pod", "LoadBalancerIP", "masqueraded"},
	{"pod", "ExternalIP", "masqueraded"},
	{"remote pod", "ClusterIP", "kept"},
	{"remote pod", "NodePort", "masqueraded"},
	{"remote pod", "LoadBalancerIP", "masqueraded"},
	{"remote pod", "ExternalIP", "masqueraded"},
	{"node", "ClusterIP", "masqueraded"},
	{"node", "NodePort", "masqueraded"},
	{"node", "LoadBalancerIP", "masqueraded"},
	{"node", "ExternalIP", "masqueraded"},
	{"outside", "ClusterIP", "masqueraded"},
	{"outside", "NodePort", "masqueraded"},
	{"outside", "LoadBalancerIP", "masqueraded"},
	{"outside", "ExternalIP", "masqueraded"},
}

var (
	webIPs   = map[string][2]string{"ClusterIP": {"10.96.0.10", "fd00:10:96::10"}, "LoadBalancerIP": {"172.18.0.200", "fd00:172:18:1::200"}, "ExternalIP": {"198.51.100.7", "2001:db8::7"}}
	emptyIPs = map[string][2]string{"ClusterIP": {"10.96.0.11", "fd00:10:96::11"}, "LoadBalancerIP": {"172.18.0.201", "fd00:172:18:1::201"}, "ExternalIP": {"198.51.100.8", "2001:db8::8"}}
)

// nodeSource is a second address of node1, which it uses towards virtual addresses: what
// is masqueraded has the first.
var nodeSource = [2]netip.Prefix{netip.MustParsePrefix("172.18.0.61/24"), netip.MustParsePrefix("fd00:172:18::61/64")}

// vips are where the virtual addresses are.
var vips = []netip.Prefix{
	netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:10:96::/112"),
	netip.MustParsePrefix("172.18.0.200/30"), netip.MustParsePrefix("fd00:172:18:1::/112"),
	netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("2001:db8::/112"),
}

// matrixWorld is the world of the matrix: web has endpoints on both nodes, empty none.
type matrixWorld struct {
	*world
	clients  map[string]*netlab.Host
	backends []*netlab.Host
}

func newMatrixWorld(t *testing.T) *matrixWorld {
	w := newWorld(t, 2)
	m := &matrixWorld{world: w, backends: []*netlab.Host{w.pod(t, 0, "web-1"), w.pod(t, 0, "web-2"), w.pod(t, 1, "web-3")}}
	pod, err := w.nodes[0].AddPod("client-pod")
	must(t, err)
	remote, err := w.nodes[1].AddPod("remote-pod")
	must(t, err)
	m.clients = map[string]*netlab.Host{"pod": pod, "remote pod": remote, "node": &w.nodes[0].Host, "outside": w.client}
	for _, a := range nodeSource {
		must(t, w.nodes[0].AddAddr(a))
	}
	// Deprecated, so that it is the source only where a route says so.
	if out, err := w.nodes[0].Output(t.Context(), "ip", "addr", "change", nodeSource[ipfamily.IPv6].String(), "dev", w.nodes[0].Link, "preferred_lft", "0"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, prefix := range vips {
		f := ipfamily.Of(prefix.Addr())
		must(t, w.client.AddRoute(prefix, addrOf(&w.nodes[0].Host, f)))
		out, err := w.nodes[0].Output(t.Context(), "ip", "route", "replace", prefix.String(),
			"via", addrOf(w.lab.Gateway(), f).String(), "src", nodeSource[f].Addr().String())
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	services := []svc{
		service3("web", webIPs, 30080, hostAddrs(m.backends)),
		service3("empty", emptyIPs, 30081, nil),
	}
	for i, n := range w.nodes {
		w.on(t, i).apply(snapshot([]netip.Addr{n.IPv4, n.IPv6}, services...))
	}
	return m
}

func service3(name string, ips map[string][2]string, nodePort int32, endpoints []string) svc {
	both := func(kind string) []string { return []string{ips[kind][0], ips[kind][1]} }
	return svc{name: name, clusterIPs: both("ClusterIP"), lbIPs: both("LoadBalancerIP"), externals: both("ExternalIP"),
		port: 80, target: 8080, nodePort: nodePort, endpoints: endpoints}
}

func hostAddrs(hosts []*netlab.Host) (out []string) {
	for _, h := range hosts {
		out = append(out, h.IPv4.String(), h.IPv6.String())
	}
	return out
}

// vip returns where a Service with ips is reached at.
func (m *matrixWorld) vip(f ipfamily.Family, kind string, ips map[string][2]string, nodePort uint16) netip.AddrPort {
	if kind == "NodePort" {
		return netip.AddrPortFrom(addrOf(&m.nodes[0].Host, f), nodePort)
	}
	return netip.AddrPortFrom(netip.MustParseAddr(ips[kind][f]), 80)
}

func addrOf(h *netlab.Host, f ipfamily.Family) netip.Addr {
	if f == ipfamily.IPv4 {
		return h.IPv4
	}
	return h.IPv6
}

type request func(*netlab.Host, context.Context, netip.AddrPort) (string, netip.AddrPort, error)

var requests = map[string]request{"TCP": (*netlab.Host).HTTP, "UDP": (*netlab.Host).UDP}

func TestMatrix(t *testing.T) {
	m := newMatrixWorld(t)
	for _, row := range matrix {
		for proto, ask := range requests {
			for _, f := range ipfamily.All {
				t.Run(fmt.Sprintf("%s to %s %s %s", row.client, row.vip, proto, f), func(t *testing.T) {
					client := m.clients[row.client]
					m.wantAll(t, ask, client, m.vip(f, row.vip, webIPs, 30080), func(source netip.Addr) string {
						through := &m.nodes[0].Host
						if row.client == "remote pod" && row.vip != "NodePort" {
							through = &m.nodes[1].Host
						}
						switch {
						case source == addrOf(through, f):
							return "masqueraded"
						case source == addrOf(client, f), row.client == "node" && source == nodeSource[f].Addr():
							return "kept"
						default:
							return source.String()
						}
					}, row.source)
				})
			}
		}
	}
}

// enough requests to meet each of three backends but for a chance of 1 in 10^17.
const enough = 100

// wantAll asks until every backend has answered.
func (m *matrixWorld) wantAll(t *testing.T, ask request, client *netlab.Host, vip netip.AddrPort, see func(netip.Addr) string, want string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	seen := map[string]bool{}
	for range enough {
		name, source, err := ask(client, ctx, vip)
		if err != nil {
			t.Fatalf("asking %s: %v", vip, err)
		}
		if got := see(source.Addr()); got != want {
			t.Fatalf("%s saw source %s, want it %s", name, got, want)
		}
		if seen[name] = true; len(seen) == len(m.backends) {
			return
		}
	}
	t.Errorf("only %v answered at %s", slices.Sorted(maps.Keys(seen)), vip)
}

// TestRefuse shows that a Service without endpoints refuses at every address, and so
// does another port of a ClusterIP: at once, not by silence.
func TestRefuse(t *testing.T) {
	m := newMatrixWorld(t)
	for who, client := range m.clients {
		for proto, ask := range requests {
			for _, f := range ipfamily.All {
				targets := map[string]netip.AddrPort{
					"another port of a ClusterIP": netip.AddrPortFrom(m.vip(f, "ClusterIP", webIPs, 0).Addr(), 81),
				}
				for _, kind := range []string{"ClusterIP", "NodePort", "LoadBalancerIP", "ExternalIP"} {
					targets[kind] = m.vip(f, kind, emptyIPs, 30081)
				}
				for what, vip := range targets {
					if who == "remote pod" && strings.Contains(what, "NodePort") {
						continue // node1 answers, and is asked from outside already
					}
					t.Run(fmt.Sprintf("%s to %s %s %s", who, what, proto, f), func(t *testing.T) {
						ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
						defer cancel()
						name, _, err := ask(client, ctx, vip)
						if who == "node" && proto == "UDP" && errors.Is(err, syscall.EPERM) {
							return // a sender on the node itself is told by the send that fails
						}
						if !errors.Is(err, syscall.ECONNREFUSED) {
							t.Errorf("got %q, %v from %s, want connection refused", name, err, vip)
						}
					})
				}
			}
		}
	}
}

// TestHairpin shows that a pod can reach itself through its own Service.
func TestHairpin(t *testing.T) {
	w := newWorld(t, 1)
	pod := w.pod(t, 0, "alone")
	w.on(t, 0).apply(snapshot(nil, service3("web", webIPs, 0, hostAddrs([]*netlab.Host{pod}))))
	for proto, ask := range requests {
		for _, f := range ipfamily.All {
			for kind, ips := range webIPs {
				t.Run(fmt.Sprintf("%s %s %s", kind, proto, f), func(t *testing.T) {
					ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
					defer cancel()
					name, source, err := ask(pod, ctx, netip.AddrPortFrom(netip.MustParseAddr(ips[f]), 80))
					if err != nil || name != "alone" || source.Addr() == addrOf(pod, f) {
						t.Errorf("got %q from %s, %v; want an answer to a masqueraded request", name, source, err)
					}
				})
			}
		}
	}
}
