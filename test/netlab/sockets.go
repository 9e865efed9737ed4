package netlab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// DialContext is net.Dialer's, from inside the host. The address must be an
// IP address and a port, since resolving names happens outside of it.
func (h *Host) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	if _, err := netip.ParseAddrPort(address); err != nil {
		return nil, fmt.Errorf("dialing from %s: %w", h.Name, err)
	}
	var conn net.Conn
	refusals := &refusals{}
	defer refusals.close()
	err := h.Do(func() (err error) {
		conn, err = (&net.Dialer{Control: refusals.watch}).DialContext(ctx, network, address)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("dialing from %s: %w", h.Name, refusals.explain(err))
	}
	return conn, nil
}

// Listen is net.ListenConfig's, inside the host. The address is an IP address
// and a port, or a colon and a port for all addresses of the host.
func (h *Host) Listen(ctx context.Context, network, address string) (net.Listener, error) {
	if err := checkLocal(address); err != nil {
		return nil, fmt.Errorf("listening on %s: %w", h.Name, err)
	}
	var listener net.Listener
	err := h.Do(func() (err error) {
		var config net.ListenConfig
		config.SetMultipathTCP(false) // as most servers in pods do
		listener, err = config.Listen(ctx, network, address)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listening on %s: %w", h.Name, err)
	}
	return listener, nil
}

// ListenPacket is Listen for datagrams.
func (h *Host) ListenPacket(ctx context.Context, network, address string) (net.PacketConn, error) {
	if err := checkLocal(address); err != nil {
		return nil, fmt.Errorf("listening on %s: %w", h.Name, err)
	}
	var conn net.PacketConn
	err := h.Do(func() (err error) {
		conn, err = new(net.ListenConfig).ListenPacket(ctx, network, address)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listening on %s: %w", h.Name, err)
	}
	return conn, nil
}

// checkLocal refuses an address that would have to be resolved.
func checkLocal(address string) error {
	if strings.HasPrefix(address, ":") {
		return nil
	}
	_, err := netip.ParseAddrPort(address)
	return err
}

// maxReply is more than any reply of an Echo has, in bytes.
const maxReply = 512

// HTTP asks the Echo at addr, over a connection of its own, for its name and
// for the address that the question came from. errors.Is tells a refused
// connection (ECONNREFUSED) from the end of ctx, and one that was refused by
// ICMP (ErrICMP) from one that was reset.
func (h *Host) HTTP(ctx context.Context, addr netip.AddrPort) (name string, source netip.AddrPort, err error) {
	transport := &http.Transport{DialContext: h.DialContext, DisableKeepAlives: true}
	defer transport.CloseIdleConnections()

	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr.String()+"/", nil)
	if err != nil {
		return "", source, fmt.Errorf("asking %s: %w", addr, err)
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return "", source, fmt.Errorf("asking %s from %s over HTTP: %w", addr, h.Name, err)
	}
	defer func() { _ = resp.Body.Close() }() // nothing was written that could be lost
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxReply))
	if err != nil {
		return "", source, fmt.Errorf("asking %s from %s over HTTP: %w", addr, h.Name, err)
	}
	if resp.StatusCode != http.StatusOK {
		return "", source, fmt.Errorf("asking %s from %s over HTTP: status %s", addr, h.Name, resp.Status)
	}
	return parseReply(body)
}

// UDP is HTTP with one datagram, from a socket of its own, which nothing sends
// again: without an answer it waits for the end of ctx. A refusal that came
// back as ICMP port unreachable is ECONNREFUSED to errors.Is, also on the host
// that refuses itself. There the send fails with EPERM, as it does where the
// datagram is dropped in silence; what follows tells the two apart.
func (h *Host) UDP(ctx context.Context, addr netip.AddrPort) (name string, source netip.AddrPort, err error) {
	conn, err := h.dialUDP(ctx, addr)
	if err != nil {
		return "", source, fmt.Errorf("dialing from %s: %w", h.Name, err)
	}
	defer func() { _ = conn.Close() }() // nothing was written that could be lost
	// A deadline in the past wakes the read below up.
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()

	reply := make([]byte, maxReply)
	n := 0
	if _, err = conn.Write([]byte("?\n")); err == nil || errors.Is(err, syscall.EPERM) {
		n, err = conn.Read(reply)
	}
	if err != nil {
		return "", source, fmt.Errorf("asking %s from %s over UDP: %w", addr, h.Name, errors.Join(ctx.Err(), err))
	}
	return parseReply(reply[:n])
}

// udpPorts counts the ports of clients up. The kernel would choose at random, now and
// then one whose flow is still tracked, and the datagram would go the old way.
var udpPorts atomic.Uint32

// dialUDP opens a socket of a port that was not used lately.
func (h *Host) dialUDP(ctx context.Context, addr netip.AddrPort) (net.Conn, error) {
	for {
		dialer := net.Dialer{LocalAddr: &net.UDPAddr{Port: clientPort(&udpPorts)}}
		var conn net.Conn
		err := h.Do(func() (err error) {
			conn, err = dialer.DialContext(ctx, "udp", addr.String())
			return err
		})
		if !errors.Is(err, syscall.EADDRINUSE) {
			return conn, err
		}
	}
}

// clientPort returns the next port of a client: one in the upper half, where neither
// Services nor node ports are.
func clientPort(last *atomic.Uint32) int { return 1<<15 + int(last.Add(1)%(1<<15)) }

// formatReply returns what an Echo answers.
func formatReply(name string, source netip.AddrPort) string {
	return fmt.Sprintf("%s %s\n", name, netip.AddrPortFrom(source.Addr().Unmap(), source.Port()))
}

// parseReply takes the answer of an Echo apart.
func parseReply(reply []byte) (name string, source netip.AddrPort, err error) {
	name, rest, found := strings.Cut(strings.TrimSuffix(string(reply), "\n"), " ")
	if !found {
		return "", source, fmt.Errorf("reading an echo: %q has no source", reply)
	}
	if source, err = netip.ParseAddrPort(rest); err != nil {
		return "", source, fmt.Errorf("reading an echo: %w", err)
	}
	return name, source, nil
}
