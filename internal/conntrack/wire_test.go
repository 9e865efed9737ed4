package conntrack

import (
	"encoding/binary"
	"errors"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// message is a netlink message of sequence 7.
func message(kind, flags uint16, payload []byte) []byte {
	out := binary.NativeEndian.AppendUint32(nil, uint32(unix.NLMSG_HDRLEN+len(payload)))
	out = binary.NativeEndian.AppendUint16(out, kind)
	out = binary.NativeEndian.AppendUint16(out, flags)
	out = binary.NativeEndian.AppendUint32(out, 7)
	return append(append(out, 0, 0, 0, 0), payload...)
}

// TestMessages: what the kernel says beside flows.
func TestMessages(t *testing.T) {
	code := func(errno syscall.Errno) []byte { return binary.NativeEndian.AppendUint32(nil, uint32(-int32(errno))) }
	for name, tc := range map[string]struct {
		data []byte
		done bool
		want error
	}{
		"the end":              {data: message(unix.NLMSG_DONE, 0, code(0)), done: true},
		"it ended badly":       {data: message(unix.NLMSG_DONE, 0, code(unix.ENOBUFS)), want: unix.ENOBUFS},
		"refused":              {data: message(unix.NLMSG_ERROR, 0, code(unix.EOPNOTSUPP)), want: unix.EOPNOTSUPP},
		"others changed it":    {data: message(uint16(ctType(msgGet)), unix.NLM_F_DUMP_INTR, nil), want: errTorn},
		"cut off":              {data: message(unix.NLMSG_DONE, 0, code(0))[:18], want: errTorn},
		"of another request":   {data: append(message(unix.NLMSG_ERROR, 0, code(unix.EPERM))[:8], make([]byte, 12)...)},
		"nothing that we know": {data: message(uint16(ctType(msgGet)), 0, []byte{unix.AF_INET, 0, 0, 0})},
	} {
		t.Run(name, func(t *testing.T) {
			done, err := messages(tc.data, 7, func(*flow) error { return errors.New("a flow") })
			if done != tc.done || !errors.Is(err, tc.want) {
				t.Errorf("got %v, %v; want %v, %v", done, err, tc.done, tc.want)
			}
		})
	}
}

// TestDecode: a flow comes out as it went in, and part of one is none: to remove it would
// be to remove all flows.
func TestDecode(t *testing.T) {
	data := newFlow(1, port).Data
	data = append(data, 8, 0, ctaStatus, 0, 0, 0, 0, 0, 8, 0, ctaID, 0, 1, 2, 3, 4)
	var fl flow
	if !fl.decode(data) || fl.to.String() != "192.0.2.53:80" || fl.backend.String() != "10.244.9.9:8080" || fl.id[3] != 4 || fl.opening {
		t.Errorf("got %+v", fl)
	}
	rapid.Check(t, func(t *rapid.T) {
		part := data[:rapid.IntRange(0, len(data)-1).Draw(t, "length")]
		if fl.decode(part) {
			t.Fatalf("%d of %d bytes are %+v", len(part), len(data), fl)
		}
		fl.decode(rapid.SliceOf(rapid.Byte()).Draw(t, "bytes")) // must not panic
	})
}
