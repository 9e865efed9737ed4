package e2e_test

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"fairlead.dev/fairlead/test/cluster"
	"fairlead.dev/fairlead/test/netlab"
)

// takeOverTime is the promise: the next agent works within 2 s of the end of the last.
const takeOverTime = 2 * time.Second

const nodeConfig = "apiVersion: config.fairlead.dev/v1alpha1\nkind: NodeConfiguration\n"

// keepAsking asks an address of the Service all the time, with a new connection each,
// until the function that it returns is called, which fails the test where one failed.
func (w *nodeWorld) keepAsking(t *testing.T, from *netlab.Host, at netip.AddrPort) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	asked, failed := 0, 0
	var last error
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			asked++
			if err := w.ask(from, at); err != nil {
				failed, last = failed+1, err
			}
		}
	}()
	return func() {
		t.Helper()
		cancel()
		<-done
		if failed > 0 || asked == 0 {
			t.Errorf("%d of %d connections failed, the last with %v", failed, asked, last)
		}
	}
}

// TestTwoAgents: started by mistake, or by a rolling update with surge. The second
// waits and writes nothing, and takes over when the first is killed.
func TestTwoAgents(t *testing.T) {
	w := newNodeWorld(t)
	first := w.run(t, "--node-name", "node1")
	w.answers(t)
	// Without the guard, which goes with the first and comes with the second.
	rules := func() string {
		return cluster.NFT(t, &w.node.Host, "-a", "list table ip fairlead") + cluster.NFT(t, &w.node.Host, "-a", "list table ip6 fairlead")
	}
	before := rules()
	stop := w.keepAsking(t, w.client, w.byNodePort)

	second := w.run(t, "--node-name", "node1")
	second.Says("Another fairlead node runs in this network namespace")
	second.Says(fmt.Sprintf(`"pid":%d`, first.PID()))
	if after := rules(); after != before {
		t.Errorf("the second wrote rules:\n%s\nbecame\n%s", before, after)
	}

	first.Stop(syscall.SIGKILL)
	start := time.Now()
	cluster.Eventually(t, func() error {
		ctx, cancel := timeout()
		defer cancel()
		_, err := w.node.Output(ctx, "curl", "-sf", "http://127.0.0.1:10256/healthz")
		return err
	})
	if took := time.Since(start); took > takeOverTime {
		t.Errorf("it took %s", took)
	}
	second.Says("taking over")
	if after := rules(); after != before {
		t.Errorf("the rules were made anew:\n%s\nbecame\n%s", before, after)
	}
	stop()
	w.takeEndpoint(t)
	cluster.Eventually(t, func() error { return w.refused(w.vip) })

	t.Run("one that waits ends when it is told to", func(t *testing.T) {
		third := w.run(t, "--node-name", "node1")
		third.Says("Another fairlead node runs")
		third.Stop(syscall.SIGTERM)
		if code := third.Wait(); code != 0 {
			t.Errorf("exit code %d, want 0", code)
		}
	})
}

// startKubeProxy starts a process of that name, until the end of the test.
func startKubeProxy(t *testing.T, host *netlab.Host) *exec.Cmd {
	t.Helper()
	sleep, err := exec.LookPath("sleep")
	must(t, err)
	program, err := os.ReadFile(sleep)
	must(t, err)
	path := filepath.Join(t.TempDir(), "kube-proxy")
	must(t, os.WriteFile(path, program, 0o755))
	cmd := exec.Command(path, "1000")
	must(t, host.Start(cmd))
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have been already
		_ = cmd.Wait()         // killed
	})
	return cmd
}

// TestBesideKubeProxy: an agent refuses to start beside a live kube-proxy of the same
// network namespace, unless told to.
func TestBesideKubeProxy(t *testing.T) {
	w := newNodeWorld(t)
	other := startKubeProxy(t, w.client)
	agent := w.run(t, "--node-name", "node1")
	w.answers(t)
	agent.Stop(syscall.SIGTERM)
	must(t, other.Process.Kill())

	proxy := startKubeProxy(t, &w.node.Host)
	agent = w.run(t, "--node-name", "node1")
	if code := agent.Wait(); code != 1 {
		t.Errorf("exit code %d, want 1", code)
	}
	for _, want := range []string{fmt.Sprint("process ", proxy.Process.Pid), "remove it", "kubeProxy.allowRunning"} {
		agent.Says(want)
	}
	clean := w.run(t, "--cleanup=all")
	if code := clean.Wait(); code != 1 {
		t.Errorf("--cleanup=all beside a live one: exit code %d, want 1", code)
	}
	clean.Says(fmt.Sprintf("a kube-proxy runs on this node (process %d)", proxy.Process.Pid))

	config := cluster.Write(t, "node.yaml", nodeConfig+"kubeProxy: {allowRunning: true}\n")
	agent = w.run(t, "--node-name", "node1", "--config", config)
	agent.Says("A kube-proxy runs on this node too")
	w.takeEndpoint(t)
	cluster.Eventually(t, func() error { return w.refused(w.vip) })
}

// cleanup runs `fairlead node` with arguments and without an API server, and returns its
// exit code and output.
func (w *nodeWorld) cleanup(t *testing.T, args ...string) (int, string) {
	t.Helper()
	p := w.Start(t, &w.node.Host, append([]string{"node"}, args...)...)
	return p.Wait(), strings.TrimSpace(p.Output.String())
}

func TestCleanup(t *testing.T) {
	w := newNodeWorld(t)
	agent := w.run(t, "--node-name", "node1")
	w.answers(t)
	for _, args := range []string{"--cleanup", "--cleanup=kube-proxy", "--cleanup=all"} {
		code, out := w.cleanup(t, args)
		if want := fmt.Sprintf("another fairlead node runs in this network namespace, process %d", agent.PID()); code != 1 || !strings.Contains(out, want) {
			t.Errorf("%s beside an agent: exit code %d, want 1 and %q in %q", args, code, want, out)
		}
	}
	must(t, w.ask(&w.node.Host, w.vip))
	agent.Stop(syscall.SIGKILL)

	for _, tc := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"--cleanup=ipvs"}, 1, "Error: --cleanup=ipvs: must be fairlead, kube-proxy or all"},
		{[]string{"--cleanup", "all"}, 1, `Error: --cleanup all: a value needs "=", as in --cleanup=all`},
		{[]string{"--cleanup=kube-proxy"}, 0, "nothing to remove"},
		{[]string{"--cleanup"}, 0, "removed table ip fairlead\nremoved table ip6 fairlead"},
		{[]string{"--cleanup"}, 0, "nothing to remove"},
		{[]string{"--cleanup=all"}, 0, "nothing to remove"},
	} {
		if code, out := w.cleanup(t, tc.args...); code != tc.code || out != tc.want {
			t.Errorf("%v: exit code %d, want %d, and it said %q, want %q", tc.args, code, tc.code, out, tc.want)
		}
	}
	if out := cluster.NFT(t, &w.node.Host, "list", "tables"); out != "" {
		t.Errorf("left are %s", out)
	}
}

// runKubeProxy starts kube-proxy itself on the node, and waits until it serves.
func (w *nodeWorld) runKubeProxy(t *testing.T, mode string) *exec.Cmd {
	t.Helper()
	binary := filepath.Join("..", "..", "bin", "controlplane", "kube-proxy") // made by `make control-plane`
	cmd := exec.Command(binary, "--proxy-mode="+mode, "--kubeconfig="+w.Kubeconfig, "--hostname-override=node1",
		"--cluster-cidr=10.244.0.0/16,fd00:10:244::/48", "--conntrack-max-per-core=0")
	var log strings.Builder
	cmd.Stdout, cmd.Stderr = &log, &log
	must(t, w.node.Start(cmd))
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have been already
		_ = cmd.Wait()         // killed
		if t.Failed() {
			t.Logf("kube-proxy in mode %s said:\n%s", mode, log.String())
		}
	})
	w.answers(t)
	return cmd
}

// TestMigration goes from kube-proxy to fairlead and back. The rules of the kube-proxy
// that is gone serve until ours do, and go then, without a connection lost.
func TestMigration(t *testing.T) {
	for mode, removed := range map[string]string{
		"iptables": "table ip nat of iptables-nft",
		"nftables": "table ip kube-proxy of nftables",
	} {
		t.Run(mode, func(t *testing.T) {
			w := newNodeWorld(t)
			proxy := w.runKubeProxy(t, mode)
			refused := w.run(t, "--node-name", "node1")
			if code := refused.Wait(); code != 1 {
				t.Errorf("beside kube-proxy: exit code %d, want 1", code)
			}
			refused.Says(fmt.Sprint("process ", proxy.Process.Pid))
			must(t, proxy.Process.Kill())
			_ = proxy.Wait() // killed

			stop := w.keepAsking(t, w.client, w.byNodePort)
			config := cluster.Write(t, "node.yaml", nodeConfig+"kubeProxy: {removeLeftovers: true}\n")
			agent := w.run(t, "--node-name", "node1", "--config", config)
			agent.Says("Removed what kube-proxy left")
			agent.Says(removed)
			w.answers(t)
			stop()
			// KUBE-FIREWALL is the kubelet's, of which kube-proxy makes a copy.
			out := strings.ReplaceAll(cluster.NFT(t, &w.node.Host, "list", "ruleset"), "KUBE-FIREWALL", "")
			if strings.Contains(out, "KUBE-") || strings.Contains(out, "kube-proxy") {
				t.Errorf("of kube-proxy's there is left\n%s", out)
			}

			agent.Stop(syscall.SIGTERM)
			w.runKubeProxy(t, mode)
			if code, out := w.cleanup(t, "--cleanup"); code != 0 || out != "removed table ip fairlead\nremoved table ip6 fairlead" {
				t.Errorf("--cleanup: exit code %d, %s", code, out)
			}
			w.answers(t)
		})
	}
}
