// Command demo runs fairlead in a small cluster of network namespaces on this machine
// and shows what it does: Services get their endpoints, addresses and node rules, and
// requests reach ready pods. Every answer is checked. It needs no root and touches
// nothing of the machine's network; see test/netlab for the world it lives in.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"fairlead.dev/fairlead/test/netlab"
)

// errInterrupted is the cause of a context that Ctrl-C has ended.
var errInterrupted = errors.New("interrupted")

func main() {
	opts := parseFlags(os.Args)
	if err := netlab.Enter(); err != nil {
		fail(err)
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	go func() {
		<-signals
		cancel(errInterrupted)
	}()
	if err := run(ctx, opts, os.Stdout); err != nil {
		fail(err)
	}
}

// interruptedCode is what shells use for a program that SIGINT has ended.
const interruptedCode = 130

// fail ends the program with the reason as the last line, and as one line.
func fail(err error) {
	if errors.Is(err, errInterrupted) {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(interruptedCode)
	}
	fmt.Fprintln(os.Stderr, "FAIL:", oneLine(err.Error()))
	os.Exit(1)
}

// oneLine joins the lines of text.
func oneLine(text string) string {
	var lines []string
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line != "" {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "; ")
}

// options are the flags.
type options struct {
	once                                  bool
	assets, fairlead, samples, crds, rbac string
}

func parseFlags(args []string) options {
	var o options
	set := flag.NewFlagSet(filepath.Base(args[0]), flag.ExitOnError)
	set.BoolVar(&o.once, "once", false, "end after the last check instead of waiting for Ctrl-C")
	set.StringVar(&o.assets, "assets", defaultAssets(), "directory of etcd, kube-apiserver and kubectl ($KUBEBUILDER_ASSETS if it has them)")
	set.StringVar(&o.fairlead, "fairlead", "bin/fairlead", "the fairlead binary")
	set.StringVar(&o.samples, "samples", "config/samples", "directory of the objects to show")
	set.StringVar(&o.crds, "crds", "config/crd/bases", "directory of the custom resource definitions")
	set.StringVar(&o.rbac, "rbac", "config/rbac", "directory of the roles that fairlead runs with")
	_ = set.Parse(args[1:]) // it exits by itself
	if set.NArg() > 0 {
		_, _ = fmt.Fprintf(set.Output(), "%s takes no arguments, only flags: %q\n", set.Name(), set.Args())
		os.Exit(2)
	}
	return o
}
