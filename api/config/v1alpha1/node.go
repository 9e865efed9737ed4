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
	// MasqueradeAll masquerades all traffic to ClusterIPs, that of pods too.
	MasqueradeAll bool `json:"masqueradeAll"`
	// NodePortAddresses are CIDRs; node ports are served on the node's addresses
	// inside them. Defaults to ["primary"].
	NodePortAddresses []string `json:"nodePortAddresses"`
	// Counters counts packets and connections of each Service, for metrics and
	// `fairlead node rules`. It costs a lookup for each packet.
	Counters  bool      `json:"counters"`
	Conntrack Conntrack `json:"conntrack"`
	KubeProxy KubeProxy `json:"kubeProxy"`
	Healthz   Server    `json:"healthz"`
	Metrics   Server    `json:"metrics"`
}

// LocalTraffic says how traffic of pods is told from other traffic: by at most one of
// its fields. What reaches a ClusterIP from elsewhere is masqueraded, and pods reach
// addresses of externalTrafficPolicy Local at endpoints of the whole cluster. With none,
// only the node's own traffic to ClusterIPs is masqueraded.
type LocalTraffic struct {
	// ClusterCIDRs are the ranges of all pods of the cluster.
	ClusterCIDRs []string `json:"clusterCIDRs,omitempty"`
	// NodeCIDR tells the pods of this node by spec.podCIDRs of its Node.
	NodeCIDR bool `json:"nodeCIDR,omitempty"`
	// Bridge is the name of the bridge that all pods of this node are on.
	Bridge string `json:"bridge,omitempty"`
	// InterfacePrefix begins the names of all interfaces that lead to pods.
	InterfacePrefix string `json:"interfacePrefix,omitempty"`
}

// Conntrack are settings of the kernel's connection tracking. They are raised to these
// values, never lowered; 0 leaves one as it is. Defaults are kube-proxy's.
type Conntrack struct {
	// MaxPerCore is how many connections are tracked, for each processor. Defaults to
	// 32768.
	MaxPerCore int32 `json:"maxPerCore"`
	// Min is the least number of connections tracked, whatever MaxPerCore says.
	// Defaults to 131072.
	Min int32 `json:"min"`
	// TCPEstablishedTimeout is for how long an idle connection is remembered. Defaults
	// to 24h.
	TCPEstablishedTimeout metav1.Duration `json:"tcpEstablishedTimeout"`
	// TCPCloseWaitTimeout is the same for one that the other side closed. Defaults to 1h.
	TCPCloseWaitTimeout metav1.Duration `json:"tcpCloseWaitTimeout"`
	// TCPBeLiberal lets packets outside a connection's window pass.
	TCPBeLiberal bool `json:"tcpBeLiberal"`
	// UDPTimeout is for how long a flow without an answer is remembered, UDPStreamTimeout
	// one with answers. Both default to 0.
	UDPTimeout       metav1.Duration `json:"udpTimeout"`
	UDPStreamTimeout metav1.Duration `json:"udpStreamTimeout"`
}

// KubeProxy says what to do about kube-proxy, which does the same work.
type KubeProxy struct {
	// AllowRunning lets fairlead start beside a kube-proxy that runs on this node. Healthz
	// and Metrics need other addresses than kube-proxy's then.
	AllowRunning bool `json:"allowRunning"`
	// RemoveLeftovers removes the rules that a kube-proxy of any mode left on this node,
	// once ours are in place.
	RemoveLeftovers bool `json:"removeLeftovers"`
}
