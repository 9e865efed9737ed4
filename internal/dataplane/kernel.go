package dataplane

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"slices"
	"strings"
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

	// markerPrefix begins the name of an empty chain that says which layout the table
	// has and what its rules were when we made them.
	markerPrefix = "layout_"
)

// ErrPermission means that this process may not write nftables rules. Trying again
// cannot help.
var ErrPermission = errors.New("no permission to use nftables: CAP_NET_ADMIN is missing " +
	"(run as root, or add NET_ADMIN to securityContext.capabilities)")

// kernel is a connection to nf_tables of the network namespace that it was opened in.
type kernel struct {
	conn  *netlink.Conn
	limit int // bytes that one transaction can have
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

// commit carries out b, in one transaction where it fits. After an error, what the
// kernel has must be read anew.
func (k *kernel) commit(b *batch) error {
	if b.err != nil {
		return b.err
	}
	if err := k.ready(); err != nil {
		return err
	}
	for _, messages := range split(b.messages, k.limit) {
		if err := k.transact(messages); err != nil {
			k.close()
			return fmt.Errorf("committing nftables rules: %w", explain(err))
		}
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
			return err
		}
		for _, r := range replies {
			if r.Header.Type == netlink.Error && r.Header.Sequence == sent[last].Header.Sequence {
				return nil
			}
		}
	}
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
	replies, err := k.conn.Execute(netlink.Message{
		Header: netlink.Header{Type: nftType(msgType), Flags: netlink.Request | flags},
		Data:   append(header(family, 0), data...),
	})
	if err != nil && !errors.Is(err, unix.ENOENT) {
		k.close()
	}
	return replies, explain(err)
}

// generation returns the number of the ruleset, which every transaction of anybody in
// this network namespace raises by one.
func (k *kernel) generation() (uint32, error) {
	replies, err := k.get(unix.NFT_MSG_GETGEN, unix.AF_UNSPEC, 0)
	if err != nil {
		return 0, fmt.Errorf("reading the nftables generation: %w", err)
	}
	for _, r := range replies {
		ad, err := attributesOf(r)
		if err != nil {
			return 0, err
		}
		for ad.Next() {
			if ad.Type() == unix.NFTA_GEN_ID {
				return ad.Uint32(), ad.Err()
			}
		}
	}
	return 0, errors.New("reading the nftables generation: the kernel's answer has none")
}

// skeleton returns the hash of all chains and rules of our tables, handles included, so
// that any edit changes it, and the marker chains that are there.
func (k *kernel) skeleton() (sum string, markers map[ipfamily.Family]string, err error) {
	h := sha256.New()
	markers = map[ipfamily.Family]string{}
	for _, f := range ipfamily.All {
		table := netlink.Attribute{Type: unix.NFTA_RULE_TABLE, Data: append([]byte(TableName), 0)}
		chains, err := k.get(unix.NFT_MSG_GETCHAIN, family(f), netlink.Dump)
		if err != nil {
			return "", nil, fmt.Errorf("listing nftables chains: %w", err)
		}
		for _, m := range chains {
			if err := hashChain(h, m, f, markers); err != nil {
				return "", nil, err
			}
		}
		rules, err := k.get(unix.NFT_MSG_GETRULE, family(f), netlink.Dump, table)
		if err != nil {
			return "", nil, fmt.Errorf("listing nftables rules: %w", err)
		}
		for _, m := range rules {
			h.Write(m.Data[min(4, len(m.Data)):]) // but for the header, which has the generation
		}
	}
	return hex.EncodeToString(h.Sum(nil))[:16], markers, nil
}

// hashChain adds a chain of our table to h by what an edit could change.
func hashChain(h hash.Hash, m netlink.Message, f ipfamily.Family, markers map[ipfamily.Family]string) error {
	ad, err := attributesOf(m)
	if err != nil {
		return err
	}
	var table, name string
	var rest []byte
	for ad.Next() {
		switch ad.Type() {
		case unix.NFTA_CHAIN_TABLE:
			table = ad.String()
		case unix.NFTA_CHAIN_NAME:
			name = ad.String()
		case unix.NFTA_CHAIN_HOOK, unix.NFTA_CHAIN_POLICY, unix.NFTA_CHAIN_TYPE:
			rest = append(rest, ad.Bytes()...)
		}
	}
	switch {
	case table != TableName:
	case strings.HasPrefix(name, markerPrefix):
		markers[f] = name
	default:
		h.Write(fmt.Appendf(nil, "%d %s %x\n", f, name, rest))
	}
	return ad.Err()
}

// contents reads all elements of our tables. A set that is missing is fs.ErrNotExist.
func (k *kernel) contents() (*reader, error) {
	r := newReader()
	for _, f := range ipfamily.All {
		for _, def := range shapeOf(f).sets() {
			replies, err := k.get(unix.NFT_MSG_GETSETELEM, family(f), netlink.Dump,
				netlink.Attribute{Type: unix.NFTA_SET_ELEM_LIST_TABLE, Data: append([]byte(TableName), 0)},
				netlink.Attribute{Type: unix.NFTA_SET_ELEM_LIST_SET, Data: append([]byte(def.name), 0)})
			if err != nil {
				return nil, fmt.Errorf("listing nftables set %s %s: %w", familyName(f), def.name, err)
			}
			for _, m := range replies {
				if err := takeMessage(r, m, f, def.name); err != nil {
					return nil, err
				}
			}
		}
	}
	return r, nil
}

func takeMessage(r *reader, m netlink.Message, f ipfamily.Family, set string) error {
	ad, err := attributesOf(m)
	if err != nil {
		return err
	}
	for ad.Next() {
		if ad.Type() != unix.NFTA_SET_ELEM_LIST_ELEMENTS {
			continue
		}
		ad.Nested(func(list *netlink.AttributeDecoder) error {
			for list.Next() {
				var key, data []byte
				list.Nested(func(elem *netlink.AttributeDecoder) error {
					for elem.Next() {
						switch elem.Type() {
						case unix.NFTA_SET_ELEM_KEY:
							elem.Nested(value(&key))
						case unix.NFTA_SET_ELEM_DATA:
							elem.Nested(value(&data))
						}
					}
					return nil
				})
				if err := r.take(f, set, key, data); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return ad.Err()
}

func value(into *[]byte) func(*netlink.AttributeDecoder) error {
	return func(ad *netlink.AttributeDecoder) error {
		for ad.Next() {
			*into = ad.Bytes()
		}
		return nil
	}
}

func attributesOf(m netlink.Message) (*netlink.AttributeDecoder, error) {
	if len(m.Data) < 4 {
		return nil, fmt.Errorf("nftables message of %d bytes has no header", len(m.Data))
	}
	ad, err := netlink.NewAttributeDecoder(m.Data[4:])
	if err != nil {
		return nil, err
	}
	ad.ByteOrder = binary.BigEndian
	return ad, nil
}

// explain names the right that is missing.
func explain(err error) error {
	if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EACCES) {
		return fmt.Errorf("%w: %w", ErrPermission, err)
	}
	return err
}
