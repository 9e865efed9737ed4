package netlab_test

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"fairlead.dev/fairlead/test/netlab"
)

// TestRefusals shows that a reset, an ICMP message and silence are told apart, by a
// client beyond the node that refuses and by that node itself.
func TestRefusals(t *testing.T) {
	c := newCluster(t)
	rules := `
table inet test {
	chain refuse {
		meta l4proto . th dport { tcp . 1 } reject with tcp reset
		th dport { 1, 2 } reject with icmpx port-unreachable
		th dport 3 drop
	}
	chain out {
		type filter hook output priority filter;
		ip daddr 192.0.2.1 jump refuse
		ip6 daddr 2001:db8::1 jump refuse
	}
	chain forward {
		type filter hook forward priority filter;
		ip daddr 192.0.2.1 jump refuse
		ip6 daddr 2001:db8::1 jump refuse
	}
}`
	if _, err := c.node1.Output(soon(t), "nft", rules); err != nil {
		t.Fatal(err)
	}
	type ask = func(context.Context, netip.AddrPort) (string, netip.AddrPort, error)
	for _, from := range []*netlab.Host{c.a, &c.node1.Host} {
		for _, vip := range []string{"192.0.2.1", "2001:db8::1"} {
			for protocol, ask := range map[string]ask{"HTTP": from.HTTP, "UDP": from.UDP, "SCTP": from.SCTP} {
				for port, want := range []string{1: "refused", 2: "refused by ICMP", 3: "silence"} {
					if want == "" {
						continue
					}
					if protocol != "HTTP" && want == "refused" {
						want = "refused by ICMP"
					}
					ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
					name, _, err := ask(ctx, netip.AddrPortFrom(netip.MustParseAddr(vip), uint16(port)))
					cancel()
					got := "answered by " + name
					switch {
					case errors.Is(err, netlab.ErrICMP), protocol != "HTTP" && errors.Is(err, unix.ECONNREFUSED):
						got = "refused by ICMP"
					case errors.Is(err, unix.ECONNREFUSED):
						got = "refused"
					case errors.Is(err, context.DeadlineExceeded):
						got = "silence"
					}
					if got != want {
						t.Errorf("%s from %s to port %d of %s: %s (%v), want %s", protocol, from.Name, port, vip, got, err, want)
					}
				}
			}
		}
	}
}
