package e2e_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"fairlead.dev/fairlead/test/cluster"
	"fairlead.dev/fairlead/test/netlab"
)

const (
	// beat is between two lines of a stream, and between two questions of a probe.
	beat = 5 * time.Millisecond

	// probeTimeout is long, since a busy machine is no fault. The kernel tells of a
	// SYN that was lost.
	probeTimeout = 5 * time.Second
)

// stream is a connection that stays open, on which both sides send a line every beat.
type stream struct {
	name           string
	toUs, toServer atomic.Int64 // lines that arrived
	broken         atomic.Pointer[error]
}

// streamServer answers every connection to port 8080 of host with a line every beat, and
// closes those that break.
func streamServer(t *testing.T, host *netlab.Host) {
	t.Helper()
	listener, err := host.Listen(t.Context(), "tcp", ":8080")
	must(t, err)
	t.Cleanup(func() { must(t, listener.Close()) })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return // closed
			}
			go func() {
				defer func() { _ = conn.Close() }() // the client says so
				received := make(chan int, 1000)
				go func() {
					defer close(received)
					for lines := bufio.NewScanner(conn); lines.Scan(); {
						received <- 1
					}
				}()
				n := 0
				for range time.Tick(beat) {
					for drained := false; !drained; {
						select {
						case one, ok := <-received:
							if !ok {
								return
							}
							n += one
						default:
							drained = true
						}
					}
					if _, err := fmt.Fprintln(conn, n); err != nil {
						return
					}
				}
			}()
		}
	}()
}

// newStream opens one from host to a streamServer, until the end of the test.
func newStream(t *testing.T, name string, host *netlab.Host, to netip.AddrPort) *stream {
	t.Helper()
	ctx, cancel := timeout()
	defer cancel()
	conn, err := host.DialContext(ctx, "tcp", to.String())
	must(t, err)
	s := &stream{name: name}
	closed := make(chan struct{})
	var running sync.WaitGroup
	t.Cleanup(func() {
		close(closed)
		_ = conn.Close() // wakes the reader up
		running.Wait()
	})
	fail := func(err error) {
		select {
		case <-closed: // by us
		default:
			s.broken.CompareAndSwap(nil, &err)
		}
	}
	running.Go(func() { fail(s.read(conn)) })
	running.Go(func() {
		tick := time.NewTicker(beat)
		defer tick.Stop()
		for {
			select {
			case <-closed:
				return
			case <-tick.C:
				if _, err := conn.Write([]byte("line\n")); err != nil {
					fail(err)
					return
				}
			}
		}
	})
	return s
}

// read counts what arrives, and what the server says has arrived there.
func (s *stream) read(conn net.Conn) error {
	lines := bufio.NewScanner(conn)
	for lines.Scan() {
		var there int64
		if _, err := fmt.Sscan(lines.Text(), &there); err != nil {
			return err
		}
		s.toServer.Store(there)
		s.toUs.Add(1)
	}
	return errors.Join(lines.Err(), errors.New("the connection has ended"))
}

// flows waits until lines have arrived on both sides from now on.
func (s *stream) flows(t *testing.T) {
	t.Helper()
	us, server := s.toUs.Load(), s.toServer.Load()
	cluster.Eventually(t, func() error {
		if err := s.broken.Load(); err != nil {
			t.Fatalf("the stream %s broke: %v", s.name, *err)
		}
		if s.toUs.Load() < us+10 || s.toServer.Load() < server+10 {
			return fmt.Errorf("the stream %s stands still", s.name)
		}
		return nil
	})
}

// probe opens new connections to web-1 all the time.
type probe struct {
	name string
	from *netlab.Host
	to   netip.AddrPort

	mu       sync.Mutex
	answered int
	failures []probeFailure
}

type probeFailure struct {
	began, ended time.Time
	err          error
}

// start asks until the end of the test.
func (p *probe) start(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		tick := time.NewTicker(beat)
		defer tick.Stop()
		for ctx.Err() == nil {
			began := time.Now()
			asking, done := context.WithTimeout(ctx, probeTimeout)
			err := p.ask(asking)
			done()
			p.mu.Lock()
			if err == nil {
				p.answered++
			} else if ctx.Err() == nil {
				p.failures = append(p.failures, probeFailure{began, time.Now(), err})
			}
			p.mu.Unlock()
			<-tick.C
		}
	})
	t.Cleanup(func() { cancel(); running.Wait() })
}

// ask opens one. Where that took more than one SYN, as where no rule takes it up, that is
// an error, though it went well in the end.
func (p *probe) ask(ctx context.Context) error {
	conn, err := p.from.DialContext(ctx, "tcp", p.to.String())
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }() // nothing was written that could be lost
	// It ends with a reset: thousands of connections that wait for their end would meet
	// new ones between the same ports.
	if err := conn.(*net.TCPConn).SetLinger(0); err != nil {
		return err
	}
	repeated, err := retransmitted(conn)
	if err != nil {
		return err
	}
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return err
	}
	if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: web\r\n\r\n"); err != nil {
		return err
	}
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return err
	}
	answer, err := io.ReadAll(response.Body)
	switch {
	case err != nil:
		return err
	case !strings.HasPrefix(string(answer), "web-1 "):
		return fmt.Errorf("answer %q", answer)
	case repeated > 0:
		return fmt.Errorf("the SYN was repeated %d times", repeated)
	}
	return nil
}

// retransmitted returns how many packets the kernel has sent again.
func retransmitted(conn net.Conn) (uint32, error) {
	raw, err := conn.(syscall.Conn).SyscallConn()
	if err != nil {
		return 0, err
	}
	var info *unix.TCPInfo
	failed := raw.Control(func(fd uintptr) { info, err = unix.GetsockoptTCPInfo(int(fd), unix.SOL_TCP, unix.TCP_INFO) })
	if err := errors.Join(failed, err); err != nil {
		return 0, err
	}
	return info.Total_retrans, nil
}

func (p *probe) state() (answered int, failures []probeFailure) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.answered, p.failures
}

// traffic is what goes on while something is wrong.
type traffic struct {
	streams []*stream
	probes  []*probe
}

// during does what is wrong, which is over when it returns, and fails where a stream
// broke, or a new connection failed that began later than away after the start.
func (tr *traffic) during(t *testing.T, away time.Duration, wrong func()) {
	t.Helper()
	start := time.Now()
	wrong()
	for _, s := range tr.streams {
		s.flows(t)
	}
	for _, p := range tr.probes {
		before, _ := p.state()
		cluster.Eventually(t, func() error {
			if now, _ := p.state(); now < before+5 {
				return fmt.Errorf("the probe %s has no answers", p.name)
			}
			return nil
		})
		failed := 0
		_, failures := p.state()
		for _, f := range failures {
			switch {
			case f.ended.Before(start):
			case f.began.After(start.Add(away)) || away == 0:
				t.Errorf("a new connection of %s failed, begun %s and ended %s after the start: %v", p.name, f.began.Sub(start), f.ended.Sub(start), f.err)
			default:
				failed++
			}
		}
		if failed > 0 {
			t.Logf("%d new connections of %s failed", failed, p.name)
		}
	}
}
