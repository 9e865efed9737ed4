package netlab_test

import (
	"context"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"fairlead.dev/fairlead/test/netlab"
)

// port is where the echoes of these tests listen.
const port = 8080

// cluster is two nodes with two pods each, and a client; all serve an echo
// that bears their name.
type cluster struct {
	lab          *netlab.Lab
	node1, node2 *netlab.Node
	a, b         *netlab.Host // on node1
	c, d         *netlab.Host // on node2
	client       *netlab.Host
}

func newLab(t *testing.T) *netlab.Lab {
	t.Helper()
	lab, err := netlab.New()
	must(t, lab, err)
	t.Cleanup(func() {
		if err := lab.Close(); err != nil {
			t.Errorf("closing the lab: %v", err)
		}
	})
	return lab
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	lab := newLab(t)
	c := &cluster{lab: lab}
	c.node1, c.node2 = node(t, lab, "node1"), node(t, lab, "node2")
	c.a, c.b = pod(t, c.node1, "pod-a"), pod(t, c.node1, "pod-b")
	c.c, c.d = pod(t, c.node2, "pod-c"), pod(t, c.node2, "pod-d")
	client, err := lab.AddClient("client")
	c.client = must(t, client, err)
	for _, h := range c.hosts() {
		serve(t, h)
	}
	return c
}

func (c *cluster) hosts() []*netlab.Host {
	return []*netlab.Host{c.lab.Gateway(), &c.node1.Host, &c.node2.Host, c.a, c.b, c.c, c.d, c.client}
}

// must ends the test on an error.
func must[T any](t *testing.T, value T, err error) T {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	return value
}

func node(t *testing.T, lab *netlab.Lab, name string) *netlab.Node {
	t.Helper()
	n, err := lab.AddNode(name)
	return must(t, n, err)
}

func pod(t *testing.T, n *netlab.Node, name string) *netlab.Host {
	t.Helper()
	h, err := n.AddPod(name)
	return must(t, h, err)
}

func serve(t *testing.T, h *netlab.Host) *netlab.Echo {
	t.Helper()
	e, err := netlab.StartEcho(h, h.Name, port)
	must(t, e, err)
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Errorf("closing echo %s: %v", h.Name, err)
		}
	})
	return e
}

// soon bounds what should take milliseconds.
func soon(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// addrs returns the addresses of a host, one of each family.
func addrs(h *netlab.Host) []netip.Addr { return []netip.Addr{h.IPv4, h.IPv6} }

// expect asks addr over all protocols and compares who answered and whom it saw.
func expect(t *testing.T, from *netlab.Host, to netip.Addr, name string, source netip.Addr) {
	t.Helper()
	for protocol, ask := range map[string]func(context.Context, netip.AddrPort) (string, netip.AddrPort, error){
		"HTTP": from.HTTP, "UDP": from.UDP, "SCTP": from.SCTP,
	} {
		got, src, err := ask(soon(t), netip.AddrPortFrom(to, port))
		if err != nil {
			t.Errorf("%s: %v", protocol, err)
			continue
		}
		if got != name || src.Addr() != source {
			t.Errorf("%s from %s to %s: %s saw %s, want %s to see %s", protocol, from.Name, to, got, src.Addr(), name, source)
		}
	}
}

// inventory lists the links, addresses, routes, names, mounts and handles of the world.
func inventory(t *testing.T) string {
	t.Helper()
	var all strings.Builder
	for _, args := range [][]string{
		{"-o", "link"}, {"-o", "addr"}, {"route", "show", "table", "all"}, {"-6", "route", "show", "table", "all"}, {"netns"},
	} {
		out, err := exec.Command("ip", args...).CombinedOutput()
		if err != nil {
			t.Fatalf("ip %v: %v\n%s", args, err, out)
		}
		all.Write(out)
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	all.Write(mounts)
	handles, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range handles {
		if target, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil && strings.HasPrefix(target, "net:") {
			all.WriteString("a handle of a namespace\n")
		}
	}
	return all.String()
}
