// Package cloud hosts any implementation of k8s.io/cloud-provider's Interface.
package cloud

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/types"
	cloudprovider "k8s.io/cloud-provider"
)

// Pending is the error of a LoadBalancer that cannot give a Service what it wants as
// things are. It is a state, not a failure: it becomes a condition, and nothing is
// tried again before the Service changes or the provider asks for it through Looker.
//
// A status returned together with it is what the Service has meanwhile.
type Pending struct {
	Reason  string // CamelCase, the reason of the condition
	Message string // a sentence for the user, without a full stop
}

// Error implements error.
func (p *Pending) Error() string { return p.Message }

// Looker is implemented by providers that know when a Service should be looked at again.
type Looker interface {
	// Look loads what the provider has to know before its first call and returns.
	// From then on and until ctx ends it calls again with every Service for which
	// EnsureLoadBalancer would now return something else. again does not block.
	Look(ctx context.Context, again func(types.NamespacedName)) error
}

// Registry makes providers by name.
type Registry map[string]func() (cloudprovider.Interface, error)

// Provider makes the provider called name: one of r, or one that was registered with
// cloudprovider.RegisterCloudProvider by a package that main imports. Those get no
// configuration file.
func (r Registry) Provider(name string) (cloudprovider.Interface, error) {
	if build, ok := r[name]; ok {
		return build()
	}
	provider, err := cloudprovider.GetCloudProvider(name, nil)
	switch {
	case err != nil:
		return nil, fmt.Errorf("making the cloud provider %q: %w", name, err)
	case provider == nil:
		known := strings.Join(slices.Sorted(maps.Keys(r)), ", ")
		return nil, fmt.Errorf("loadBalancer.provider: %q is no registered cloud provider; known are: %s", name, known)
	}
	return provider, nil
}

// loadBalancer returns the LoadBalancer of provider, which is initialized: some make it
// only then. It refuses what a cloud-controller-manager refuses: a provider without one,
// and one that needs a cluster ID and has none.
func loadBalancer(provider cloudprovider.Interface) (cloudprovider.LoadBalancer, error) {
	balancer, ok := provider.LoadBalancer()
	if !ok {
		return nil, fmt.Errorf("the cloud provider %q has no load balancers", provider.ProviderName())
	}
	if !provider.HasClusterID() {
		return nil, fmt.Errorf("the cloud provider %q needs a cluster ID and found none", provider.ProviderName())
	}
	return balancer, nil
}
