package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// ControllerKind is the kind of the file that `fairlead controller --config` reads.
const ControllerKind = "ControllerConfiguration"

// EndpointsMode says what the endpoint controllers do with EndpointSlices.
type EndpointsMode string

const (
	// EndpointsOwn writes EndpointSlices in the place of kube-controller-manager.
	EndpointsOwn EndpointsMode = "Own"
	// EndpointsObserve computes and compares, and writes nothing.
	EndpointsObserve EndpointsMode = "Observe"
	// EndpointsOff does not look at pods at all.
	EndpointsOff EndpointsMode = "Off"
	// EndpointsAuto is the default. It is the same as Own today; finding out by
	// itself whether another controller fills slices is still to come.
	EndpointsAuto EndpointsMode = "Auto"
)

// ControllerConfiguration configures `fairlead controller`.
type ControllerConfiguration struct {
	metav1.TypeMeta `json:",inline"`

	Endpoints      Endpoints      `json:"endpoints"`
	LoadBalancer   LoadBalancer   `json:"loadBalancer"`
	LeaderElection LeaderElection `json:"leaderElection"`
	Metrics        Server         `json:"metrics"`
	HealthProbe    Server         `json:"healthProbe"`
}

// Endpoints configures the EndpointSlice controller.
type Endpoints struct {
	// Mode is Own, Observe, Off or Auto. Defaults to Auto.
	Mode EndpointsMode `json:"mode"`
	// MaxEndpointsPerSlice is 1 to 1000, 100 by default: the bounds and the default
	// of kube-controller-manager's --max-endpoints-per-slice.
	MaxEndpointsPerSlice int32 `json:"maxEndpointsPerSlice"`
}

// LoadBalancer configures the LoadBalancer lifecycle.
type LoadBalancer struct {
	// Provider is the name of a registered cloud provider. Defaults to
	// "baremetal"; empty switches the LoadBalancer lifecycle off.
	Provider string `json:"provider"`
	// Class is the spec.loadBalancerClass of the Services that are ours.
	// Defaults to fairlead.dev/baremetal.
	Class string `json:"class"`
	// Default says whether Services without a loadBalancerClass are ours too.
	// Defaults to true.
	Default bool `json:"default"`
}

// LeaderElection configures which of several replicas acts.
type LeaderElection struct {
	// Enabled defaults to true.
	Enabled bool `json:"enabled"`
	// Namespace of the Lease. Defaults to the pod's own, outside of a cluster to
	// kube-system.
	Namespace string `json:"namespace,omitempty"`
}

// Server configures one HTTP listener.
type Server struct {
	// BindAddress is host:port or :port; "0" is off.
	BindAddress string `json:"bindAddress"`
}
