package netlab

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"net"
	"net/netip"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Many kernels track and translate SCTP, and few have sockets for it. What is needed of
// it is made by hand here, on raw sockets: the first half of the handshake of RFC 9260,
// 5.1. The state cookie of the INIT ACK is what the peer wants to say. A host with a raw
// socket for SCTP stays silent where it would say that it lacks the protocol.
const (
	sctpProtocol   = "132" // IANA's number
	sctpHeaderSize = 12    // ports, verification tag, checksum
	sctpInit       = 1     // chunk types
	sctpInitAck    = 2
	sctpInitSize   = 20 // of either chunk, with its header, without parameters
	sctpCookie     = 7  // parameter type
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// sctpPorts counts the ports of clients up, so that no two requests look the same.
var sctpPorts atomic.Uint32

// sctpPacket is a packet with one chunk, INIT or INIT ACK.
type sctpPacket struct {
	source, destination uint16
	verification        uint32 // the tag that the receiver gave, 0 in an INIT
	chunk               byte
	tag                 uint32 // the sender's own
	cookie              []byte
}

// marshal returns the packet as it is sent, with its checksum.
func (p sctpPacket) marshal() []byte {
	b := binary.BigEndian.AppendUint16(nil, p.source)
	b = binary.BigEndian.AppendUint16(b, p.destination)
	b = binary.BigEndian.AppendUint32(b, p.verification)
	b = binary.BigEndian.AppendUint32(b, 0) // the checksum comes last
	size := sctpInitSize
	if p.chunk == sctpInitAck {
		size += 4 + len(p.cookie)
	}
	b = append(b, p.chunk, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(size))
	b = binary.BigEndian.AppendUint32(b, p.tag)
	b = binary.BigEndian.AppendUint32(b, 1<<16) // window, bytes
	b = binary.BigEndian.AppendUint16(b, 1)     // streams out
	b = binary.BigEndian.AppendUint16(b, 1)     // and in
	b = binary.BigEndian.AppendUint32(b, p.tag) // first sequence number
	if p.chunk == sctpInitAck {
		b = binary.BigEndian.AppendUint16(b, sctpCookie)
		b = binary.BigEndian.AppendUint16(b, uint16(4+len(p.cookie)))
		b = append(b, p.cookie...)
		b = append(b, make([]byte, -len(p.cookie)&3)...)
	}
	binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b, castagnoli)) // RFC 9260, appendix A
	return b
}

var errChecksum = errors.New("wrong checksum")

// parseSCTP takes a packet apart. It is false for one of other chunks, and errChecksum
// tells of one that was spoilt on its way.
func parseSCTP(b []byte) (p sctpPacket, ok bool, err error) {
	if len(b) < sctpHeaderSize+sctpInitSize {
		return p, false, nil
	}
	sum := binary.LittleEndian.Uint32(b[8:])
	clear(b[8:12])
	if sum != crc32.Checksum(b, castagnoli) {
		err = errChecksum
	}
	p = sctpPacket{
		source: binary.BigEndian.Uint16(b), destination: binary.BigEndian.Uint16(b[2:]),
		verification: binary.BigEndian.Uint32(b[4:]), chunk: b[12], tag: binary.BigEndian.Uint32(b[16:]),
	}
	if rest := b[sctpHeaderSize+sctpInitSize:]; len(rest) >= 4 && binary.BigEndian.Uint16(rest) == sctpCookie {
		size := int(binary.BigEndian.Uint16(rest[2:]))
		p.cookie = rest[4:max(4, min(size, len(rest)))]
	}
	return p, p.chunk == sctpInit || p.chunk == sctpInitAck, err
}

// SCTP is UDP with one INIT, which the Echo answers with an INIT ACK. A refusal that came
// back as ICMP port unreachable is ECONNREFUSED to errors.Is, a host that lacks the
// protocol ENOPROTOOPT or, over IPv6, EPROTO.
func (h *Host) SCTP(ctx context.Context, addr netip.AddrPort) (name string, source netip.AddrPort, err error) {
	var conn *net.IPConn
	err = h.Do(func() error {
		dialed, err := (&net.Dialer{Control: keepErrors}).DialContext(ctx, "ip:"+sctpProtocol, addr.Addr().String())
		if err == nil {
			conn = dialed.(*net.IPConn)
		}
		return err
	})
	if err != nil {
		return "", source, fmt.Errorf("dialing from %s: %w", h.Name, err)
	}
	defer func() { _ = conn.Close() }() // nothing was written that could be lost
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()

	port := uint16(clientPort(&sctpPorts))
	question := sctpPacket{source: port, destination: addr.Port(), chunk: sctpInit, tag: uint32(port)}
	reply, err := question.ask(conn)
	if err != nil {
		return "", source, fmt.Errorf("asking %s from %s over SCTP: %w", addr, h.Name, errors.Join(ctx.Err(), err))
	}
	return parseReply(reply)
}

// ask sends the INIT p and waits for its INIT ACK.
func (p sctpPacket) ask(conn *net.IPConn) ([]byte, error) {
	if err := p.send(conn); err != nil {
		return nil, err
	}
	var b [maxReply]byte
	for {
		n, _, err := conn.ReadFromIP(b[:])
		if err != nil {
			if err = p.refusal(conn, err); err != nil {
				return nil, err
			}
			continue
		}
		reply, ok, err := parseSCTP(b[:n])
		if !ok || !reply.answers(p) {
			continue // a raw socket hears what is for others
		}
		if err == nil && reply.verification != p.tag {
			err = fmt.Errorf("verification tag %d, want %d", reply.verification, p.tag)
		}
		return reply.cookie, err
	}
}

// send sends p, which fails for what came in before. On a host that refuses or drops
// what it sends itself it fails with EPERM; see Host.UDP.
func (p sctpPacket) send(conn *net.IPConn) error {
	for {
		_, err := conn.Write(p.marshal())
		if err == nil || errors.Is(err, syscall.EPERM) {
			return nil
		}
		if err = p.refusal(conn, err); err != nil {
			return err
		}
	}
}

func (p sctpPacket) answers(question sctpPacket) bool {
	return p.chunk == sctpInitAck && p.destination == question.source && p.source == question.destination
}

// refusal returns what the error of a raw socket means for p, nil where it was about
// packets of others: ICMP finds raw sockets by addresses alone.
func (p sctpPacket) refusal(conn *net.IPConn, err error) error {
	if !errors.As(err, new(syscall.Errno)) {
		return err // closed, or the time is over
	}
	raw, rawErr := conn.SyscallConn()
	if rawErr != nil {
		return rawErr
	}
	var mine error
	rawErr = raw.Control(func(fd uintptr) {
		var quoted, control [maxReply]byte
		for {
			n, controlLen, _, _, err := unix.Recvmsg(int(fd), quoted[:], control[:], unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
			if err != nil {
				return
			}
			messages, err := unix.ParseSocketControlMessage(control[:controlLen])
			if err != nil || n < 2 || binary.BigEndian.Uint16(quoted[:]) != p.source {
				continue
			}
			for _, m := range messages {
				if len(m.Data) >= 4 { // struct sock_extended_err begins with the number
					mine = syscall.Errno(binary.NativeEndian.Uint32(m.Data))
				}
			}
		}
	})
	return errors.Join(mine, rawErr)
}

// listenSCTP opens a raw socket for all SCTP of one family, "4" or "6", of the host.
func (h *Host) listenSCTP(ctx context.Context, family string) (*net.IPConn, error) {
	var packets net.PacketConn
	err := h.Do(func() (err error) {
		packets, err = new(net.ListenConfig).ListenPacket(ctx, "ip"+family+":"+sctpProtocol, "")
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listening on %s: %w", h.Name, err)
	}
	return packets.(*net.IPConn), nil
}

// serveSCTP answers each INIT to the port until conn is closed.
func (e *Echo) serveSCTP(conn *net.IPConn, family string, port uint16) {
	var b [maxReply]byte
	var control [256]byte
	for {
		n, controlLen, _, from, err := conn.ReadMsgIP(b[:], control[:])
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue
		}
		packet := b[:n]
		if family == "4" { // raw sockets of IPv4 come with the header (raw(7))
			packet = packet[min(n, int(packet[0]&0xf)*4):]
		}
		p, ok, err := parseSCTP(packet)
		if !ok || err != nil || p.chunk != sctpInit || p.destination != port {
			continue
		}
		source, _ := netip.AddrFromSlice(from.IP)
		answer := sctpPacket{
			source: port, destination: p.source, verification: p.tag, chunk: sctpInitAck, tag: p.tag,
			cookie: []byte(formatReply(e.Name, netip.AddrPortFrom(source, p.source))),
		}
		// A client that cannot be reached is the client's loss.
		_, _, _ = conn.WriteMsgIP(answer.marshal(), fromDestination(control[:controlLen]), from)
	}
}
