package bench_test

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"fairlead.dev/fairlead/test/netlab"
)

// loadVar makes this binary a load generator or its server inside a pod instead of a
// test: "mode address duration".
const loadVar = "FAIRLEAD_BENCH_LOAD"

// patience is how long a connection or an answer may take: a packet that was lost is
// sent again after 1 s by TCP, and would count.
const patience = 900 * time.Millisecond

// workers is how many connections are made at a time.
const workers = 4

// load runs the mode that the variable names. What it prints is two numbers: what
// worked, and what failed.
func load(arguments string) error {
	var mode, to string
	var took time.Duration
	var text string
	if _, err := fmt.Sscan(arguments, &mode, &to, &text); err != nil {
		return fmt.Errorf("parsing %s=%q: %w", loadVar, arguments, err)
	}
	took, err := time.ParseDuration(text)
	if err != nil {
		return err
	}
	addr, err := netip.ParseAddrPort(to)
	if err != nil {
		return err
	}
	at := &unix.SockaddrInet4{Port: int(addr.Port()), Addr: addr.Addr().As4()}
	var worked, failed int
	switch mode {
	case "serve":
		return serve(at)
	case "connect":
		worked, failed = connectAll(at, took, 0)
	case "trickle":
		worked, failed = connectAll(at, took, time.Millisecond)
	case "pingpong":
		worked, failed, err = pingPong(at, took)
	default:
		return fmt.Errorf("%s has no mode %q", loadVar, mode)
	}
	fmt.Println(worked, failed)
	return err
}

// serve accepts connections and drops them, and sends datagrams back, until it is killed.
func serve(at *unix.SockaddrInet4) error {
	tcp, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	if err := errors.Join(unix.SetsockoptInt(tcp, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1), unix.Bind(tcp, at), unix.Listen(tcp, 4096)); err != nil {
		return err
	}
	udp, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	if err := unix.Bind(udp, at); err != nil {
		return err
	}
	go func() {
		buffer := make([]byte, 64)
		for {
			n, from, err := unix.Recvfrom(udp, buffer, 0)
			if err == nil {
				_ = unix.Sendto(udp, buffer[:n], 0, from) // a client that has gone
			}
		}
	}()
	for {
		if conn, _, err := unix.Accept(tcp); err == nil {
			_ = unix.Close(conn)
		}
	}
}

// connectAll makes and resets connections, with a pause after each.
func connectAll(to unix.Sockaddr, took, pause time.Duration) (worked, failed int) {
	var group sync.WaitGroup
	var mu sync.Mutex
	end := time.Now().Add(took)
	for range workers {
		group.Go(func() {
			var good, bad int
			for time.Now().Before(end) {
				if err := connect(to); err == nil {
					good++
				} else {
					bad++
					fmt.Fprintf(os.Stderr, "%s: connecting: %v\n", time.Now().Format(time.StampMilli), err)
				}
				if pause > 0 {
					time.Sleep(pause)
				}
			}
			mu.Lock()
			defer mu.Unlock()
			worked, failed = worked+good, failed+bad
		})
	}
	group.Wait()
	return worked, failed
}

func connect(to unix.Sockaddr) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	// The reset at the end leaves no port behind in TIME_WAIT.
	err = errors.Join(
		unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, new(unix.NsecToTimeval(int64(patience)))),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, new(unix.NsecToTimeval(int64(patience)))),
		unix.Connect(fd, to))
	if err == nil {
		// Until the server has dropped it: connections must not pile up there.
		_, err = unix.Read(fd, make([]byte, 1))
	}
	return errors.Join(err, unix.Close(fd))
}

// pingPong sends one datagram at a time over one flow.
func pingPong(to unix.Sockaddr, took time.Duration) (worked, failed int, err error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return 0, 0, err
	}
	err = errors.Join(
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, new(unix.NsecToTimeval(int64(patience)))),
		unix.Connect(fd, to))
	if err != nil {
		return 0, 0, err
	}
	buffer := []byte("ping")
	for end := time.Now().Add(took); time.Now().Before(end); {
		_, err := unix.Write(fd, buffer)
		if err == nil {
			_, err = unix.Read(fd, buffer)
		}
		if err == nil {
			worked++
		} else {
			failed++
		}
	}
	return worked, failed, unix.Close(fd)
}

// startLoad starts this binary as a load generator on a host. The function that it
// returns waits for the end.
func startLoad(b testing.TB, h *netlab.Host, mode string, to netip.AddrPort, took time.Duration) func() (worked, failed int) {
	b.Helper()
	self, err := os.Executable()
	must(b, err)
	var out bytes.Buffer
	cmd := exec.Command(self)
	// The signals that preempt goroutines would interrupt what blocks in the kernel.
	cmd.Env = append(os.Environ(), "GODEBUG=asyncpreemptoff=1", fmt.Sprintf("%s=%s %s %s", loadVar, mode, to, took))
	cmd.Stdout, cmd.Stderr = &out, os.Stderr
	must(b, h.Start(cmd))
	return func() (worked, failed int) {
		b.Helper()
		must(b, cmd.Wait())
		_, err := fmt.Sscan(out.String(), &worked, &failed)
		must(b, err)
		return worked, failed
	}
}
