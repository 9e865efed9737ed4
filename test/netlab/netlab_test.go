package netlab_test

import (
	"context"
	"errors"
	"net/netip"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"fairlead.dev/fairlead/test/netlab"
)

func TestMain(m *testing.M) { netlab.Main(m) }

func TestEveryHostReachesTheOthers(t *testing.T) {
	start := time.Now()
	c := newCluster(t)
	t.Logf("2 nodes, 4 pods, 1 client and 8 echoes took %v", time.Since(start))

	for _, from := range []*netlab.Host{&c.node1.Host, c.a, c.c} {
		for _, to := range c.hosts() {
			if to == c.lab.Gateway() || to == c.client {
				continue // they know no way to pods
			}
			for i, addr := range addrs(to) {
				expect(t, from, addr, to.Name, addrs(from)[i])
			}
		}
	}
	for _, from := range []*netlab.Host{c.client, c.lab.Gateway()} {
		for _, to := range []*netlab.Host{&c.node1.Host, &c.node2.Host, c.client, c.lab.Gateway()} {
			for i, addr := range addrs(to) {
				expect(t, from, addr, to.Name, addrs(from)[i])
			}
		}
	}
}

func TestClientReachesPodsOverARoute(t *testing.T) {
	c := newCluster(t)
	ask := netip.AddrPortFrom(c.a.IPv4, port)
	if _, _, err := c.client.HTTP(soon(t), ask); !errors.Is(err, unix.ENETUNREACH) {
		t.Errorf("without a route: got %v, want ENETUNREACH", err)
	}
	for i, cidr := range c.node1.PodCIDRs {
		if err := c.client.AddRoute(cidr, addrs(&c.node1.Host)[i]); err != nil {
			t.Fatal(err)
		}
		expect(t, c.client, addrs(c.a)[i], "pod-a", addrs(c.client)[i])
		if err := c.client.DelRoute(cidr); err != nil {
			t.Error(err)
		}
	}
}

func TestRouteSplitsConnectionsBetweenRouters(t *testing.T) {
	c := newCluster(t)
	for i, vip := range []string{"192.0.2.1/32", "2001:db8::1/128"} {
		vip := netip.MustParsePrefix(vip)
		// Not on eth0: see AddAddr. Even on lo an IPv6 address is tentative
		// for a moment without nodad, and cannot be answered from.
		args := []string{"addr", "add", vip.String(), "dev", "lo"}
		if vip.Addr().Is6() {
			args = append(args, "nodad")
		}
		for _, n := range []*netlab.Node{c.node1, c.node2} {
			if _, err := n.Output(soon(t), "ip", args...); err != nil {
				t.Fatal(err)
			}
		}
		if err := c.client.AddRoute(vip, addrs(&c.node1.Host)[i], addrs(&c.node2.Host)[i]); err != nil {
			t.Fatal(err)
		}
		seen := map[string]int{}
		for range 64 {
			name, _, err := c.client.UDP(soon(t), netip.AddrPortFrom(vip.Addr(), port))
			if err != nil {
				t.Fatal(err)
			}
			seen[name]++
		}
		if seen["node1"] == 0 || seen["node2"] == 0 {
			t.Errorf("%s: 64 connections went to %v, want some to each node", vip, seen)
		}
		if err := c.client.AddRoute(vip, addrs(&c.node2.Host)[i]); err != nil {
			t.Fatal(err)
		}
		expect(t, c.client, vip.Addr(), "node2", addrs(c.client)[i])
	}
}

func TestAddresses(t *testing.T) {
	c := newCluster(t)
	for i, extra := range []string{"172.18.0.200/32", "fd00:172:18::200/128"} {
		extra := netip.MustParsePrefix(extra)
		if err := c.node1.AddAddr(extra); err != nil {
			t.Fatal(err)
		}
		expect(t, c.client, extra.Addr(), "node1", addrs(c.client)[i])
		if err := c.node1.AddAddr(extra); !errors.Is(err, unix.EEXIST) {
			t.Errorf("adding %s twice: got %v, want EEXIST", extra, err)
		}
		if err := c.node1.DelAddr(extra); err != nil {
			t.Fatal(err)
		}
		if err := c.node1.DelAddr(extra); !errors.Is(err, unix.EADDRNOTAVAIL) {
			t.Errorf("deleting %s twice: got %v, want EADDRNOTAVAIL", extra, err)
		}
		if err := c.client.AddRoute(extra, addrs(c.client)[1-i]); err == nil {
			t.Errorf("a route to %s via the other family: got no error", extra)
		}
	}
}

// TestServiceRules is the reason for the lab: what nft does in a node's
// namespace happens to the packets of its pods, a pod reaching itself included.
func TestServiceRules(t *testing.T) {
	c := newCluster(t)
	rules := `
table inet test {
	chain before {
		type nat hook prerouting priority dstnat;
		ip daddr 10.96.0.1 meta l4proto { tcp, udp, sctp } dnat to ` + c.a.IPv4.String() + `
		ip6 daddr fd00:10:96::1 meta l4proto { tcp, udp, sctp } dnat to ` + c.a.IPv6.String() + `
	}
	chain refuse {
		type filter hook forward priority filter;
		ip daddr 10.96.0.2 reject with icmpx port-unreachable
		ip6 daddr fd00:10:96::2 reject with icmpx port-unreachable
	}
	chain after {
		type nat hook postrouting priority srcnat;
		ip saddr ` + c.a.IPv4.String() + ` ip daddr ` + c.a.IPv4.String() + ` masquerade
		ip6 saddr ` + c.a.IPv6.String() + ` ip6 daddr ` + c.a.IPv6.String() + ` masquerade
	}
}`
	if _, err := c.node1.Output(soon(t), "nft", rules); err != nil {
		t.Fatal(err)
	}
	for i, vip := range []string{"10.96.0.1", "fd00:10:96::1"} {
		vip := netip.MustParseAddr(vip)
		expect(t, c.b, vip, "pod-a", addrs(c.b)[i])
		expect(t, c.a, vip, "pod-a", addrs(&c.node1.Host)[i]) // hairpin
		if err := c.client.AddRoute(netip.PrefixFrom(vip, vip.BitLen()), addrs(&c.node1.Host)[i]); err != nil {
			t.Fatal(err)
		}
		expect(t, c.client, vip, "pod-a", addrs(c.client)[i])
	}
	for _, vip := range []string{"10.96.0.2", "fd00:10:96::2"} {
		for range 8 { // ICMP is not rate-limited
			if _, _, err := c.b.UDP(soon(t), netip.AddrPortFrom(netip.MustParseAddr(vip), port)); !errors.Is(err, unix.ECONNREFUSED) {
				t.Fatalf("%s: got %v, want ECONNREFUSED", vip, err)
			}
		}
	}
	if out, err := c.node2.Output(soon(t), "nft", "list", "ruleset"); err != nil || len(out) != 0 {
		t.Errorf("node2 has the rules\n%s (%v), want none", out, err)
	}
}

func TestNobodyListens(t *testing.T) {
	lab := newLab(t)
	a := pod(t, node(t, lab, "node1"), "pod-a")
	client := &lab.Nodes()[0].Host
	for _, addr := range addrs(a) {
		to := netip.AddrPortFrom(addr, port)
		if _, _, err := client.HTTP(soon(t), to); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("HTTP: got %v, want ECONNREFUSED", err)
		}
		if _, _, err := client.UDP(soon(t), to); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("UDP: got %v, want ECONNREFUSED", err)
		}
	}
	if _, err := client.DialContext(soon(t), "tcp", "localhost:80"); err == nil {
		t.Error("dialing a name: got no error")
	}
}

func TestSilenceEndsWithTheContext(t *testing.T) {
	lab := newLab(t)
	a := pod(t, node(t, lab, "node1"), "pod-a")
	silent, err := a.ListenPacket(t.Context(), "udp", ":8080")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = silent.Close() }() // nothing was written that could be lost
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, _, err := a.UDP(ctx, netip.AddrPortFrom(a.IPv4, port)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want the end of the context", err)
	}
}

func TestReadiness(t *testing.T) {
	lab := newLab(t)
	a := pod(t, node(t, lab, "node1"), "pod-a")
	e := serve(t, a)
	for _, ready := range []bool{true, false, true} {
		e.SetReady(ready)
		out, err := a.Output(soon(t), "curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "http://127.0.0.1:8080/readyz")
		if want := map[bool]string{true: "200", false: "503"}[ready]; err != nil || string(out) != want {
			t.Errorf("ready %t: got %s (%v), want %s", ready, out, err, want)
		}
	}
}

func TestProcessesEndWithTheirHost(t *testing.T) {
	lab := newLab(t)
	n := node(t, lab, "node1")
	a := pod(t, n, "pod-a")
	inPod, onNode := exec.Command("sleep", "600"), exec.Command("sleep", "600")
	if err := a.Start(inPod); err != nil {
		t.Fatal(err)
	}
	if err := n.Start(onNode); err != nil {
		t.Fatal(err)
	}
	if err := n.RemovePod(a); err != nil {
		t.Fatal(err)
	}
	wantKilled(t, inPod)
	if err := onNode.Process.Signal(syscall.Signal(0)); err != nil {
		t.Errorf("the node's process: %v, want it alive", err)
	}
	if err := lab.Close(); err != nil {
		t.Fatal(err)
	}
	wantKilled(t, onNode)
	if err := n.Start(exec.Command("true")); !errors.Is(err, netlab.ErrClosed) {
		t.Errorf("starting on a closed host: got %v, want ErrClosed", err)
	}
	if err := n.RemovePod(a); err == nil {
		t.Error("removing a pod twice: got no error")
	}
}

func wantKilled(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	err := cmd.Wait()
	if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || status.Signal() != unix.SIGKILL {
		t.Errorf("%v ended with %v, want it killed", cmd, err)
	}
}

func TestPodAddressesRest(t *testing.T) {
	n := node(t, newLab(t), "node1")
	a := pod(t, n, "pod-a")
	if err := n.RemovePod(a); err != nil {
		t.Fatal(err)
	}
	again := pod(t, n, "pod-a")
	if a.IPv4 == again.IPv4 || a.IPv6 == again.IPv6 {
		t.Errorf("the next pod has the addresses %v again", addrs(again))
	}
}

func TestNamesAreChecked(t *testing.T) {
	lab := newLab(t)
	n := node(t, lab, "node1")
	for _, name := range []string{"", "node1", "../x", "A", "a.b", strings.Repeat("x", 64)} {
		if _, err := n.AddPod(name); err == nil {
			t.Errorf("a pod named %q: got no error", name)
		}
	}
	if _, err := netlab.New(); err == nil || !strings.Contains(err.Error(), "close the other lab") {
		t.Errorf("a second lab: got %v, want the advice to close the first", err)
	}
}

// TestCloseLeavesNothing compares what the world has before and after a lab.
func TestCloseLeavesNothing(t *testing.T) {
	before := inventory(t)
	lab, err := netlab.New()
	must(t, lab, err)
	n := node(t, lab, "node1")
	pod(t, n, "pod-a")
	client, err := lab.AddClient("client")
	must(t, client, err)
	if during := inventory(t); during == before {
		t.Errorf("a lab changes nothing:\n%s", during)
	}
	for range 2 {
		if err := lab.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if after := inventory(t); after != before {
		t.Errorf("left behind:\n%s\nbefore:\n%s", after, before)
	}
	if _, err := lab.AddNode("node2"); !errors.Is(err, netlab.ErrClosed) {
		t.Errorf("a node for a closed lab: got %v, want ErrClosed", err)
	}
}
