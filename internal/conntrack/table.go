package conntrack

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

const (
	// datagram is the largest one that the kernel makes for a listing (af_netlink.c,
	// netlink_recvmsg), once a receive has offered so much room.
	datagram = 32 << 10

	// replyTimeout bounds the wait for each datagram. Measured, the kernel walks its
	// 262,144 buckets in some milliseconds.
	replyTimeout = 30 * time.Second
)

// errTorn says that the kernel gave up a listing, or may have left out flows.
var errTorn = errors.New("the listing was interrupted")

// table is the connection tracking table of the network namespace that its sockets were
// opened in. It is not safe for concurrent use.
type table struct {
	listing, removing *netlink.Conn
	buffer            []byte
	// unfiltered says that the kernel does not know the filters (before 5.8).
	unfiltered bool
}

// ready opens the sockets, if they are not open, in the namespace of this thread.
func (t *table) ready() (err error) {
	if t.removing != nil {
		return nil
	}
	t.buffer = make([]byte, datagram)
	if t.listing, err = netlink.Dial(unix.NETLINK_NETFILTER, nil); err == nil {
		t.removing, err = netlink.Dial(unix.NETLINK_NETFILTER, nil)
	}
	if err != nil {
		t.close()
		return fmt.Errorf("opening a netlink socket: %w", err)
	}
	return nil
}

// close drops the sockets, with whatever answers are still under way on them.
func (t *table) close() {
	for _, conn := range []*netlink.Conn{t.listing, t.removing} {
		if conn != nil {
			_ = conn.Close() // only a second close can fail
		}
	}
	t.listing, t.removing = nil, nil
}

// walk calls each for all flows of q, and maybe others, one datagram of some hundred at a
// time. A flow is valid until each returns. After an error, flows may have been left out.
func (t *table) walk(ctx context.Context, q query, each func(*flow) error) error {
	err := t.list(ctx, q, each)
	if !t.unfiltered && (errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL)) {
		t.unfiltered = true
		err = t.list(ctx, q, each)
	}
	if err != nil {
		t.close()
		return fmt.Errorf("listing %s flows: %w", q.family, err)
	}
	return nil
}

func (t *table) list(ctx context.Context, q query, each func(*flow) error) error {
	if err := t.ready(); err != nil {
		return err
	}
	request, err := q.request(t.unfiltered)
	if err != nil {
		return err
	}
	sent, err := t.listing.Send(request)
	if err != nil {
		return err
	}
	raw, err := t.listing.SyscallConn()
	if err != nil {
		return err
	}
	for ctx.Err() == nil {
		if err := t.listing.SetReadDeadline(deadline()); err != nil {
			return err
		}
		n, err := receive(raw, t.buffer)
		if err != nil {
			return err
		}
		done, err := messages(t.buffer[:n], sent.Header.Sequence, each)
		if done || err != nil {
			return err
		}
	}
	return ctx.Err()
}

// receive returns the size of the next datagram.
func receive(raw syscall.RawConn, buffer []byte) (n int, err error) {
	readErr := raw.Read(func(fd uintptr) bool {
		n, _, err = unix.Recvfrom(int(fd), buffer, unix.MSG_TRUNC)
		return !errors.Is(err, unix.EAGAIN)
	})
	if err := errors.Join(readErr, err); err != nil {
		return 0, err
	}
	if n > len(buffer) {
		return 0, fmt.Errorf("datagram of %d bytes: %w", n, errTorn)
	}
	return n, nil
}

// messages calls each for the flows in a datagram, and says whether it was the last.
func messages(data []byte, sequence uint32, each func(*flow) error) (done bool, err error) {
	var fl flow
	for len(data) >= unix.NLMSG_HDRLEN {
		size := int(binary.NativeEndian.Uint32(data))
		if size < unix.NLMSG_HDRLEN || size > len(data) {
			return false, fmt.Errorf("message of %d bytes: %w", size, errTorn)
		}
		kind, flags := binary.NativeEndian.Uint16(data[4:]), binary.NativeEndian.Uint16(data[6:])
		payload := data[unix.NLMSG_HDRLEN:size]
		switch {
		case binary.NativeEndian.Uint32(data[8:]) != sequence:
		case flags&unix.NLM_F_DUMP_INTR != 0:
			return false, errTorn
		case (kind == unix.NLMSG_DONE || kind == unix.NLMSG_ERROR) && len(payload) >= 4:
			if code := -int32(binary.NativeEndian.Uint32(payload)); code > 0 {
				return false, syscall.Errno(code)
			}
			return true, nil
		case fl.decode(payload):
			if err := each(&fl); err != nil {
				return false, err
			}
		}
		data = data[min((size+unix.NLMSG_ALIGNTO-1)&^(unix.NLMSG_ALIGNTO-1), len(data)):]
	}
	return false, nil
}

// remove removes the flow, and says whether it was still there.
func (t *table) remove(fl *flow) (bool, error) {
	request, err := fl.removal()
	if err != nil {
		return false, err
	}
	if err := t.removing.SetDeadline(deadline()); err != nil {
		return false, err
	}
	switch _, err := t.removing.Execute(request); {
	case errors.Is(err, unix.ENOENT):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("removing the flow to %s: %w", fl.to, err)
	}
	return true, nil
}

// deadline is the one look at a clock here: socket deadlines are absolute.
func deadline() time.Time {
	return time.Now().Add(replyTimeout) //nolint:forbidigo // a socket deadline is an instant of the real clock
}
