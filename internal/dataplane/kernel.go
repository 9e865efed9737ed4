package dataplane

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"fairlead.dev/fairlead/internal/ipfamily"
)

const (
	// wantBuffer is the socket buffer asked for: the rules of 50,000 Services of 10
	// endpoints are some 40 MB of messages. Without CAP_NET_ADMIN on the host the
	// kernel grants net.core.wmem_max, and large loads are split.
	wantBuffer = 64 << 20

	// replyTimeout bounds the wait for the kernel's word on a transaction; measured,
	// 100,000 elements take 0.1 s.
	replyTimeout = 30 * time.Second

	// dumpTries is how often a listing is tried that another writer has torn.
	dumpTries = 5

	// datagram is the largest one that the kernel makes for a listing (af_netlink.c,
	// netlink_recvmsg), once a receive has offered so much room.
	datagram = 32 << 10

	// quietSize is from how many bytes on a transaction is made without news of it: the
	// kernel takes a page for each element's, 40% of the time of a load of 100,000.
	quietSize = 64 << 10

	// markerPrefix begins the name of an empty chain that says which layout the table
	// has and what its rules were when we made them.
	markerPrefix = "layout_"
)

// ErrPermission means that this process may not write nftables rules. Trying again
// cannot help.
var ErrPermission = errors.New("no permission to use nftables: CAP_NET_ADMIN is missing " +
	"(run as root, or add NET_ADMIN to securityContext.capabilities)")

// ErrKernel means that the kernel does not take the rules that are the same for all
// Services. Trying again can help only where a module comes to be there.
var ErrKernel = errors.New("the kernel cannot take the rules, whatever Services there are: " +
	"Linux 5.9 or later is needed (5.11 for counters), with CONFIG_NF_TABLES and its NAT, MASQ, REJECT, HASH and NUMGEN")

// kernel is a connection to nf_tables of the network namespace that it was opened in.
type kernel struct {
	conn    *netlink.Conn
	limit   int     // bytes that one transaction can have
	monitor monitor // of what others do there
}

// ready opens the connection, if it is not open.
func (k *kernel) ready() error {
	if k.conn != nil {
		return nil
	}
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return fmt.Errorf("opening a netlink socket: %w", explain(err))
	}
	// Refused without privileges on the host; what was granted is read back.
	_ = conn.SetWriteBuffer(wantBuffer)
	_ = conn.SetReadBuffer(wantBuffer)
	granted, err := sendBuffer(conn)
	if err != nil {
		return errors.Join(fmt.Errorf("reading the netlink send buffer size: %w", err), conn.Close())
	}
	// A message has to be smaller than the buffer by 32 bytes (af_netlink.c).
	k.conn, k.limit = conn, granted-64
	if err := k.offerRoom(); err != nil {
		k.close()
		return fmt.Errorf("asking the kernel for large datagrams: %w", explain(err))
	}
	own, err := port(conn)
	if err == nil {
		err = k.monitor.listen(own)
	}
	if err != nil {
		k.close()
	}
	return err
}

// port returns the port of the socket, by which the kernel names it.
func port(conn *netlink.Conn) (port uint32, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	ctlErr := raw.Control(func(fd uintptr) {
		var addr unix.Sockaddr
		if addr, err = unix.Getsockname(int(fd)); err == nil {
			nl, _ := addr.(*unix.SockaddrNetlink)
			port = nl.Pid
		}
	})
	return port, errors.Join(ctlErr, err)
}

// offerRoom receives one answer into a large buffer. The kernel walks a set from its
// beginning for every datagram of a listing, and makes them as large as the largest
// receive so far, which the netlink library's are not.
func (k *kernel) offerRoom() error {
	if _, err := k.conn.Send(netlink.Message{
		Header: netlink.Header{Type: nftType(unix.NFT_MSG_GETGEN), Flags: netlink.Request},
		Data:   header(unix.AF_UNSPEC, 0),
	}); err != nil {
		return err
	}
	raw, err := k.conn.SyscallConn()
	if err != nil {
		return err
	}
	var n int
	buffer := make([]byte, datagram)
	readErr := raw.Read(func(fd uintptr) bool {
		n, _, err = unix.Recvfrom(int(fd), buffer, 0)
		return !errors.Is(err, unix.EAGAIN)
	})
	if err := errors.Join(readErr, err); err != nil || n < unix.NLMSG_HDRLEN+4 {
		return err
	}
	if t := binary.NativeEndian.Uint16(buffer[4:]); t == unix.NLMSG_ERROR {
		return syscall.Errno(-int32(binary.NativeEndian.Uint32(buffer[unix.NLMSG_HDRLEN:])))
	}
	return nil
}

func sendBuffer(conn *netlink.Conn) (size int, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	ctlErr := raw.Control(func(fd uintptr) {
		size, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUF)
	})
	return size, errors.Join(ctlErr, err)
}

// close drops the connection, with whatever answers are still under way on it.
func (k *kernel) close() {
	if k.conn != nil {
		_ = k.conn.Close() // only a second close can fail
		k.conn = nil
	}
}

// commit carries out b, in one transaction where it fits. It returns an error that is
// errRefused where the kernel did not like what is in b. After an error, what the kernel
// has must be read anew.
func (k *kernel) commit(b *batch) error {
	if b.err != nil {
		return errors.Join(b.err, errRefused)
	}
	if err := k.ready(); err != nil {
		return err
	}
	parts := split(b.messages, k.limit)
	commit := func() error {
		for _, messages := range parts {
			if err := k.transact(messages); err != nil {
				k.close()
				return fmt.Errorf("committing nftables rules: %w", explain(err))
			}
		}
		return nil
	}
	if b.size() < quietSize {
		return commit()
	}
	return k.quietly(uint32(len(parts)), commit)
}

// quietly runs commit, which makes so many transactions, while the kernel makes no news
// of it for us to leave out. Whether others wrote meanwhile, the number of the ruleset
// tells.
func (k *kernel) quietly(transactions uint32, commit func() error) error {
	before, err := k.generation()
	if err != nil {
		return err
	}
	if err := k.monitor.leave(); err != nil {
		return err
	}
	err = commit()
	if joinErr := k.monitor.join(); joinErr != nil {
		k.monitor.close() // the next connection listens anew
		k.close()
		err = errors.Join(err, joinErr)
	}
	if err != nil {
		return err
	}
	after, err := k.generation()
	k.monitor.missed = k.monitor.missed || after != before+transactions
	return err
}

// size returns about how many bytes b has.
func (b *batch) size() (n int) {
	for _, m := range b.messages {
		n += len(m.Data)
	}
	return n
}

// try finds out whether the kernel would accept b: it ends b with what it refuses in
// any case, so that nothing of it comes to be, and looks whether that alone is refused.
func (k *kernel) try(b *batch) error {
	// A table that exists cannot be replaced (nf_tables_newtable).
	b.add(ipfamily.IPv4, unix.NFT_MSG_NEWTABLE, netlink.Replace, func(ae *netlink.AttributeEncoder) {
		ae.String(unix.NFTA_TABLE_NAME, TableName)
	})
	if len(split(b.messages, k.limit)) > 1 {
		return fmt.Errorf("too large to be tried at once: %w", errRefused)
	}
	if err := k.commit(b); !errors.Is(err, unix.EOPNOTSUPP) {
		return err
	}
	return nil
}

// split cuts messages into runs of at most limit bytes with their batch headers.
func split(messages []netlink.Message, limit int) [][]netlink.Message {
	const envelope = 2 * (unix.NLMSG_HDRLEN + 4)
	var out [][]netlink.Message
	size, start := envelope, 0
	for i, m := range messages {
		n := unix.NLMSG_HDRLEN + (len(m.Data)+3)&^3
		if size+n > limit && i > start {
			out = append(out, messages[start:i])
			size, start = envelope, i
		}
		size += n
	}
	if start < len(messages) {
		out = append(out, messages[start:])
	}
	return out
}

func (k *kernel) transact(messages []netlink.Message) error {
	envelope := func(t uint16) netlink.Message {
		return netlink.Message{
			Header: netlink.Header{Type: netlink.HeaderType(t), Flags: netlink.Request},
			Data:   header(unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES),
		}
	}
	all := slices.Concat([]netlink.Message{envelope(unix.NFNL_MSG_BATCH_BEGIN)}, messages,
		[]netlink.Message{envelope(unix.NFNL_MSG_BATCH_END)})
	last := len(all) - 2
	all[last].Header.Flags |= netlink.Acknowledge
	sent, err := k.conn.SendMessages(all)
	if err != nil {
		return err
	}
	if err := k.conn.SetReadDeadline(deadline()); err != nil {
		return err
	}
	for {
		// Errors of earlier messages come before the last one's acknowledgement, which
		// comes also when another message made the transaction fail.
		replies, err := k.conn.Receive()
		if err != nil {
			return refusal(err)
		}
		for _, r := range replies {
			if r.Header.Type == netlink.Error && r.Header.Sequence == sent[last].Header.Sequence {
				return nil
			}
		}
	}
}

// errTorn means that others wrote rules during a listing, which may have left some out.
var errTorn = errors.New("others wrote")

// errRefused means that the kernel did not accept a transaction for what is in it.
var errRefused = errors.New("refused by the kernel")

// refusal tells what a message of the kernel says of a transaction from what befell the
// socket, or the right to use it, or from a want of memory, which passes.
func refusal(err error) error {
	var op *netlink.OpError
	if !errors.As(err, &op) || op.Timeout() {
		return err
	}
	for _, other := range []error{unix.ENOBUFS, unix.ENOMEM, unix.EPERM, unix.EINTR} {
		if errors.Is(err, other) {
			return err
		}
	}
	return fmt.Errorf("%w: %w", errRefused, err)
}

// deadline is the one look at a clock here: socket deadlines are absolute.
func deadline() time.Time {
	return time.Now().Add(replyTimeout) //nolint:forbidigo // a socket deadline is an instant of the real clock
}

// get sends a request and returns the answers.
func (k *kernel) get(msgType uint16, family byte, flags netlink.HeaderFlags, attributes ...netlink.Attribute) ([]netlink.Message, error) {
	if err := k.ready(); err != nil {
		return nil, err
	}
	data, err := netlink.MarshalAttributes(attributes)
	if err != nil {
		return nil, err
	}
	if err := k.conn.SetReadDeadline(deadline()); err != nil {
		return nil, err
	}
	for range dumpTries {
		replies, err := k.conn.Execute(netlink.Message{
			Header: netlink.Header{Type: nftType(msgType), Flags: netlink.Request | flags},
			Data:   append(header(family, 0), data...),
		})
		if err != nil && !errors.Is(err, unix.ENOENT) {
			k.close()
		}
		torn := slices.ContainsFunc(replies, func(m netlink.Message) bool { return m.Header.Flags&netlink.DumpInterrupted != 0 })
		if err != nil || !torn {
			return replies, explain(err)
		}
	}
	return nil, fmt.Errorf("listing nftables objects: %w in each of %d tries", errTorn, dumpTries)
}

// explain names the right that is missing.
func explain(err error) error {
	if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EACCES) {
		return fmt.Errorf("%w: %w", ErrPermission, err)
	}
	return err
}
