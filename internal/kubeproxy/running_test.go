package kubeproxy_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"fairlead.dev/fairlead/internal/kubeproxy"
	"fairlead.dev/fairlead/test/netlab"
)

// playKubeProxy is what a copy of this test's program does under that name.
func playKubeProxy() {
	fmt.Println("up")
	time.Sleep(time.Hour) // until it is killed
}

// playK3s is what a copy of this test's program does under that name: it answers as the
// kube-proxy inside of k3s.
func playK3s(mode string) {
	mux := http.NewServeMux()
	mux.HandleFunc("/proxyMode", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, mode) })
	listener, err := net.Listen("tcp", "127.0.0.1:10249")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println("up")
	server := &http.Server{Handler: mux, ReadHeaderTimeout: testTimeout}
	_ = server.Serve(listener) // until it is killed
}

// self returns the path of a copy of this test's program under a name.
func self(t *testing.T, name string) string {
	t.Helper()
	program, err := os.ReadFile("/proc/self/exe")
	must(t, err)
	path := filepath.Join(t.TempDir(), name)
	must(t, os.WriteFile(path, program, 0o755))
	return path
}

// start starts a program that says something once it is up.
func start(t *testing.T, host *netlab.Host, cmd *exec.Cmd) *exec.Cmd {
	t.Helper()
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, host.Start(cmd))
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have been already
		_ = cmd.Wait()         // killed
	})
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatalf("%s did not start: %v", cmd.Path, err)
	}
	return cmd
}

func running(t *testing.T, host *netlab.Host) (found string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	must(t, host.Do(func() (err error) { found, err = kubeproxy.Running(ctx); return err }))
	return found
}

func TestRunning(t *testing.T) {
	lab, err := netlab.New()
	must(t, err)
	t.Cleanup(func() { must(t, lab.Close()) })
	here, err := lab.AddClient("here")
	must(t, err)
	elsewhere, err := lab.AddClient("elsewhere")
	must(t, err)

	if found := running(t, here); found != "" {
		t.Fatalf("found %q before there was one", found)
	}
	cmd := start(t, elsewhere, exec.Command(self(t, "kube-proxy")))
	if found := running(t, here); found != "" {
		t.Errorf("found %q, which is in another network namespace", found)
	}
	if found, want := running(t, elsewhere), fmt.Sprint("process ", cmd.Process.Pid); found != want {
		t.Errorf("found %q, want %q", found, want)
	}
	must(t, cmd.Process.Kill())
	_ = cmd.Wait() // killed
	if found := running(t, elsewhere); found != "" {
		t.Errorf("found %q after it ended", found)
	}
}

// TestRunningByMode: a kube-proxy under another name, as in k3s, is known by its answer,
// and not everything that answers is one.
func TestRunningByMode(t *testing.T) {
	for mode, want := range map[string]string{
		"iptables": `http://127.0.0.1:10249/proxyMode answers "iptables"`,
		"ipvs":     `http://127.0.0.1:10249/proxyMode answers "ipvs"`,
		"nftables": `http://127.0.0.1:10249/proxyMode answers "nftables"`,
		"kernel":   "",
	} {
		t.Run(mode, func(t *testing.T) {
			lab, err := netlab.New()
			must(t, err)
			t.Cleanup(func() { must(t, lab.Close()) })
			// An HTTP client dials from any thread of the process, and all of them are here.
			host := lab.Gateway()
			start(t, host, exec.Command(self(t, "k3s"), mode))
			if found := running(t, host); strings.TrimSpace(found) != want {
				t.Errorf("found %q, want %q", found, want)
			}
		})
	}
}
