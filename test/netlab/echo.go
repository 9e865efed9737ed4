package netlab

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// Echo is a server inside a host that tells who it is and who asks:
// "<name> <source ip:port>\n", over HTTP on any path, over UDP for any datagram,
// and in the INIT ACK for any INIT of SCTP. GET /readyz answers 200 or 503 instead.
type Echo struct {
	Name string
	Port uint16 // of TCP, UDP and SCTP, IPv4 and IPv6

	ready   atomic.Bool
	server  *http.Server
	closers []io.Closer
	serving sync.WaitGroup
}

// StartEcho starts an Echo inside h on all its addresses, also those added
// later. It is ready from the start. Port 0 lets the kernel choose one.
func StartEcho(h *Host, name string, port uint16) (*Echo, error) {
	e := &Echo{Name: name, Port: port}
	e.ready.Store(true)
	e.server = &http.Server{Handler: e, ErrorLog: log.New(io.Discard, "", 0)}
	for _, family := range []string{"4", "6"} {
		if err := e.serve(h, family); err != nil {
			return nil, errors.Join(fmt.Errorf("starting echo %s: %w", name, err), e.Close())
		}
	}
	return e, nil
}

// serve starts serving one address family, "4" or "6".
func (e *Echo) serve(h *Host, family string) error {
	ctx := context.Background() // the server outlives the call
	listener, err := h.Listen(ctx, "tcp"+family, ":"+strconv.Itoa(int(e.Port)))
	if err != nil {
		return err
	}
	e.closers = append(e.closers, listener)
	e.Port = listener.Addr().(*net.TCPAddr).AddrPort().Port()

	packets, err := h.ListenPacket(ctx, "udp"+family, ":"+strconv.Itoa(int(e.Port)))
	if err != nil {
		return err
	}
	e.closers = append(e.closers, packets)
	conn := packets.(*net.UDPConn)
	associations, err := h.listenSCTP(ctx, family)
	if err != nil {
		return err
	}
	e.closers = append(e.closers, associations)
	if err := errors.Join(wantDestination(conn, family), wantDestination(associations, family)); err != nil {
		return err
	}
	e.serving.Go(func() { _ = e.server.Serve(listener) }) // ends with ErrServerClosed
	e.serving.Go(func() { e.serveUDP(conn) })
	port := e.Port
	e.serving.Go(func() { e.serveSCTP(associations, family, port) })
	return nil
}

// ServeHTTP answers one request.
func (e *Echo) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/readyz" {
		if !e.ready.Load() {
			http.Error(w, "not ready", http.StatusServiceUnavailable)
			return
		}
		_, _ = io.WriteString(w, "ok\n") // the client has gone if this fails
		return
	}
	source, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	_, _ = io.WriteString(w, formatReply(e.Name, source))
}

// serveUDP answers datagrams until conn is closed. The answer comes from the
// address the question went to, which matters on a host with several.
func (e *Echo) serveUDP(conn *net.UDPConn) {
	var question [maxReply]byte
	var control [256]byte
	for {
		_, controlLen, _, source, err := conn.ReadMsgUDPAddrPort(question[:], control[:])
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue
		}
		// A client that cannot be reached is the client's loss.
		_, _, _ = conn.WriteMsgUDPAddrPort([]byte(formatReply(e.Name, source)), fromDestination(control[:controlLen]), source)
	}
}

// SetReady says what /readyz answers from now on.
func (e *Echo) SetReady(ready bool) { e.ready.Store(ready) }

// Close stops serving, closes the connections that are open and waits until
// nothing runs any more.
func (e *Echo) Close() error {
	err := e.server.Close()
	for _, c := range e.closers {
		if cerr := c.Close(); cerr != nil && !errors.Is(cerr, net.ErrClosed) {
			err = errors.Join(err, cerr)
		}
	}
	e.serving.Wait()
	return err
}

// wantDestination makes the kernel tell with each datagram which address it
// was sent to (IP_PKTINFO in ip(7), IPV6_RECVPKTINFO in ipv6(7)).
func wantDestination(conn syscall.Conn, family string) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var set error
	err = raw.Control(func(fd uintptr) {
		if family == "4" {
			set = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
		} else {
			set = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
		}
	})
	return errors.Join(err, set)
}

// fromDestination turns the control messages of a datagram into those of its
// answer. The link is left to the routes, except for a link-local address.
func fromDestination(control []byte) []byte {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return nil
	}
	for _, m := range messages {
		switch {
		case m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_PKTINFO && len(m.Data) >= unix.SizeofInet4Pktinfo:
			// struct in_pktinfo: the link, the local address, the one in the header.
			return unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: [4]byte(m.Data[4:8])})
		case m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_PKTINFO && len(m.Data) >= unix.SizeofInet6Pktinfo:
			// struct in6_pktinfo: the local address, the link.
			info := unix.Inet6Pktinfo{Addr: [16]byte(m.Data[:16])}
			if netip.AddrFrom16(info.Addr).IsLinkLocalUnicast() {
				info.Ifindex = binary.NativeEndian.Uint32(m.Data[16:20])
			}
			return unix.PktInfo6(&info)
		}
	}
	return nil
}
