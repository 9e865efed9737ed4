package netlab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

const (
	// worldVar marks a process inside a world: worldNew until the mounts of
	// the world are made, worldReady after, also for the processes it starts.
	worldVar   = "NETLAB_WORLD"
	worldNew   = "new"
	worldReady = "ready"

	// userNSVar set to "off" keeps root from making a user namespace. The
	// world's root is then the machine's, which may exceed net.core.wmem_max
	// or set sysctls that exist once per machine.
	userNSVar = "NETLAB_USERNS"
)

// Enter brings the process into a world: new user, network and mount
// namespaces, in which it is root. The first call starts this program again
// inside them with the same arguments, hands signals on to it, and exits with
// its exit code, so Enter returns nil only inside the world. Call it early,
// before the process has written or started anything.
//
// An ordinary user needs unprivileged user namespaces; where they are off the
// error says how to turn them on. Root does without where it has to, and
// where NETLAB_USERNS=off says so.
func Enter() error {
	if state := os.Getenv(worldVar); state != "" {
		return settle()
	}

	// The child dies with the thread that started it (PR_SET_PDEATHSIG), so
	// the thread must live until the child has ended.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	signals := make(chan os.Signal, 16)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGQUIT, unix.SIGHUP)
	defer signal.Stop(signals)

	child, err := startWorld()
	if err != nil {
		return err
	}
	go forward(signals, child.Process)
	os.Exit(exitCode(child.Wait()))
	return nil
}

// Main is what TestMain calls: it enters a world, runs the tests there and
// exits. Where no world can be entered it prints why and exits with code 1.
func Main(m *testing.M) {
	if err := Enter(); err != nil {
		fmt.Fprintln(os.Stderr, "netlab:", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// startWorld starts this program again in new namespaces, in the first of the
// ways of this user that the kernel grants. Its error is that of entering.
func startWorld() (*exec.Cmd, error) {
	uid, gid := os.Geteuid(), os.Getegid()
	var first error
	for _, attr := range worldAttrs(uid, gid, os.Getenv(userNSVar) == "off") {
		// The path of a test binary may be closed to this user; the link
		// under /proc never is.
		child := exec.Command("/proc/self/exe", os.Args[1:]...)
		child.Args[0] = os.Args[0]
		child.Env = append(os.Environ(), worldVar+"="+worldNew)
		child.Stdin, child.Stdout, child.Stderr = os.Stdin, os.Stdout, os.Stderr
		child.SysProcAttr = attr
		err := child.Start()
		if err == nil {
			return child, nil
		}
		if first == nil {
			first = err
		}
	}
	return nil, enterError(first, uid)
}

// worldAttrs returns the ways to start a process in a world, the best first.
// Root keeps all its user ids, so that it can start processes as others; an
// ordinary user may map its own only (user_namespaces(7)).
func worldAttrs(uid, gid int, noUserNS bool) []*syscall.SysProcAttr {
	plain := &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS,
		Pdeathsig:  unix.SIGKILL,
	}
	if noUserNS {
		return []*syscall.SysProcAttr{plain}
	}
	mapped := func(uidSize, gidSize int) *syscall.SysProcAttr {
		return &syscall.SysProcAttr{
			Cloneflags:                 plain.Cloneflags | unix.CLONE_NEWUSER,
			Pdeathsig:                  unix.SIGKILL,
			UidMappings:                []syscall.SysProcIDMap{{ContainerID: 0, HostID: uid, Size: uidSize}},
			GidMappings:                []syscall.SysProcIDMap{{ContainerID: 0, HostID: gid, Size: gidSize}},
			GidMappingsEnableSetgroups: gidSize > 1,
		}
	}
	if uid != 0 {
		return []*syscall.SysProcAttr{mapped(1, 1)}
	}
	// Ids are 32 bits, the last one being "none". A nested namespace has
	// fewer, then only the ids up to nobody's 65534 are tried.
	const allIDs, usualIDs = 1<<32 - 1, 1 << 16
	return []*syscall.SysProcAttr{mapped(allIDs, allIDs), mapped(usualIDs, usualIDs), mapped(1, 1), plain}
}

// enterError explains why no world could be started for uid. The error of the
// kernel stays visible to errors.Is.
func enterError(err error, uid int) error {
	const enable = "enable them with sysctl kernel.unprivileged_userns_clone=1 / " +
		"user.max_user_namespaces=10000 / kernel.apparmor_restrict_unprivileged_userns=0, or run as root"

	refused := errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) || errors.Is(err, unix.ENOSPC) ||
		errors.Is(err, unix.EUSERS) || errors.Is(err, unix.EINVAL)
	switch {
	case !refused:
		return fmt.Errorf("entering a network world: %w", err)
	case uid == 0:
		return fmt.Errorf("entering a network world: %w: this root lacks CAP_SYS_ADMIN; "+
			"run outside the container or give it that capability", err)
	default:
		return fmt.Errorf("entering a network world: %w: unprivileged user namespaces are off here; %s", err, enable)
	}
}

// forward hands signals on to the process inside the world. A terminal sends
// SIGINT, SIGQUIT and SIGHUP to the whole foreground group, so to that process
// as well, and a second one would mean "at once" to many programs.
func forward(signals <-chan os.Signal, child *os.Process) {
	for s := range signals {
		if s != unix.SIGTERM && inForeground() {
			continue
		}
		_ = child.Signal(s) // it may just have ended, which Wait reports
	}
}

// inForeground tells whether this process is in the foreground group of a terminal.
func inForeground() bool {
	tty, err := os.Open("/dev/tty")
	if err != nil {
		return false
	}
	defer func() { _ = tty.Close() }() // nothing was written that could be lost
	group, err := unix.IoctlGetInt(int(tty.Fd()), unix.TIOCGPGRP)
	return err == nil && group == unix.Getpgrp()
}

// exitCode translates the result of Wait the way shells do: the code, or 128
// plus the number of the signal.
func exitCode(err error) int {
	if err == nil {
		return 0
	}
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		fmt.Fprintln(os.Stderr, "netlab: waiting for the world:", err)
		return 1
	}
	if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return 128 + int(status.Signal())
	}
	return exit.ExitCode()
}

// settle makes the mounts of the world once per world.
var settle = sync.OnceValue(func() error {
	if os.Getenv(worldVar) == worldReady {
		return nil
	}
	if err := privateRun(); err != nil {
		return enterError(err, os.Getuid())
	}
	// Without this pgrep(1) would find the world as "exe" only.
	_ = os.WriteFile("/proc/self/comm", []byte(filepath.Base(os.Args[0])), 0)
	return os.Setenv(worldVar, worldReady)
})
