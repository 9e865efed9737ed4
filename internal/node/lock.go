package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/go-logr/logr"
	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/util/wait"
)

const (
	// lockName is an abstract unix socket (unix(7)): its name exists once in a network
	// namespace, as our rules do, and the kernel frees it when its process ends,
	// however that comes.
	lockName = "@fairlead-node"

	// lockPeriod is between two tries to get the lock. The promise is that the next
	// agent takes over within 2 s; a try is two system calls.
	lockPeriod = 250 * time.Millisecond
)

// errHeld says that another agent has the lock of this network namespace.
type errHeld struct {
	pid int32 // of its process; 0 where it cannot be seen from here
}

func (e errHeld) Error() string {
	if e.pid == 0 {
		return "another fairlead node runs in this network namespace"
	}
	return fmt.Sprintf("another fairlead node runs in this network namespace, process %d", e.pid)
}

// tryLock takes the lock of the network namespace of the calling thread, or returns
// errHeld. The lock is held until unlock, or the end of the process.
func tryLock(ctx context.Context) (unlock func(), err error) {
	listener, err := new(net.ListenConfig).Listen(ctx, "unix", lockName)
	if errors.Is(err, unix.EADDRINUSE) {
		return nil, errHeld{pid: holder(ctx)}
	}
	if err != nil {
		return nil, fmt.Errorf("taking the lock %s: %w", lockName, err)
	}
	go func() {
		// Whoever connects learns from the kernel who we are, which is all there is to
		// know. Where that fails, nobody learns it any more, and the lock holds.
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			_ = conn.Close() // nothing was written that could be lost
		}
	}()
	return func() { _ = listener.Close() }, nil // only a second close can fail
}

// holder returns the process id of who has the lock, 0 where it cannot be had.
func holder(ctx context.Context) int32 {
	ctx, cancel := context.WithTimeout(ctx, lockPeriod)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "unix", lockName)
	if err != nil {
		return 0
	}
	defer func() { _ = conn.Close() }() // nothing was written that could be lost
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return 0
	}
	var pid int32
	_ = raw.Control(func(fd uintptr) {
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			pid = cred.Pid
		}
	}) // without it there is no pid
	return pid
}

// takeLock takes the lock as soon as it is free, or returns the error of ctx. It says
// once for whom it waits.
func takeLock(ctx context.Context, logger logr.Logger) (unlock func(), err error) {
	last := errHeld{pid: -1}
	err = wait.PollUntilContextCancel(ctx, lockPeriod, true, func(ctx context.Context) (bool, error) {
		unlock, err = tryLock(ctx)
		held, isHeld := errors.AsType[errHeld](err)
		if !isHeld {
			return err == nil, err
		}
		if held != last {
			last = held
			logger.Info("Another fairlead node runs in this network namespace, waiting for its end", "pid", held.pid)
		}
		return false, nil
	})
	if err == nil && last.pid != -1 {
		logger.Info("The other fairlead node has ended, taking over")
	}
	return unlock, err
}
