package dataplane_test

import (
	"fmt"
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"fairlead.dev/fairlead/internal/ipfamily"
)

// sourceRanges says who may reach the load balancer's addresses.
func sourceRanges(ranges ...string) func(*corev1.Service) {
	return func(s *corev1.Service) { s.Spec.LoadBalancerSourceRanges = ranges }
}

// ranges are loadBalancerSourceRanges and who gets through to the LoadBalancerIPs, over
// IPv4 and over IPv6. The clients' addresses are 172.18.0.101 and fd00:172:18::101
// outside, 172.18.0.11 and fd00:172:18::11 on the node, 10.244.1.2 and fd00:10:244:1::2
// in the pod.
var ranges = []struct {
	name               string
	ranges             []string
	pod, node, outside [2]bool
}{
	{"none", nil, both, both, both},
	{"everyone", []string{"0.0.0.0/0", "::/0"}, both, both, both},
	{"everyone of one family is everyone", []string{"0.0.0.0/0"}, both, both, both},
	{"everyone among others", []string{"192.0.2.0/24", "0.0.0.0/0", "2001:db8:1::/64"}, ipv4, ipv4, ipv4},
	{"the client outside", []string{"172.18.0.101/32", "fd00:172:18::101/128"}, neither, neither, both},
	{"its network, and in it the node", []string{"172.18.0.0/24", "fd00:172:18::/64"}, neither, both, both},
	{"the node alone", []string{"172.18.0.11/32", "fd00:172:18::11/128"}, neither, both, neither},
	{"pods", []string{"10.244.0.0/16", "fd00:10:244::/48"}, both, neither, neither},
	{"one family: the other is closed", []string{"172.18.0.0/24", "10.244.0.0/16"}, ipv4, ipv4, ipv4},
	{"the other way round", []string{"fd00:172:18::/64"}, neither, ipv6, ipv6},
	{"ranges inside others", []string{"172.18.0.101/32", "172.18.0.0/16", "172.18.0.0/24", "fd00:172::/32", "fd00:172:18::/64"}, neither, both, both},
	{"side by side", []string{"172.18.0.100/31", "172.18.0.102/31", "fd00:172:18::100/127", "fd00:172:18::102/127", "fd00:172:18::101/128"}, neither, neither, both},
	{"strangers", []string{"192.0.2.0/24", "2001:db8:1::/64"}, neither, neither, neither},
}

var (
	neither = [2]bool{}
	ipv4    = [2]bool{ipfamily.IPv4: true}
	ipv6    = [2]bool{ipfamily.IPv6: true}
	both    = [2]bool{true, true}
)

func TestSourceRanges(t *testing.T) {
	s := newScene(t, 1, byCIDRs)
	web := s.world.pod(t, 0, "web")
	var services []svc
	for i, row := range ranges {
		services = append(services, numbered(i+1, web).with(sourceRanges(row.ranges...)))
	}
	s.apply(services...)
	quiet := &quiet{t: t}
	defer quiet.wait()
	for i, row := range ranges {
		for who, may := range map[string][2]bool{"pod": row.pod, "node": row.node, "outside": row.outside} {
			client := s.clients()[who]
			masqueraded, cluster := "web masqueraded", "web masqueraded"
			if who == "pod" {
				cluster = "web kept"
			}
			each(t, fmt.Sprintf("%s, %s", row.name, who), func(t *testing.T, ask request, f ipfamily.Family, _ string) {
				lb := s.vip(f, client, loadBalancerIP, i+1)
				if may[f] {
					s.want(t, ask, client, lb, masqueraded)
				} else {
					quiet.check(t.Name(), func() string { return s.outcome(ask, client, lb, silence) })
				}
				// The other addresses of the Service are open to all.
				s.want(t, ask, client, s.vip(f, client, clusterIP, i+1), cluster)
				s.want(t, ask, client, s.vip(f, client, nodePort, i+1), masqueraded)
				s.want(t, ask, client, s.vip(f, client, externalIP, i+1), masqueraded)
			})
		}
	}
}

// TestSourceRangesLocal shows that the ranges hold under externalTrafficPolicy Local too,
// on every node, and where the address is an external IP besides.
func TestSourceRangesLocal(t *testing.T) {
	s := newScene(t, 2, byCIDRs)
	near, far := s.world.pod(t, 0, "near"), s.world.pod(t, 1, "far")
	pods := numbered(1, near, far).with(externalLocal, sourceRanges("10.244.0.0/16", "fd00:10:244::/48"))
	outside := numbered(2, near, far).with(externalLocal, sourceRanges("172.18.0.101/32", "fd00:172:18::101/128"))
	outside.externals = outside.lbIPs
	s.apply(pods, outside)
	quiet := &quiet{t: t}
	defer quiet.wait()
	each(t, "", func(t *testing.T, ask request, f ipfamily.Family, _ string) {
		s.want(t, ask, s.pod, s.vip(f, s.pod, loadBalancerIP, 1), "near kept", "far kept")
		s.want(t, ask, s.remote, s.vip(f, s.remote, loadBalancerIP, 1), "near kept", "far kept")
		s.want(t, ask, s.client, s.vip(f, s.client, loadBalancerIP, 2), "near kept")
		quiet.check(t.Name(), func() string { return s.outcome(ask, s.client, s.vip(f, s.client, loadBalancerIP, 1), silence) })
		quiet.check(t.Name(), func() string { return s.outcome(ask, s.pod, s.vip(f, s.pod, loadBalancerIP, 2), silence) })
		quiet.check(t.Name(), func() string { return s.outcome(ask, s.remote, s.vip(f, s.remote, loadBalancerIP, 2), silence) })
	})
}

// TestSourceRangesOfNode shows that the node passes as soon as it has an address in
// range, whichever it is that it asks from.
func TestSourceRangesOfNode(t *testing.T) {
	s := newScene(t, 1, byCIDRs)
	web := numbered(1, s.world.pod(t, 0, "web")).with(sourceRanges("192.0.2.5/32", "2001:db8:2::5/128"))
	node := &s.nodes[0].Host
	without := s.around[0].nodeAddrs
	with := append([]netip.Addr{netip.MustParseAddr("192.0.2.5"), netip.MustParseAddr("2001:db8:2::5")}, without...)
	for _, step := range []struct {
		addrs []netip.Addr
		want  string
	}{{without, "silence"}, {with, "web masqueraded"}, {without, "silence"}} {
		s.around[0].nodeAddrs = step.addrs
		s.apply(web)
		quiet := &quiet{t: t}
		each(t, step.want, func(t *testing.T, ask request, f ipfamily.Family, _ string) {
			vip := s.vip(f, node, loadBalancerIP, 1)
			if step.want == "silence" {
				quiet.check(t.Name(), func() string { return s.outcome(ask, node, vip, silence) })
				return
			}
			s.want(t, ask, node, vip, step.want)
		})
		quiet.wait()
	}
}
