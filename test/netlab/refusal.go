package netlab

import (
	"errors"
	"fmt"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// ErrICMP says that a TCP connection was refused by an ICMP message, not by a reset.
var ErrICMP = errors.New("refused by ICMP")

// refusals tells the ways apart in which TCP connections are refused; the error of
// connect(2) is the same for all.
type refusals struct {
	sockets []watched
}

// watched is a duplicate of a socket, since a dialer closes those that fail.
type watched struct{ fd, level, option int }

// watch keeps the messages for a socket of TCP.
func (r *refusals) watch(network, address string, conn syscall.RawConn) error {
	if network != "tcp4" && network != "tcp6" {
		return nil
	}
	if err := keepErrors(network, address, conn); err != nil {
		return err
	}
	var failed error
	err := conn.Control(func(fd uintptr) {
		var s watched
		s.level, s.option = errorOption(network)
		if s.fd, failed = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0); failed == nil {
			r.sockets = append(r.sockets, s)
		}
	})
	return errors.Join(err, failed)
}

// keepErrors makes the kernel keep the ICMP messages for a socket (IP_RECVERR in ip(7)).
func keepErrors(network, _ string, conn syscall.RawConn) error {
	var failed error
	err := conn.Control(func(fd uintptr) {
		level, option := errorOption(network)
		failed = unix.SetsockoptInt(int(fd), level, option, 1)
	})
	return errors.Join(err, failed)
}

// errorOption returns the level and the name of the option, by a network of net.Dialer.
func errorOption(network string) (level, option int) {
	if network == "tcp6" || strings.HasPrefix(network, "ip6") {
		return unix.SOL_IPV6, unix.IPV6_RECVERR
	}
	return unix.SOL_IP, unix.IP_RECVERR
}

// explain adds ErrICMP to the error of dialing where that was the way.
func (r *refusals) explain(err error) error {
	if !errors.Is(err, unix.ECONNREFUSED) {
		return err
	}
	var packet, control [maxReply]byte
	for _, s := range r.sockets {
		if _, _, _, _, empty := unix.Recvmsg(s.fd, packet[:], control[:], unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT); empty == nil {
			return fmt.Errorf("%w: %w", ErrICMP, err)
		}
	}
	return err
}

// close closes the duplicates. A connection that stands is then like any other.
func (r *refusals) close() {
	for _, s := range r.sockets {
		_ = unix.SetsockoptInt(s.fd, s.level, s.option, 0)
		_ = unix.Close(s.fd) // nothing was written that could be lost
	}
}
