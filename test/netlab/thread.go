package netlab

import (
	"errors"
	"fmt"
	"runtime"
	"sync"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// A network namespace belongs to a thread, not to a process. The helpers here
// move a goroutine's thread into a namespace and back. They leave the first
// thread of the process alone, since its namespace is what /proc/PID/ns/net
// and /proc/net show of the whole process.

// within runs fn with the calling goroutine's thread in the namespace ns, and
// moves the thread back when fn returns, panics or calls runtime.Goexit, as
// t.FailNow does. Goroutines that fn starts are not in ns.
func within(ns netns.NsHandle, fn func() error) (err error) {
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() {
		defer runtime.UnlockOSThread()
		return elsewhere(func() error { return within(ns, fn) })
	}
	home, err := netns.Get()
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("opening the thread's namespace: %w", err)
	}
	defer func() { _ = home.Close() }() // nothing was written that could be lost
	if err := netns.Set(ns); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("entering a namespace: %w", err)
	}
	defer func() {
		if back := netns.Set(home); back != nil {
			// The thread stays locked, so that it ends with this goroutine
			// and no other one gets to run in the wrong namespace.
			err = errors.Join(err, fmt.Errorf("leaving a namespace: %w", back))
			return
		}
		runtime.UnlockOSThread()
	}()
	return fn()
}

// elsewhere runs fn in another goroutine and waits for it. The caller holds
// the first thread locked, so fn runs on a different one. A panic or Goexit in
// fn comes out in the calling goroutine.
func elsewhere(fn func() error) error {
	var (
		err      error
		panicked any
		returned bool
		done     = make(chan struct{})
	)
	go func() {
		defer close(done)
		defer func() { panicked = recover() }()
		err = fn()
		returned = true
	}()
	<-done
	switch {
	case panicked != nil:
		panic(panicked)
	case !returned:
		runtime.Goexit()
	}
	return err
}

// spawner runs functions one after the other on one thread of its own, which
// lives until close. Processes started there with Pdeathsig set die when the
// thread ends (PR_SET_PDEATHSIG in prctl(2)): on close, or with this process.
type spawner struct {
	mu     sync.Mutex // held while a job runs
	jobs   chan func()
	closed bool
}

// newSpawner starts the thread.
func newSpawner() *spawner {
	s := &spawner{jobs: make(chan func())}
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() != unix.Getpid() {
			s.loop() // without unlocking: the thread ends with this goroutine
			return
		}
		// The first thread never ends. Holding it until another goroutine
		// runs puts that one on a different thread.
		started := make(chan struct{})
		go func() {
			runtime.LockOSThread()
			close(started)
			s.loop()
		}()
		<-started
		runtime.UnlockOSThread()
	}()
	return s
}

func (s *spawner) loop() {
	for job := range s.jobs {
		job()
	}
}

// do runs fn on the spawner's thread and waits for it; ErrClosed after close.
func (s *spawner) do(fn func() error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return ErrClosed
	}
	var err error
	done := make(chan struct{})
	s.jobs <- func() {
		defer close(done)
		err = fn()
	}
	<-done
	return err
}

// close ends the thread, and with it what it started. It may be called twice.
func (s *spawner) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.closed = true
		close(s.jobs)
	}
}
