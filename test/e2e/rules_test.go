package e2e_test

import (
	"fmt"
	"strings"
	"syscall"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"fairlead.dev/fairlead/test/cluster"
	"fairlead.dev/fairlead/test/netlab"
)

// TestNodeRules: what a packet meets is said in words on the node, with and without an
// agent and an API server.
func TestNodeRules(t *testing.T) {
	w := newNodeWorld(t)
	says := func(host *netlab.Host, code int, args []string, want ...string) {
		t.Helper()
		p := w.Start(t, host, append([]string{"node", "rules"}, args...)...)
		if got := p.Wait(); got != code {
			t.Errorf("%v: exit code %d, want %d:\n%s", args, got, code, p.Output)
		}
		for _, text := range want {
			if !strings.Contains(p.Output.String(), text) {
				t.Errorf("%v: no %q in:\n%s", args, text, p.Output)
			}
		}
	}
	node := &w.node.Host
	says(node, 1, nil, "no rules of fairlead are installed here", "is `fairlead node` running")

	pod := "web-1"
	slice, err := w.Client.DiscoveryV1().EndpointSlices("default").Get(t.Context(), "web-1", metav1.GetOptions{})
	must(t, err)
	slice.Endpoints[0].TargetRef = &corev1.ObjectReference{Kind: "Pod", Namespace: "default", Name: pod}
	_, err = w.Client.DiscoveryV1().EndpointSlices("default").Update(t.Context(), slice, metav1.UpdateOptions{})
	must(t, err)
	agent := w.run(t, "--node-name", "node1")
	w.answers(t)

	endpoint := slice.Endpoints[0].Addresses[0] + ":8080"
	api := []string{"--kubeconfig", w.Kubeconfig, "--node-name", "node1"}
	says(node, 0, nil, "ADDRESS", w.vip.String()+"/TCP", w.byNodePort.String()+"/TCP", "node port")
	says(node, 0, []string{w.vip.String()}, w.vip.String()+"/TCP: ClusterIP", "from this node: to the one endpoint, masqueraded", endpoint, "chain random_1")
	says(node, 0, []string{fmt.Sprintf("%s:81/UDP", w.vip.Addr())}, "refused with ICMP port unreachable: the ClusterIP has no such port")
	says(node, 0, []string{"192.0.2.1:80"}, "untouched")
	says(node, 0, append(api, "web"), "Service default/web", endpoint+"  pod web-1", w.byNodePort.String(), "The kernel has what the API says.")
	says(node, 1, append(api, "service/nosuch"), `reading Service default/nosuch`, "not found")
	says(node, 1, append(api, "10.96.0.10"), `"10.96.0.10" has no port`, "VIP:PORT")

	// Without the agent the kernel stays behind.
	agent.Stop(syscall.SIGTERM)
	w.takeEndpoint(t)
	says(node, 0, append(api, "default/web"), "The kernel differs from what the API says", "endpoint "+endpoint, "is in the kernel, not in the API")
	says(node, 0, []string{w.vip.String()}, endpoint)

	cluster.NFT(t, node, "add rule ip fairlead cluster accept")
	says(node, 0, []string{w.vip.String()}, "Warning: chains or rules are not as this fairlead makes them")
	says(w.client, 1, []string{w.vip.String()}, "no rules of fairlead are installed here")

	ctx, cancel := timeout()
	defer cancel()
	out, err := node.Output(ctx, "setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", w.Binary, "node", "rules")
	if err == nil || !strings.Contains(string(out)+err.Error(), "CAP_NET_ADMIN is missing") {
		t.Errorf("without the right: %v: %s", err, out)
	}
}
