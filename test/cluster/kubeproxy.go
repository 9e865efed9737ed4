package cluster

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"fairlead.dev/fairlead/test/netlab"
)

// PodCIDRs are what all pods of a lab are in, one range of each family.
var PodCIDRs = []string{"10.244.0.0/16", "fd00:10:244::/48"}

// kubeProxyConfig is its file (kubeproxy.config.k8s.io/v1alpha1). What is left out has
// kube-proxy's defaults. Connection tracking is left as it is, since its sysctls belong to
// the machine; so does the score for the out-of-memory killer.
const kubeProxyConfig = `apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
hostnameOverride: %q
clusterCIDR: %q
nodePortAddresses: [primary]
clientConnection: {kubeconfig: %q}
nftables: {minSyncPeriod: %s}
oomScoreAdj: 0
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
healthzBindAddress: "0.0.0.0:10256"
metricsBindAddress: "127.0.0.1:10249"
`

// DefaultMinSyncPeriod is how long kube-proxy waits at least between two writes. 0 in its
// file means this too.
const DefaultMinSyncPeriod = time.Second

// StartKubeProxy runs kube-proxy on a node, in the mode nftables. It is killed at the end
// of the test. It serves node ports on the node's primary addresses, as fairlead does.
func (c *Cluster) StartKubeProxy(t testing.TB, node *netlab.Node, minSyncPeriod time.Duration) *Process {
	t.Helper()
	config := Write(t, "kube-proxy.yaml", fmt.Sprintf(kubeProxyConfig,
		node.Name, strings.Join(PodCIDRs, ","), c.Kubeconfig, minSyncPeriod))
	return start(t, &node.Host, exec.Command(kubeProxy(t), "--config", config))
}

// kubeProxy returns the path of the binary, which no release of envtest's has.
func kubeProxy(t testing.TB) string {
	t.Helper()
	for _, dir := range []string{assets(), built} {
		if path := filepath.Join(dir, "kube-proxy"); exists(path) {
			return path
		}
	}
	t.Fatal("no kube-proxy: run `make control-plane`")
	return ""
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
