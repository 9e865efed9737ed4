package parity_test

import (
	"fmt"
	"net/netip"
	"testing"

	"fairlead.dev/fairlead/internal/ipfamily"
	"fairlead.dev/fairlead/test/cluster"
	"fairlead.dev/fairlead/test/netlab"
)

// kind is a kind of virtual address.
type kind string

const (
	clusterIP      kind = "ClusterIP"
	otherPort      kind = "another port of the ClusterIP"
	nodePort       kind = "NodePort"
	loadBalancerIP kind = "LoadBalancer IP"
	externalIP     kind = "external IP"
)

// networks are where virtual addresses are, by side and family. Only what is behind the
// side's own node leads there.
var networks = map[kind][2][2]netip.Prefix{
	clusterIP: {
		{netip.MustParsePrefix("10.96.1.0/24"), netip.MustParsePrefix("fd00:10:96::100/120")},
		{netip.MustParsePrefix("10.96.2.0/24"), netip.MustParsePrefix("fd00:10:96::200/120")},
	},
	loadBalancerIP: {
		{netip.MustParsePrefix("198.18.1.0/24"), netip.MustParsePrefix("2001:db8:1::1:0/120")},
		{netip.MustParsePrefix("198.18.2.0/24"), netip.MustParsePrefix("2001:db8:1::2:0/120")},
	},
	externalIP: {
		{netip.MustParsePrefix("198.19.1.0/24"), netip.MustParsePrefix("2001:db8:2::1:0/120")},
		{netip.MustParsePrefix("198.19.2.0/24"), netip.MustParsePrefix("2001:db8:2::2:0/120")},
	},
}

// side is one of the twins: a node with a program under test, pods on it and beyond it,
// and clients whose way to virtual addresses leads through that node.
type side struct {
	name    string
	index   int
	node    *netlab.Node
	hosts   map[string]*netlab.Host // where endpoints may be
	clients map[string]*netlab.Host
	process *cluster.Process
}

// newSide lays out a side. elsewhere is the node of the remote endpoints of both sides.
func newSide(t *testing.T, c *cluster.Cluster, index int, name string, elsewhere *netlab.Node) *side {
	t.Helper()
	node, beyond := c.AddNode(t, name), c.AddNode(t, name+"-beyond")
	s := &side{name: name, index: index, node: node, hosts: map[string]*netlab.Host{"node": &node.Host, "remote-node": &elsewhere.Host}}
	serve(t, &node.Host, "node")
	for _, local := range []string{"local-1", "local-2"} {
		s.hosts[local] = addPod(t, node, name+"-"+local)
		serve(t, s.hosts[local], local)
	}
	outside, err := c.Lab.AddClient(name + "-outside")
	must(t, err)
	s.clients = map[string]*netlab.Host{
		"pod": addPod(t, node, name+"-pod"), "endpoint": s.hosts["local-1"], "node": &node.Host,
		"remote pod": addPod(t, beyond, name+"-remote-pod"), "outside": outside,
	}
	for _, both := range networks {
		for _, prefix := range both[index] {
			via := addrOf(&node.Host, ipfamily.Of(prefix.Addr()))
			must(t, beyond.AddRoute(prefix, via))
			must(t, outside.AddRoute(prefix, via))
		}
	}
	// Answers to the remote pod go back through the node that translated.
	for _, cidr := range beyond.PodCIDRs {
		must(t, elsewhere.AddRoute(cidr, addrOf(&node.Host, ipfamily.Of(cidr.Addr()))))
	}
	return s
}

func addPod(t *testing.T, n *netlab.Node, name string) *netlab.Host {
	t.Helper()
	pod, err := n.AddPod(name)
	must(t, err)
	return pod
}

// serve answers on the two target ports.
func serve(t *testing.T, h *netlab.Host, name string) {
	t.Helper()
	for _, port := range []uint16{8080, 8081} {
		echo, err := netlab.StartEcho(h, fmt.Sprintf("%s:%d", name, port), port)
		must(t, err)
		t.Cleanup(func() { must(t, echo.Close()) })
	}
}

// address is the number-th virtual address of a kind.
func (s *side) address(k kind, f ipfamily.Family, number int) netip.Addr {
	raw := networks[k][s.index][f].Addr().AsSlice()
	raw[len(raw)-1] = byte(number)
	addr, _ := netip.AddrFromSlice(raw) // of 4 or 16 bytes, as it was
	return addr
}

func addrOf(h *netlab.Host, f ipfamily.Family) netip.Addr {
	if f == ipfamily.IPv4 {
		return h.IPv4
	}
	return h.IPv6
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
