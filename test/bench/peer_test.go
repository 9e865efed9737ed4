package bench_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"fairlead.dev/fairlead/test/cluster"
	"fairlead.dev/fairlead/test/netlab"
)

// peer is a program that makes rules out of Services.
type peer struct {
	name  string
	start func(testing.TB, *cluster.Cluster, *netlab.Node) *cluster.Process
	// synced is what it says when its caches are full, once for each of syncs.
	synced string
	syncs  int
	// node is the index of the node it runs on.
	node int
}

// unpaced is for kube-proxy's minSyncPeriod, where 0 means the default.
const unpaced = time.Millisecond

var peers = []peer{
	{name: "fairlead", start: startFairlead, synced: "Caches have synced", syncs: 1},
	{name: "kube-proxy", start: kubeProxy(cluster.DefaultMinSyncPeriod), synced: "Caches are synced", syncs: 4, node: 1},
	{name: "kube-proxy unpaced", start: kubeProxy(unpaced), synced: "Caches are synced", syncs: 4, node: 1},
}

func startFairlead(t testing.TB, c *cluster.Cluster, node *netlab.Node) *cluster.Process {
	t.Helper()
	config := cluster.Write(t, "node.yaml", fmt.Sprintf("apiVersion: config.fairlead.dev/v1alpha1\nkind: NodeConfiguration\n"+
		"localTraffic: {clusterCIDRs: [%s]}\n", strings.Join(cluster.PodCIDRs, ", ")))
	return c.Start(t, &node.Host, "node", "--kubeconfig", c.Kubeconfig, "--node-name", node.Name, "--config", config)
}

func kubeProxy(minSyncPeriod time.Duration) func(testing.TB, *cluster.Cluster, *netlab.Node) *cluster.Process {
	return func(t testing.TB, c *cluster.Cluster, node *netlab.Node) *cluster.Process {
		t.Helper()
		return c.StartKubeProxy(t, node, minSyncPeriod)
	}
}
