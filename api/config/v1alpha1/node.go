package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// NodeKind is the kind of the file that `fairlead node --config` reads.
const NodeKind = "NodeConfiguration"

// NodePortPrimary as the only entry of nodePortAddresses stands for the node's
// primary addresses, the first InternalIP of each family in the Node's status.
const NodePortPrimary = "primary"

// NodeConfiguration configures `fairlead node`.
type NodeConfiguration struct {
	metav1.TypeMeta `json:",inline"`

	LocalTraffic LocalTraffic `json:"localTraffic"`
	// NodePortAddresses are CIDRs; node ports are served on the node's addresses
	// inside them. Defaults to ["primary"].
	NodePortAddresses []string `json:"nodePortAddresses"`
	Healthz           Server   `json:"healthz"`
	Metrics           Server   `json:"metrics"`
}

// LocalTraffic says how traffic of pods is told from other traffic.
type LocalTraffic struct {
	// ClusterCIDRs are the ranges of all pods of the cluster. What reaches a
	// ClusterIP from elsewhere is masqueraded. With none, only the node's own
	// traffic to ClusterIPs is.
	ClusterCIDRs []string `json:"clusterCIDRs,omitempty"`
}
