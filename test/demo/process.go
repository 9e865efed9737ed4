package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/utils/clock"

	"fairlead.dev/fairlead/test/netlab"
)

const (
	// stopTimeout is how long a process may take to end after SIGTERM.
	stopTimeout = 10 * time.Second

	// tailLines and tailWidth are how much of each log a failure shows. What is longer
	// is a trace of the stack.
	tailLines = 8
	tailWidth = 400
)

// processes are those that the demo runs until its end, each with a log of its own. The
// kernel kills them with the demo, however that ends.
type processes struct {
	dir   string      // for the logs
	ended func(error) // is called when one ends by itself
	clock clock.Clock
	list  []*process
}

type process struct {
	name     string
	log      string
	cmd      *exec.Cmd
	stopping atomic.Bool
	done     chan struct{} // closed when it has ended
	err      error         // how it ended, after done
}

// start runs a program inside host. Names are unique.
func (ps *processes) start(host *netlab.Host, name string, cmd *exec.Cmd) error {
	p := &process{name: name, log: filepath.Join(ps.dir, name+".log"), cmd: cmd, done: make(chan struct{})}
	log, err := os.Create(p.log)
	if err != nil {
		return fmt.Errorf("making the log of %s: %w", name, err)
	}
	defer func() { _ = log.Close() }() // the process has a descriptor of its own
	cmd.Stdout, cmd.Stderr = log, log
	// Ctrl-C of a terminal goes to the demo, which stops the others in order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := host.Start(cmd); err != nil {
		return err
	}
	ps.list = append(ps.list, p)
	go func() {
		p.err = cmd.Wait()
		close(p.done)
		if !p.stopping.Load() {
			ps.ended(p.unexpected())
		}
	}()
	return nil
}

// unexpected says with the program's own last words how it ended.
func (p *process) unexpected() error {
	reason := "exit status 0"
	if p.err != nil {
		reason = p.err.Error()
	}
	if last := shorten(tail(p.log, 1)); len(last) > 0 {
		return fmt.Errorf("%s has ended by itself (%s): %s", p.name, reason, last)
	}
	return fmt.Errorf("%s has ended by itself (%s)", p.name, reason)
}

// stop ends all processes, the last one started first. Those in gentle are asked to and
// must do so without fault; nothing of the others is worth waiting for.
func (ps *processes) stop(gentle func(name string) bool) error {
	var asked sync.WaitGroup
	errs := make([]error, len(ps.list))
	for i, p := range ps.list {
		p.stopping.Store(true)
		if gentle(p.name) {
			asked.Go(func() { errs[i] = p.terminate(ps.clock) })
		}
	}
	asked.Wait()
	for _, p := range ps.list {
		_ = p.cmd.Process.Kill() // it may have ended
		<-p.done
	}
	return errors.Join(errs...)
}

// terminate asks the process to end, and returns an error if it does not do so well.
func (p *process) terminate(c clock.Clock) error {
	select {
	case <-p.done:
		return nil // ended reports it
	default:
	}
	if err := p.cmd.Process.Signal(unix.SIGTERM); err != nil {
		return fmt.Errorf("stopping %s: %w", p.name, err)
	}
	timer := c.NewTimer(stopTimeout)
	defer timer.Stop()
	select {
	case <-p.done:
	case <-timer.C():
		return fmt.Errorf("stopping %s: it still runs %s after SIGTERM", p.name, stopTimeout)
	}
	if p.err != nil {
		return fmt.Errorf("stopping %s: %w: %s", p.name, p.err, shorten(tail(p.log, 1)))
	}
	return nil
}

// tails writes the last lines of every log that wanted picks to w.
func (ps *processes) tails(w io.Writer, wanted func(name string) bool) {
	for _, p := range ps.list {
		lines := tail(p.log, tailLines)
		if !wanted(p.name) || len(lines) == 0 {
			continue
		}
		_, _ = fmt.Fprintf(w, "--- the end of the log of %s\n", p.name)
		for line := range bytes.Lines(lines) {
			_, _ = fmt.Fprintf(w, "%s\n", shorten(line))
		}
	}
}

// shorten returns a line without its end, where that is long.
func shorten(line []byte) []byte {
	line = bytes.TrimRight(line, "\n")
	if len(line) <= tailWidth {
		return line
	}
	return append(bytes.Clone(line[:tailWidth]), " ..."...)
}

// tail returns the last n lines of a file without the last newline, as far as it can be read.
func tail(path string, n int) []byte {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	data = bytes.TrimRight(data, "\n")
	start := len(data)
	for range n {
		if start = bytes.LastIndexByte(data[:start], '\n'); start < 0 {
			return data
		}
	}
	return data[start+1:]
}
