// Command controlplane builds the control plane that the tests run against:
// etcd, kube-apiserver, kubectl, and kube-proxy to be measured against, each from
// its own Go module at the version that this module's go.mod pins. The binaries bear the names that envtest
// looks for, so KUBEBUILDER_ASSETS can point at the directory.
//
// Run it in this directory:
//
//	go run . -out ../../bin/controlplane
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
)

// assetsVar is envtest's variable for the directory with the three binaries:
// https://book.kubebuilder.io/reference/envtest.
const assetsVar = "KUBEBUILDER_ASSETS"

func main() {
	out := flag.String("out", "../../bin/controlplane", "directory for the binaries")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()

	if err := run(ctx, *out, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "controlplane:", err)
		os.Exit(1)
	}
}

// run leaves every binary of tools in the directory out, at the pinned
// versions, and writes what it does to progress. Binaries that are there
// already are kept, and those of KUBEBUILDER_ASSETS win over building any.
func run(ctx context.Context, out string, progress io.Writer) error {
	out, err := filepath.Abs(out)
	if err != nil {
		return fmt.Errorf("resolving -out: %w", err)
	}

	switch dir, missing := assets(out); {
	case dir == "":
	case len(missing) == 0:
		fmt.Fprintf(progress, "using %s=%s, nothing to build\n", assetsVar, dir)
		return nil
	default:
		fmt.Fprintf(progress, "%s=%s lacks %s: building\n", assetsVar, dir, strings.Join(missing, ", "))
	}

	b, err := newBuilder(ctx, out, progress)
	if err != nil {
		return err
	}
	defer b.close()

	return b.buildAll(ctx)
}

// assets returns the directory that KUBEBUILDER_ASSETS names, with the
// binaries it lacks. It returns "" when the variable is unset, and also when
// it names out: what this command built itself must follow the pins.
func assets(out string) (dir string, missing []string) {
	dir = os.Getenv(assetsVar)
	if dir == "" {
		return "", nil
	}
	if abs, err := filepath.Abs(dir); err == nil && abs == out {
		return "", nil
	}
	for _, t := range tools {
		if !executable(filepath.Join(dir, t.name)) {
			missing = append(missing, t.name)
		}
	}
	return dir, missing
}

// executable tells whether path is a regular file that someone may execute.
func executable(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0
}

// errNoGo says what is missing when there is no go command to build with.
var errNoGo = errors.New("the go command is not in PATH; install Go from https://go.dev/dl")
