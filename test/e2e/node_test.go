package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/envtest"

	"fairlead.dev/fairlead/test/cluster"
	"fairlead.dev/fairlead/test/netlab"
)

// repairTime is the promise: our table deleted by hand is back within 2 s.
const repairTime = 2 * time.Second

// nodeWorld is a cluster with one node that runs `fairlead node`, and a Service whose
// one endpoint answers.
type nodeWorld struct {
	*cluster.Cluster
	node            *netlab.Node
	vip, byNodePort netip.AddrPort
	client          *netlab.Host
}

func newNodeWorld(t *testing.T) *nodeWorld {
	c := cluster.Share(t)
	w := &nodeWorld{Cluster: c, node: c.AddNode(t, "node1")}
	pod, err := w.node.AddPod("web-1")
	must(t, err)
	echo, err := netlab.StartEcho(pod, "web-1", 8080)
	must(t, err)
	t.Cleanup(func() { must(t, echo.Close()) })
	w.client, err = c.Lab.AddClient("client")
	must(t, err)
	ip, nodePort := c.AddService(t, "web", pod.IPv4.String())
	w.vip = netip.AddrPortFrom(netip.MustParseAddr(ip), 80)
	w.byNodePort = netip.AddrPortFrom(w.node.IPv4, uint16(nodePort))
	return w
}

func (w *nodeWorld) run(t *testing.T, args ...string) *cluster.Process {
	return w.Start(t, &w.node.Host, append([]string{"node", "--kubeconfig", w.Kubeconfig}, args...)...)
}

// answers waits until the Service answers from the node itself and from outside.
func (w *nodeWorld) answers(t *testing.T) {
	t.Helper()
	// Asked in short, since a packet that no rule takes up yet goes unanswered.
	cluster.Eventually(t, func() error { return w.askFor(200*time.Millisecond, &w.node.Host, w.vip) })
	cluster.Eventually(t, func() error { return w.askFor(200*time.Millisecond, w.client, w.byNodePort) })
}

func (w *nodeWorld) ask(from *netlab.Host, at netip.AddrPort) error {
	return w.askFor(time.Second, from, at)
}

func (w *nodeWorld) askFor(timeout time.Duration, from *netlab.Host, at netip.AddrPort) error {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	name, _, err := from.HTTP(ctx, at)
	if err == nil && name != "web-1" {
		err = fmt.Errorf("%q answered", name)
	}
	return err
}

func TestNode(t *testing.T) {
	w := newNodeWorld(t)
	agent := w.run(t, "--node-name", "node1")
	w.answers(t)
	ctx := t.Context()

	t.Run("nft lists the rules", func(t *testing.T) {
		if out := cluster.NFT(t, &w.node.Host, "list", "ruleset"); !strings.Contains(out, w.vip.Addr().String()) {
			t.Errorf("no %s in:\n%s", w.vip.Addr(), out)
		}
	})

	t.Run("healthz and metrics answer", func(t *testing.T) {
		for url, want := range map[string]string{
			"http://127.0.0.1:10256/healthz": `"nodeEligible":true`,
			"http://127.0.0.1:10256/livez":   `"lastUpdated"`,
			"http://127.0.0.1:10249/metrics": "fairlead_dataplane_services 2", // kubernetes is one
		} {
			out, err := w.node.Output(ctx, "curl", "-sf", url)
			if err != nil || !strings.Contains(string(out), want) {
				t.Errorf("%s: %v, no %s in %s", url, err, want, out)
			}
		}
	})

	t.Run("a deleted table is back in time", func(t *testing.T) {
		cluster.NFT(t, &w.node.Host, "delete table ip fairlead; delete table ip6 fairlead")
		start := time.Now()
		w.answers(t)
		if took := time.Since(start); took > repairTime {
			t.Errorf("it took %s", took)
		}
		agent.Says("Somebody else changed the rules")
	})

	t.Run("a node address that comes and goes, where CIDRs pick it", func(t *testing.T) {
		agent.Stop(syscall.SIGTERM)
		config := cluster.Write(t, "node.yaml", "apiVersion: config.fairlead.dev/v1alpha1\nkind: NodeConfiguration\nnodePortAddresses: [172.18.0.0/24]\n")
		agent = w.run(t, "--node-name", "node1", "--config", config)
		w.answers(t)
		extra := netip.MustParsePrefix("172.18.0.77/24")
		at := netip.AddrPortFrom(extra.Addr(), w.byNodePort.Port())
		must(t, w.node.AddAddr(extra))
		cluster.Eventually(t, func() error { return w.ask(w.client, at) })
		must(t, w.node.DelAddr(extra))
		cluster.Eventually(t, func() error {
			if out := cluster.NFT(t, &w.node.Host, "list", "set", "ip", "fairlead", "node_addresses"); strings.Contains(out, "172.18.0.77") {
				return fmt.Errorf("still there: %s", out)
			}
			return nil
		})
	})

	t.Run("rules stay while it is down, and a restart keeps them", func(t *testing.T) {
		agent.Stop(syscall.SIGKILL)
		must(t, w.ask(&w.node.Host, w.vip))
		before := cluster.NFT(t, &w.node.Host, "-a", "list", "chain", "ip", "fairlead", "prerouting")
		w.takeEndpoint(t)
		agent = w.run(t, "--node-name", "node1", "--config", cluster.Write(t, "node.yaml",
			"apiVersion: config.fairlead.dev/v1alpha1\nkind: NodeConfiguration\nnodePortAddresses: [172.18.0.0/24]\n"))
		cluster.Eventually(t, func() error { return w.refused(w.vip) })
		if after := cluster.NFT(t, &w.node.Host, "-a", "list", "chain", "ip", "fairlead", "prerouting"); after != before {
			t.Errorf("the rules were made anew:\n%s\nbecame\n%s", before, after)
		}
	})

	t.Run("no API server: the rules stay, and it is said once", func(t *testing.T) {
		agent.Stop(syscall.SIGTERM)
		other := w.Start(t, &w.node.Host, "node", "--node-name", "node1", "--kubeconfig", unreachable(t), "--config",
			cluster.Write(t, "node.yaml", "apiVersion: config.fairlead.dev/v1alpha1\nkind: NodeConfiguration\nhealthz: {bindAddress: \"0\"}\nmetrics: {bindAddress: \"0\"}\n"))
		other.Says("API server unreachable")
		if out := cluster.NFT(t, &w.node.Host, "list", "ruleset"); !strings.Contains(out, w.vip.Addr().String()) {
			t.Errorf("the rules are gone:\n%s", out)
		}
		other.Stop(syscall.SIGTERM)
		if n := strings.Count(other.Output.String(), "unreachable"); n != 1 {
			t.Errorf("said %d times:\n%s", n, other.Output)
		}
	})
}

// TestNodeWithoutRights: what the API server forbids is said in one line for each
// resource, and the rules that are there stay.
func TestNodeWithoutRights(t *testing.T) {
	w := newNodeWorld(t)
	agent := w.run(t, "--node-name", "node1")
	w.answers(t)
	agent.Stop(syscall.SIGTERM)

	w.Kubeconfig = w.KubeconfigOf(t, envtest.User{Name: "nobody"})
	agent = w.run(t, "--node-name", "node1")
	for _, resource := range []string{"services", "endpointslices", "nodes", "servicecidrs"} {
		agent.Says(`is forbidden: User \"nobody\" cannot watch resource \"` + resource + `\"`)
	}
	must(t, w.ask(&w.node.Host, w.vip))
	agent.Stop(syscall.SIGTERM)
	if lines := strings.Count(strings.TrimSpace(agent.Output.String()), "\n") + 1; lines != 4 {
		t.Errorf("%d lines, want one for each resource:\n%s", lines, agent.Output)
	}
}

// takeEndpoint takes the endpoint of the Service away.
func (w *nodeWorld) takeEndpoint(t *testing.T) {
	t.Helper()
	_, err := w.Client.DiscoveryV1().EndpointSlices("default").Update(t.Context(), cluster.Slice("web", nil), metav1.UpdateOptions{})
	must(t, err)
}

// refused returns nil when the Service refuses, as it does without endpoints.
func (w *nodeWorld) refused(at netip.AddrPort) error {
	switch err := w.ask(&w.node.Host, at); {
	case err == nil:
		return errors.New("got an answer, want connection refused")
	case errors.Is(err, syscall.ECONNREFUSED):
		return nil
	default:
		return err
	}
}

// TestNodeThatDoesNotExist: it says so, and serves.
func TestNodeThatDoesNotExist(t *testing.T) {
	w := newNodeWorld(t)
	agent := w.run(t, "--node-name", "nobody")
	agent.Says("Node not found in the API, is --node-name right?")
	w.answers(t)
}
