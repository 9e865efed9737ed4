package dataplane_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"fairlead.dev/fairlead/internal/ipfamily"
	"fairlead.dev/fairlead/test/netlab"
)

// stream is a connection that stands: who answers on it must stay the same.
type stream struct {
	what   string
	conn   net.Conn
	answer string // with the source
}

// open makes a connection, over "tcp" or "udp".
func open(t *testing.T, client *netlab.Host, network string, vip netip.AddrPort) *stream {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	conn, err := client.DialContext(ctx, network, vip.String())
	must(t, err)
	t.Cleanup(func() { _ = conn.Close() }) // nothing was written that could be lost
	s := &stream{what: fmt.Sprintf("%s from %s to %s", network, client.Name, vip), conn: conn}
	s.answer, err = s.ask()
	must(t, err)
	return s
}

// ask asks once more.
func (s *stream) ask() (string, error) {
	if err := s.conn.SetDeadline(time.Now().Add(testTimeout)); err != nil {
		return "", err
	}
	if _, err := io.WriteString(s.conn, "GET / HTTP/1.1\r\nHost: web\r\n\r\n"); err != nil {
		return "", err
	}
	if strings.HasPrefix(s.what, "udp") {
		b := make([]byte, 512)
		n, err := s.conn.Read(b)
		return string(b[:n]), err
	}
	resp, err := http.ReadResponse(bufio.NewReader(s.conn), nil)
	if err != nil {
		return "", err
	}
	defer func() { _ = resp.Body.Close() }() // nothing was written that could be lost
	b, err := io.ReadAll(resp.Body)
	return string(b), err
}

// TestEstablished shows that connections which stand stay with their endpoint and their
// source whatever changes in the rules; what they are led by is decided once.
func TestEstablished(t *testing.T) {
	s := newScene(t, 2, byCIDRs)
	near, far := s.world.pod(t, 0, "near"), s.world.pod(t, 1, "far")
	start := func() []svc {
		return []svc{numbered(1, near, far), numbered(2, near, far).with(externalLocal), numbered(3, near, far).with(affinity(3600))}
	}
	s.apply(start()...)
	var streams []*stream
	for _, f := range ipfamily.All {
		for _, network := range []string{"tcp", "udp"} {
			for _, client := range []*netlab.Host{s.pod, s.remote, &s.nodes[0].Host, s.client} {
				for i := 1; i <= 3; i++ {
					for _, kind := range vipKinds {
						streams = append(streams, open(t, client, network, s.vip(f, client, kind, i)))
					}
				}
			}
		}
	}
	plain := s.around[0]
	for _, step := range []struct {
		name   string
		change func() []svc
	}{
		{"an endpoint gone", func() []svc {
			return []svc{numbered(1, far), numbered(2, far).with(externalLocal), numbered(3, far).with(affinity(3600))}
		}},
		{"all endpoints gone", func() []svc {
			return []svc{numbered(1), numbered(2).with(externalLocal), numbered(3).with(affinity(3600))}
		}},
		{"everything back", start},
		{"policies the other way round", func() []svc {
			return []svc{numbered(1, near, far).with(externalLocal, internalLocal), numbered(2, near, far).with(internalLocal, inTurn), numbered(3, near, far).with(affinity(1))}
		}},
		{"closed to all", func() []svc {
			return []svc{numbered(1, near).with(sourceRanges("192.0.2.0/24")), numbered(2, near).with(sourceRanges("192.0.2.0/24")), numbered(3)}
		}},
		{"no Services, in a ServiceCIDR", func() []svc { return nil }},
		{"node addresses and ServiceCIDRs gone", func() []svc {
			s.around[0] = surroundings{node: plain.node}
			return start()
		}},
		{"they come back", func() []svc {
			s.around[0] = plain
			return start()
		}},
		{"the tables made anew", func() []svc {
			s.sinks[0].nft("add rule ip fairlead refuse drop; add rule ip6 fairlead refuse drop")
			if wrote := s.sinks[0].check(); !wrote.Installed {
				s.t.Errorf("a check wrote %+v, want the tables made anew", wrote)
			}
			return start()
		}},
		{"another configuration", func() []svc {
			other := byCIDRs
			other.MasqueradeAll = true
			s.sinks[0] = s.on(s.t, 0, other)
			return start()
		}},
	} {
		t.Run(step.name, func(t *testing.T) {
			s.apply(step.change()...)
			for _, c := range streams {
				if got, err := c.ask(); err != nil || got != c.answer {
					t.Errorf("%s: %q, %v; want %q", c.what, got, err, c.answer)
				}
			}
		})
	}
}
