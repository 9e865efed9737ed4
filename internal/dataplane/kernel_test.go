package dataplane

import (
	"errors"
	"testing"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// TestRefusal: only what the kernel says of the content of a transaction is held against
// the Services in it.
func TestRefusal(t *testing.T) {
	for errno, want := range map[error]bool{
		unix.EINVAL: true, unix.EEXIST: true, unix.ENOENT: true,
		unix.ENOMEM: false, unix.ENOBUFS: false, unix.EPERM: false, unix.EINTR: false,
	} {
		err := refusal(&netlink.OpError{Op: "receive", Err: errno})
		if got := errors.Is(err, errRefused); got != want || !errors.Is(err, errno) {
			t.Errorf("refusal(%v) = %v, errRefused: %t, want %t", errno, err, got, want)
		}
	}
}
