package netlab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// ErrClosed says that the lab is closed, or the pod removed; make a new one.
var ErrClosed = errors.New("network namespace is closed")

// namespace is one network namespace: a handle to enter it, a netlink socket
// inside, and the processes that were started there.
type namespace struct {
	name    string // under netnsDir; empty for the world's own
	nl      *netlink.Handle
	spawner *spawner // the lab's

	mu     sync.Mutex
	fd     netns.NsHandle
	closed bool
	procs  []*os.Process
}

// newNamespace makes a namespace with a name under netnsDir, which must not be
// taken, and sets the sysctls there. On error nothing stays behind.
func newNamespace(name string, s *spawner, sysctls ...sysctl) (*namespace, error) {
	home, err := netns.Get()
	if err != nil {
		return nil, fmt.Errorf("opening the thread's namespace: %w", err)
	}
	defer func() { _ = home.Close() }() // nothing was written that could be lost

	n := &namespace{name: name, spawner: s, fd: netns.None()}
	// Entering the namespace where the thread is already moves off the first
	// thread, and leads back from the one that unshare moves it to.
	err = within(home, func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("unsharing: %w", err)
		}
		if err := n.open(sysctls); err != nil {
			return err
		}
		return bindNamespace(name)
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("making namespace %s: %w", name, err), n.release())
	}
	return n, nil
}

// worldNamespace returns the namespace that the world started in.
func worldNamespace(s *spawner) (*namespace, error) {
	n := &namespace{spawner: s, fd: netns.None()}
	if err := n.open(nil); err != nil {
		return nil, errors.Join(err, n.release())
	}
	return n, nil
}

// open fills in the handles of the calling thread's namespace, sets its
// sysctls and brings lo up. After an error the caller releases what is open.
func (n *namespace) open(extra []sysctl) error {
	var err error
	if n.fd, err = netns.Get(); err != nil {
		return fmt.Errorf("opening: %w", err)
	}
	if n.nl, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		return fmt.Errorf("opening a netlink socket: %w", err)
	}
	if err := setSysctls(append(hostSysctls(), extra...)); err != nil {
		return err
	}
	lo, err := n.nl.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("finding lo: %w", err)
	}
	if err := n.nl.LinkSetUp(lo); err != nil {
		return fmt.Errorf("setting lo up: %w", err)
	}
	return nil
}

// do runs fn on a thread inside the namespace.
func (n *namespace) do(fn func() error) error {
	n.mu.Lock()
	if n.closed {
		n.mu.Unlock()
		return ErrClosed
	}
	// A copy, so that closing the namespace does not pull it from under fn.
	fd, err := unix.FcntlInt(uintptr(n.fd), unix.F_DUPFD_CLOEXEC, 0)
	n.mu.Unlock()
	if err != nil {
		return fmt.Errorf("duplicating a namespace handle: %w", err)
	}
	defer func() { _ = unix.Close(fd) }() // nothing was written that could be lost
	return within(netns.NsHandle(fd), fn)
}

// start starts a process inside the namespace; it dies with the lab at the latest.
func (n *namespace) start(cmd *exec.Cmd) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = unix.SIGKILL
	return n.spawner.do(func() error {
		return n.do(func() error {
			if err := cmd.Start(); err != nil {
				return err
			}
			n.mu.Lock()
			defer n.mu.Unlock()
			n.procs = append(running(n.procs), cmd.Process)
			return nil
		})
	})
}

// running returns the processes that nobody has waited for yet.
func running(procs []*os.Process) []*os.Process {
	kept := procs[:0]
	for _, p := range procs {
		if !errors.Is(p.Signal(syscall.Signal(0)), os.ErrProcessDone) {
			kept = append(kept, p)
		}
	}
	return kept
}

// close kills the processes inside, closes the handles and removes the name.
// The kernel frees the namespace when nothing holds it any more.
func (n *namespace) close() error {
	n.mu.Lock()
	if n.closed {
		n.mu.Unlock()
		return nil
	}
	n.closed = true
	for _, p := range running(n.procs) {
		_ = p.Kill() // it may have ended by itself
	}
	n.procs = nil
	n.mu.Unlock()

	var err error
	if n.name != "" {
		err = unbindNamespace(n.name)
	}
	return errors.Join(err, n.release())
}

// release closes the handles that are open.
func (n *namespace) release() error {
	if n.nl != nil {
		n.nl.Close()
	}
	if n.fd.IsOpen() {
		return n.fd.Close()
	}
	return nil
}

// bindNamespace gives the calling thread's namespace a name.
func bindNamespace(name string) error {
	path := filepath.Join(netnsDir, name)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o444)
	if err != nil {
		return fmt.Errorf("making its name: %w", err)
	}
	_ = f.Close() // it is only a place to mount on
	from := fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid())
	if err := unix.Mount(from, path, "", unix.MS_BIND, ""); err != nil {
		return errors.Join(fmt.Errorf("mounting it on its name: %w", err), os.Remove(path))
	}
	return nil
}

// unbindNamespace takes the name away.
func unbindNamespace(name string) error {
	path := filepath.Join(netnsDir, name)
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmounting namespace %s: %w", name, err)
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("removing namespace %s: %w", name, err)
	}
	return nil
}
