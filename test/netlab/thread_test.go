package netlab

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"testing"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// where names the namespace of the calling thread.
func where(t *testing.T) string {
	t.Helper()
	runtime.LockOSThread() // or the name may be read when another goroutine has the thread
	defer runtime.UnlockOSThread()
	link, err := os.Readlink(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()))
	if err != nil {
		t.Error(err)
	}
	return link
}

func newTestNamespace(t *testing.T) *namespace {
	t.Helper()
	s := newSpawner()
	n, err := newNamespace("test", s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.close(); err != nil {
			t.Error(err)
		}
		s.close()
	})
	return n
}

func TestThreadsComeBack(t *testing.T) {
	n := newTestNamespace(t)
	home := where(t)
	var all sync.WaitGroup
	for range 32 {
		all.Go(func() {
			for range 16 {
				err := n.do(func() error {
					if where(t) == home {
						t.Error("inside: still at home")
					}
					if unix.Gettid() == unix.Getpid() {
						t.Error("inside: on the first thread")
					}
					runtime.Gosched()
					return os.ErrInvalid
				})
				if !errors.Is(err, os.ErrInvalid) {
					t.Errorf("got %v, want the function's error", err)
				}
				if where(t) != home {
					t.Error("outside: not at home")
				}
			}
		})
	}
	all.Wait()
	// The first thread among them, which tools look at.
	if got, err := os.Readlink("/proc/self/ns/net"); err != nil || got != home {
		t.Errorf("the process is in %s (%v), want %s", got, err, home)
	}
}

func TestThreadsComeBackFromExitAndPanic(t *testing.T) {
	n := newTestNamespace(t)
	home := where(t)
	for name, leave := range map[string]func(){"Goexit": runtime.Goexit, "panic": func() { panic("leaving") }} {
		for _, run := range []func(fn func() error) error{n.do, elsewhere} {
			left := make(chan string)
			go func() {
				defer func() {
					_ = recover()
					left <- where(t)
				}()
				_ = run(func() error { leave(); return nil })
				t.Errorf("%s: the caller went on", name)
			}()
			if got := <-left; got != home {
				t.Errorf("%s: got to %s, want home", name, got)
			}
		}
	}
}

func TestNamespacesNest(t *testing.T) {
	n := newTestNamespace(t)
	home, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = home.Close() }() // nothing was written that could be lost
	outside := where(t)
	err = n.do(func() error {
		inside := where(t)
		if err := within(home, func() error {
			if got := where(t); got != outside {
				t.Errorf("nested: in %s, want %s", got, outside)
			}
			return nil
		}); err != nil {
			return err
		}
		if got := where(t); got != inside {
			t.Errorf("back from the nested one: in %s, want %s", got, inside)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestFailedNamespaceIsRemoved takes a name twice and asks for a setting that
// does not exist; neither may leave a thread astray or a name behind.
func TestFailedNamespaceIsRemoved(t *testing.T) {
	n := newTestNamespace(t)
	home := where(t)
	if _, err := newNamespace("test", n.spawner); err == nil {
		t.Error("taking a name twice: got no error")
	}
	if _, err := newNamespace("other", n.spawner, sysctl{path: "net/ipv4/no_such_thing", value: "1"}); err == nil {
		t.Error("a setting that does not exist: got no error")
	}
	if names, err := os.ReadDir(netnsDir); err != nil || len(names) != 1 {
		t.Errorf("%s holds %v (%v), want the first only", netnsDir, names, err)
	}
	if got := where(t); got != home {
		t.Errorf("the thread is in %s, want %s", got, home)
	}
}
