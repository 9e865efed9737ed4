package kubeproxy_test

import (
	"context"
	"fmt"
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

// startAs starts a copy of this test's program under a name.
func startAs(t *testing.T, host *netlab.Host, name string) *exec.Cmd {
	t.Helper()
	self, err := os.ReadFile("/proc/self/exe")
	must(t, err)
	path := filepath.Join(t.TempDir(), name)
	must(t, os.WriteFile(path, self, 0o755))
	return start(t, host, exec.Command(path))
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
	cmd := startAs(t, elsewhere, "kube-proxy")
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
			server := exec.Command("python3", "-uc", `
import http.server, sys
class H(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/proxyMode" else 404)
        self.end_headers()
        self.wfile.write(sys.argv[1].encode())
    def log_message(self, *args): pass
s = http.server.HTTPServer(("127.0.0.1", 10249), H)
print("up")
s.serve_forever()`, mode)
			start(t, host, server)
			if found := running(t, host); strings.TrimSpace(found) != want {
				t.Errorf("found %q, want %q", found, want)
			}
		})
	}
}
