package dataplane

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/mdlayher/netlink"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

const (
	// monitorBuffer holds the news of what others do between two checks. When it is too
	// small, that alone is reason enough to look at everything.
	monitorBuffer = 4 << 20

	// senderOffset is where a netlink message has the port of the socket that asked for
	// what it tells of (struct nlmsghdr, nlmsg_pid).
	senderOffset = 12

	// tableAttribute is the attribute that names the table in all messages of nf_tables
	// but those of generations (linux/netfilter/nf_tables.h: NFTA_TABLE_NAME,
	// NFTA_CHAIN_TABLE, NFTA_RULE_TABLE and so on are all 1).
	tableAttribute = 1
)

// monitor hears of every change of nf_tables in this network namespace that other
// sockets than ours made.
type monitor struct {
	conn   *netlink.Conn
	missed bool // others may have written while we did not listen
}

// listen starts to hear, or goes on with another socket of ours to leave out.
func (m *monitor) listen(own uint32) error {
	if m.conn == nil {
		conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
		if err != nil {
			return fmt.Errorf("opening a netlink socket: %w", explain(err))
		}
		// Refused without privileges on the host; then it overflows sooner.
		_ = conn.SetReadBuffer(monitorBuffer)
		m.conn = conn
		if err := m.join(); err != nil {
			m.conn = nil
			return errors.Join(err, conn.Close())
		}
	}
	// The kernel compares words in network order.
	sender := binary.BigEndian.Uint32(binary.NativeEndian.AppendUint32(nil, own))
	filter, err := bpf.Assemble([]bpf.Instruction{
		bpf.LoadAbsolute{Off: senderOffset, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: sender, SkipTrue: 1},
		bpf.RetConstant{Val: ^uint32(0)},
		bpf.RetConstant{Val: 0},
	})
	if err != nil {
		return err
	}
	if err := m.conn.SetBPF(filter); err != nil {
		return fmt.Errorf("leaving our own nftables events out: %w", err)
	}
	return nil
}

func (m *monitor) join() error {
	if err := m.conn.JoinGroup(unix.NFNLGRP_NFTABLES); err != nil {
		return fmt.Errorf("subscribing to nftables: %w", explain(err))
	}
	return nil
}

func (m *monitor) leave() error {
	if err := m.conn.LeaveGroup(unix.NFNLGRP_NFTABLES); err != nil {
		return fmt.Errorf("unsubscribing from nftables: %w", err)
	}
	return nil
}

func (m *monitor) close() {
	_ = m.conn.Close() // only a second close can fail
	m.conn, m.missed = nil, true
}

// touched says whether others changed our tables since it was asked last, or may have.
// It never waits.
func (m *monitor) touched() (bool, error) {
	if m.conn == nil {
		return m.missed, nil
	}
	raw, err := m.conn.SyscallConn()
	if err != nil {
		return false, err
	}
	touched := m.missed
	m.missed = false
	buffer := make([]byte, datagram)
	readErr := raw.Read(func(fd uintptr) bool {
		for {
			n, _, recvErr := unix.Recvfrom(int(fd), buffer, unix.MSG_DONTWAIT|unix.MSG_TRUNC)
			switch {
			case errors.Is(recvErr, unix.EAGAIN):
				return true
			case errors.Is(recvErr, unix.EINTR):
			case errors.Is(recvErr, unix.ENOBUFS), recvErr == nil && n > len(buffer):
				touched = true // news were lost: nobody knows
			case recvErr != nil:
				err = recvErr
				return true
			default:
				touched = touched || concernsUs(buffer[:n])
			}
		}
	})
	if err := errors.Join(readErr, err); err != nil {
		return touched, fmt.Errorf("hearing of other writers: %w", err)
	}
	return touched, nil
}

// concernsUs says whether any of the messages is about one of our tables.
func concernsUs(datagram []byte) bool {
	const head = unix.NLMSG_HDRLEN + 4 // with struct nfgenmsg
	for len(datagram) >= head {
		size := int(binary.NativeEndian.Uint32(datagram))
		if size < head || size > len(datagram) {
			return true // not to be understood
		}
		family := datagram[unix.NLMSG_HDRLEN]
		if (family == unix.NFPROTO_IPV4 || family == unix.NFPROTO_IPV6) && tableOf(datagram[head:size]) == TableName {
			return true
		}
		datagram = datagram[min((size+3)&^3, len(datagram)):]
	}
	return false
}

func tableOf(attributes []byte) string {
	ad, err := netlink.NewAttributeDecoder(attributes)
	if err != nil {
		return TableName // not to be understood
	}
	for ad.Next() {
		if ad.Type() == tableAttribute {
			return ad.String()
		}
	}
	return ""
}
