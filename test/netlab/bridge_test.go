package netlab_test

import (
	"strings"
	"testing"
)

// TestBridge shows that pods on a bridge are reached like others, that their packets
// come in by the bridge, also those from one to another, and that nothing of a pod stays.
func TestBridge(t *testing.T) {
	lab := newLab(t)
	n, other := node(t, lab, "node1"), node(t, lab, "node2")
	if err := n.UseBridge("cbr0"); err != nil {
		t.Fatal(err)
	}
	a, b := pod(t, n, "pod-a"), pod(t, n, "pod-b")
	c := pod(t, other, "pod-c")
	serve(t, a)
	serve(t, c)
	if _, err := n.Output(soon(t), "nft", `table inet test {
	chain forward {
		type filter hook forward priority filter;
		ip saddr `+b.IPv4.String()+` iifname != cbr0 drop
		ip6 saddr `+b.IPv6.String()+` iifname != cbr0 drop
		ip saddr `+b.IPv4.String()+` ip daddr `+a.IPv4.String()+` counter name passed
	}
	counter passed {}
}`); err != nil {
		t.Fatal(err)
	}
	for i, source := range addrs(b) {
		expect(t, b, addrs(a)[i], "pod-a", source)
		expect(t, b, addrs(c)[i], "pod-c", source)
		expect(t, c, addrs(a)[i], "pod-a", addrs(c)[i])
		expect(t, &n.Host, addrs(a)[i], "pod-a", addrs(&n.Host)[i])
	}
	if out, err := n.Output(soon(t), "nft", "list", "counters"); err != nil || strings.Contains(string(out), "packets 0") {
		t.Errorf("%v, want packets between the pods to pass the node's hooks:\n%s", err, out)
	}
	if err := n.RemovePod(b); err != nil {
		t.Fatal(err)
	}
	for _, list := range [][]string{{"-4", "route"}, {"-6", "route"}, {"neigh"}} {
		out, err := n.Output(soon(t), "ip", list...)
		if err != nil || strings.Contains(string(out), b.IPv4.String()+" ") || strings.Contains(string(out), b.IPv6.String()+" ") {
			t.Errorf("%v, want nothing of pod-b in\n%s", err, out)
		}
	}
}
