package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// module is the path of the module that pins the versions.
const module = "fairlead.dev/fairlead/test/controlplane"

// tool is one binary to build.
type tool struct {
	name   string // of the binary, as envtest wants it
	pkg    string // the main package
	module string // the module of pkg, whose pinned version counts
	takes  string // how long a build takes
}

// tools are built in this order, the quickest first, so that a missing
// compiler or network shows early. The times were measured on 2 cores, with what the
// ones before have compiled.
var tools = []tool{
	{"etcd", "go.etcd.io/etcd/server/v3", "go.etcd.io/etcd/server/v3", "1 minute"},
	{"kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver", "k8s.io/kubernetes", "3 minutes"},
	{"kubectl", "k8s.io/kubernetes/cmd/kubectl", "k8s.io/kubernetes", "1 minute"},
	{"kube-proxy", "k8s.io/kubernetes/cmd/kube-proxy", "k8s.io/kubernetes", "15 seconds"},
}

// builder builds tools into one directory, which it holds locked.
type builder struct {
	goCmd    string
	dir      string // of this module
	out      string
	sum      string // hash of everything that determines a binary
	lock     *os.File
	stamp    map[string]string // binary name -> what it was built from
	progress io.Writer
}

// newBuilder makes the directory out, waits until no other process builds
// into it, and reads what is there. It fails when it is not run inside this
// module or when there is no go command.
func newBuilder(ctx context.Context, out string, progress io.Writer) (*builder, error) {
	b := &builder{out: out, progress: progress}
	var err error
	if b.goCmd, err = exec.LookPath("go"); err != nil {
		return nil, errNoGo
	}
	main, err := b.goOutput(ctx, "list", "-m", "-f", "{{.Path}} {{.Dir}}")
	if err != nil {
		return nil, err
	}
	path, dir, _ := strings.Cut(main, " ")
	if path != module {
		return nil, fmt.Errorf("running in module %q: run this command in test/controlplane", path)
	}
	b.dir = dir
	if b.sum, err = b.fingerprint(ctx); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(out, 0o755); err != nil {
		return nil, fmt.Errorf("making the output directory: %w", err)
	}
	if err := b.takeLock(); err != nil {
		return nil, err
	}
	if b.stamp, err = readStamp(b.stampPath()); err != nil {
		b.close()
		return nil, err
	}
	return b, nil
}

// close lets other processes build into the directory.
func (b *builder) close() {
	_ = b.lock.Close() // closing gives up the lock, and nothing was written
}

// takeLock waits for the lock on the output directory. A second "make test"
// then finds the binaries of the first instead of building them again.
func (b *builder) takeLock() error {
	f, err := os.OpenFile(filepath.Join(b.out, ".lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return fmt.Errorf("opening the lock: %w", err)
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		fmt.Fprintf(b.progress, "waiting for another build into %s\n", b.out)
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX)
	}
	if err != nil {
		_ = f.Close()
		return fmt.Errorf("locking %s: %w", f.Name(), err)
	}
	b.lock = f
	return nil
}

// buildAll builds the tools that are missing or were built from other pins.
func (b *builder) buildAll(ctx context.Context) error {
	for i, t := range tools {
		version, err := b.goOutput(ctx, "list", "-mod=readonly", "-m", "-f", "{{.Version}}", t.module)
		if err != nil {
			return err
		}
		key := version + " " + b.sum
		if b.stamp[t.name] == key && executable(filepath.Join(b.out, t.name)) {
			fmt.Fprintf(b.progress, "%s %s is built\n", t.name, version)
			continue
		}
		fmt.Fprintf(b.progress, "building %s %s (%d of %d, about %s on 2 cores)... ",
			t.name, version, i+1, len(tools), t.takes)
		start := time.Now()
		if err := b.build(ctx, t, version); err != nil {
			fmt.Fprintln(b.progress, "failed")
			return err
		}
		b.stamp[t.name] = key
		if err := writeStamp(b.stampPath(), b.stamp); err != nil {
			return err
		}
		fmt.Fprintf(b.progress, "done in %ds\n", int(time.Since(start).Seconds()))
	}
	return nil
}

// build builds one tool under a temporary name and then renames it, so that
// an interrupted build leaves no half binary and a running one is not written to.
func (b *builder) build(ctx context.Context, t tool, version string) error {
	tmp := filepath.Join(b.out, "."+t.name+".tmp")
	defer os.Remove(tmp)

	cmd := b.command(ctx, "build", "-mod=readonly", "-trimpath",
		"-ldflags", ldflags(t, version), "-o", tmp, t.pkg)
	if output, err := cmd.CombinedOutput(); err != nil {
		if ctx.Err() != nil {
			return fmt.Errorf("building %s: interrupted", t.name)
		}
		return fmt.Errorf("building %s: %w\n%s", t.name, err, bytes.TrimSpace(output))
	}
	if err := os.Rename(tmp, filepath.Join(b.out, t.name)); err != nil {
		return fmt.Errorf("installing %s: %w", t.name, err)
	}
	return nil
}

// ldflags returns the linker's flags for a tool. Kubernetes' binaries learn
// their version at link time: hack/lib/version.sh of k8s.io/kubernetes.
func ldflags(t tool, version string) string {
	flags := []string{"-s", "-w"}
	if t.module != "k8s.io/kubernetes" {
		return strings.Join(flags, " ")
	}
	parts := strings.SplitN(strings.TrimPrefix(version, "v"), ".", 3)
	for _, pkg := range []string{"k8s.io/component-base/version", "k8s.io/client-go/pkg/version"} {
		flags = append(flags,
			"-X", pkg+".gitVersion="+version,
			"-X", pkg+".gitMajor="+parts[0],
			"-X", pkg+".gitMinor="+parts[1],
			"-X", pkg+".gitTreeState=clean")
	}
	return strings.Join(flags, " ")
}

// fingerprint hashes what determines the binaries besides their versions:
// every dependency, the compiler and the platform.
func (b *builder) fingerprint(ctx context.Context) (string, error) {
	h := sha256.New()
	for _, name := range []string{"go.mod", "go.sum"} {
		data, err := os.ReadFile(filepath.Join(b.dir, name))
		if err != nil {
			return "", fmt.Errorf("reading the pins: %w", err)
		}
		h.Write(data)
	}
	env, err := b.goOutput(ctx, "env", "GOVERSION", "GOOS", "GOARCH")
	if err != nil {
		return "", err
	}
	h.Write([]byte(env))
	return "sha256:" + hex.EncodeToString(h.Sum(nil)), nil
}

// goOutput runs the go command and returns its trimmed standard output; an
// error carries what it said.
func (b *builder) goOutput(ctx context.Context, args ...string) (string, error) {
	cmd := b.command(ctx, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	output, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("running go %s: %w\n%s", strings.Join(args, " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return strings.TrimSpace(string(output)), nil
}

// command returns a go command in this module. No workspace joins in, and the
// binaries are static, so that they run on any Linux.
func (b *builder) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, b.goCmd, args...)
	cmd.Dir = b.dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
	// The compilers are children of the go command, which stops them when it
	// is interrupted but not when it is killed.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	return cmd
}

func (b *builder) stampPath() string { return filepath.Join(b.out, "versions.json") }

// readStamp returns what the binaries were built from, by name. A file that
// is not there, or not readable as JSON, means that nothing is known.
func readStamp(path string) (map[string]string, error) {
	stamp := map[string]string{}
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return stamp, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the stamp: %w", err)
	}
	if json.Unmarshal(data, &stamp) != nil || stamp == nil {
		return map[string]string{}, nil
	}
	return stamp, nil
}

// writeStamp replaces the stamp file in one step.
func writeStamp(path string, stamp map[string]string) error {
	data, err := json.MarshalIndent(stamp, "", "  ")
	if err != nil {
		return fmt.Errorf("encoding the stamp: %w", err)
	}
	if err := os.WriteFile(path+".tmp", append(data, '\n'), 0o644); err != nil {
		return fmt.Errorf("writing the stamp: %w", err)
	}
	if err := os.Rename(path+".tmp", path); err != nil {
		return fmt.Errorf("writing the stamp: %w", err)
	}
	return nil
}
