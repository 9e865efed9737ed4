package conntrack

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"fairlead.dev/fairlead/internal/dataplane"
	"fairlead.dev/fairlead/internal/ipfamily"
	"fairlead.dev/fairlead/internal/service"
	"fairlead.dev/fairlead/test/netlab"
)

var kinds = []string{"ClusterIP", "NodePort", "LoadBalancerIP", "ExternalIP"}

// each runs test for both families.
func each(t *testing.T, l *lab, test func(t *testing.T, f ipfamily.Family)) {
	for _, f := range ipfamily.All {
		t.Run(f.String(), func(t *testing.T) {
			l.t = t
			l.restart()
			test(t, f)
		})
	}
}

// TestUDP: a client that keeps its socket is sent on when its endpoint goes, and refused
// when the last one went.
func TestUDP(t *testing.T) {
	l := newLab(t)
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			each(t, l, func(t *testing.T, f ipfamily.Family) {
				from, to := l.vip(kind, f)
				conn := l.dial(from, "udp", to)
				l.write(l.web("a"))
				wantAnswer(t, conn, "a")
				l.write(l.web("b"))
				wantAnswer(t, conn, "a") // what this package is for
				l.sweep()
				wantAnswer(t, conn, "b")
				l.write(l.web())
				l.sweep()
				if name, err := ask(conn); !errors.Is(err, syscall.ECONNREFUSED) {
					t.Errorf("got %q, %v with no endpoint left; want connection refused", name, err)
				}
			})
		})
	}
}

// TestServingEndpointKeepsItsFlows: an endpoint that drains is left alone until it serves
// no more.
func TestServingEndpointKeepsItsFlows(t *testing.T) {
	l := newLab(t)
	each(t, l, func(t *testing.T, f ipfamily.Family) {
		l.write(l.web("a"))
		conn := l.dial(l.pods["pod"], "udp", netip.AddrPortFrom(vips["ClusterIP"][f], port))
		wantAnswer(t, conn, "a")
		draining := l.web("b", "c")
		for i := range draining.Ports {
			for f, backends := range l.backends("a") {
				draining.Ports[i].Serving[f] = []netip.AddrPort{backends[0].Addr}
			}
		}
		l.write(draining)
		l.write(l.web("b")) // so that there is something to look for,
		l.write(draining)   // and then it is as before
		l.sweep()
		wantAnswer(t, conn, "a")
		local := l.web("b")
		for i := range local.Ports {
			local.Ports[i].Local = l.backends("a")
		}
		l.write(local)
		l.sweep()
		wantAnswer(t, conn, "a")
		l.write(l.web("b"))
		l.sweep()
		wantAnswer(t, conn, "b")
	})
}

// TestEstablishedTCPIsLeftToEnd: a connection outlives its endpoint's place in the Service,
// and the Service.
func TestEstablishedTCPIsLeftToEnd(t *testing.T) {
	l := newLab(t)
	each(t, l, func(t *testing.T, f ipfamily.Family) {
		l.write(l.web("a"))
		conn := l.dial(l.pods["pod"], "tcp", netip.AddrPortFrom(vips["ClusterIP"][f], port))
		wantAnswer(t, conn, "a")
		l.write(l.web("b"))
		l.sweep()
		wantAnswer(t, conn, "a")
		l.write()
		l.sweep()
		wantAnswer(t, conn, "a")
	})
}

// TestConnectingTCPMovesOn: what has had no answer from an endpoint that went is
// connected to another one when the client repeats itself.
func TestConnectingTCPMovesOn(t *testing.T) {
	l := newLab(t)
	if out, err := l.pods["a"].Output(t.Context(), "nft", "add table inet mute; add chain inet mute input { type filter hook input priority 0; }; "+
		"add rule inet mute input tcp dport 8080 drop"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	each(t, l, func(t *testing.T, f ipfamily.Family) {
		l.write(l.web("a"))
		to := netip.AddrPortFrom(vips["ClusterIP"][f], port)
		answer := l.request(t, l.pods["pod"], to)
		l.awaitFlow(query{family: f, protocol: service.TCP, port: port})
		l.write(l.web("b"))
		l.sweep()
		if got := <-answer; got != "b <nil>" {
			t.Errorf("got %s, want an answer from b", got)
		}
	})
}

// request asks over a connection of its own, for as long as that takes.
func (l *lab) request(t *testing.T, from *netlab.Host, to netip.AddrPort) <-chan string {
	answer := make(chan string, 1)
	go func() {
		ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
		defer cancel()
		name, _, err := from.HTTP(ctx, to)
		answer <- fmt.Sprint(name, " ", err)
	}()
	return answer
}

// TestFrontendAppears: a client that began before its address was anybody's is served once
// it is.
func TestFrontendAppears(t *testing.T) {
	l := newLab(t)
	for _, kind := range []string{"LoadBalancerIP", "ExternalIP"} {
		t.Run(kind, func(t *testing.T) {
			each(t, l, func(t *testing.T, f ipfamily.Family) {
				before := l.web("a")
				before.LoadBalancerIPs, before.ExternalIPs = nil, nil
				l.write(before)
				from, to := l.vip(kind, f)
				conn := l.dial(from, "udp", to)
				if _, err := conn.Write([]byte("hello")); err != nil {
					t.Fatal(err)
				}
				l.awaitFlow(query{family: f, protocol: service.UDP, port: port})
				l.write(l.web("a"))
				l.sweep()
				wantAnswer(t, conn, "a")
			})
		})
	}
}

// TestFrontendAppearsToTCP: and so is one that is still connecting.
func TestFrontendAppearsToTCP(t *testing.T) {
	l := newLab(t)
	each(t, l, func(t *testing.T, f ipfamily.Family) {
		before := l.web("a")
		before.ExternalIPs = nil
		l.write(before)
		from, to := l.vip("ExternalIP", f)
		answer := l.request(t, from, to)
		l.awaitFlow(query{family: f, protocol: service.TCP, port: port})
		l.write(l.web("a"))
		l.sweep()
		if got := <-answer; got != "a <nil>" {
			t.Errorf("got %s, want an answer from a", got)
		}
	})
}

// TestRepaired: clients that sent while the rules were away are served again.
func TestRepaired(t *testing.T) {
	l := newLab(t)
	// Somebody else's rule, for without any the kernel keeps no flows.
	if out, err := l.node.Output(t.Context(), "nft", "add table inet other; add chain inet other input { type filter hook input priority 0; }; "+
		"add rule inet other input ct state invalid drop"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	each(t, l, func(t *testing.T, f ipfamily.Family) {
		l.write(l.web("a"))
		l.sweep()
		for _, table := range []string{"ip", "ip6"} {
			if out, err := l.node.Output(t.Context(), "nft", "delete", "table", table, dataplane.TableName); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
		}
		from, to := l.vip("ExternalIP", f)
		conn := l.dial(from, "udp", to)
		if _, err := conn.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		l.awaitFlow(query{family: f, protocol: service.UDP, port: port})
		must(t, l.node.Do(func() error { return l.sink.Check(t.Context()) }))
		l.cleaner.Repaired()
		l.sweep()
		wantAnswer(t, conn, "a")
	})
}

// TestSharedFrontend: two Services name one external address. Flows are those of whoever
// has it, and nobody's are cut because the other one comes.
func TestSharedFrontend(t *testing.T) {
	l := newLab(t)
	each(t, l, func(t *testing.T, f ipfamily.Family) {
		older, younger := l.web("a"), l.web("b")
		younger.Name = types.NamespacedName{Namespace: "default", Name: "younger"}
		younger.Created = older.Created.Add(time.Hour)
		younger.ClusterIPs = []netip.Addr{netip.MustParseAddr("10.96.0.11"), netip.MustParseAddr("fd00:10:96::11")}
		l.write(older, younger)
		from, to := l.vip("ExternalIP", f)
		conn := l.dial(from, "udp", to)
		wantAnswer(t, conn, "a")
		l.sweep()
		wantAnswer(t, conn, "a")
		l.write(younger)
		l.sweep()
		wantAnswer(t, conn, "b")
		l.write(older, younger)
		l.sweep()
		wantAnswer(t, conn, "b")
	})
}

// TestNodeAddressGoes: what comes in at an address that serves node ports no more is not
// translated any longer.
func TestNodeAddressGoes(t *testing.T) {
	l := newLab(t)
	each(t, l, func(t *testing.T, f ipfamily.Family) {
		all := l.nodePort
		defer func() { l.nodePort = all }()
		l.write(l.web("a"))
		from, to := l.vip("NodePort", f)
		conn := l.dial(from, "udp", to)
		wantAnswer(t, conn, "a")
		l.nodePort = nil
		l.write(l.web("a"))
		l.sweep()
		// Nobody listens on the node itself.
		if name, err := ask(conn); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("got %q, %v; want connection refused", name, err)
		}
	})
}

// TestRestart: what went while the agent was away is found when it starts.
func TestRestart(t *testing.T) {
	l := newLab(t)
	each(t, l, func(t *testing.T, f ipfamily.Family) {
		l.write(l.web("a"))
		conn := l.dial(l.pods["pod"], "udp", netip.AddrPortFrom(vips["ClusterIP"][f], port))
		wantAnswer(t, conn, "a")
		l.restart()
		l.write(l.web("b"))
		l.sweep()
		wantAnswer(t, conn, "b")
	})
}
