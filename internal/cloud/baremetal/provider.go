// Package baremetal is a cloud provider without a cloud: it gives Services addresses out
// of AddressPools, and leaves announcing them to others.
package baremetal

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	cloudprovider "k8s.io/cloud-provider"
	"sigs.k8s.io/controller-runtime/pkg/cache"

	"fairlead.dev/fairlead/api/v1alpha1"
	"fairlead.dev/fairlead/internal/cloud"
)

// Name is the name of the provider in the configuration.
const Name = "baremetal"

// errNotLooked means that a caller did not Look first. Without a full listing there is
// no telling which addresses are free.
var errNotLooked = errors.New("the bare-metal provider has not listed pools and Services yet")

// Provider implements cloudprovider.Interface, its LoadBalancer, and cloud.Looker.
type Provider struct {
	cache cache.Cache
	// wants says whether a Service is to have addresses from here.
	wants func(*corev1.Service) bool
	// poolChanged is called with the name of a pool whose report has changed.
	poolChanged func(name string)

	mu     sync.Mutex
	ledger *ledger // built by Look, from a full listing and from nothing else
	again  func(types.NamespacedName)
}

// New returns a Provider that reads Services and AddressPools from c. wants says which
// Services are to have addresses from it; poolChanged is called with the name of every
// pool for which Report returns something else than before, and must not block.
func New(c cache.Cache, wants func(*corev1.Service) bool, poolChanged func(name string)) *Provider {
	return &Provider{cache: c, wants: wants, poolChanged: poolChanged}
}

// Report returns what there is to say about the pool called name, and false where the
// provider does not know it (yet).
func (p *Provider) Report(name string) (Report, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ledger == nil {
		return Report{}, false
	}
	found, ok := p.ledger.pool(name)
	if !ok {
		return Report{}, false
	}
	return found.report(), true
}

// change runs f on the ledger, and then tells everyone whom it concerns.
func (p *Provider) change(f func(*ledger)) error {
	p.mu.Lock()
	if p.ledger == nil {
		p.mu.Unlock()
		return errNotLooked
	}
	f(p.ledger)
	look := p.ledger.look
	pools := slices.Sorted(maps.Keys(p.ledger.touched))
	p.ledger.look = nil
	clear(p.ledger.touched)
	again := p.again
	p.mu.Unlock()
	for _, name := range look {
		again(name)
	}
	for _, name := range pools {
		p.poolChanged(name)
	}
	return nil
}

// EnsureLoadBalancer implements cloudprovider.LoadBalancer. The error is a
// *cloud.Pending where svc has less than it wants; the status is what it has.
func (p *Provider) EnsureLoadBalancer(_ context.Context, _ string, svc *corev1.Service, _ []*corev1.Node) (*corev1.LoadBalancerStatus, error) {
	request, pending := Decode(svc)
	var addrs []netip.Addr
	err := p.change(func(l *ledger) {
		if pending != nil {
			addrs = l.refuse(request)
			return
		}
		addrs, pending = l.assign(request)
	})
	if err != nil {
		return nil, err
	}
	if pending != nil {
		return status(addrs), pending
	}
	return status(addrs), nil
}

// EnsureLoadBalancerDeleted implements cloudprovider.LoadBalancer. The addresses of svc
// are free when it returns.
func (p *Provider) EnsureLoadBalancerDeleted(_ context.Context, _ string, svc *corev1.Service) error {
	return p.change(func(l *ledger) { l.release(OwnerOf(svc)) })
}

// GetLoadBalancer implements cloudprovider.LoadBalancer.
func (p *Provider) GetLoadBalancer(_ context.Context, _ string, svc *corev1.Service) (*corev1.LoadBalancerStatus, bool, error) {
	var addrs []netip.Addr
	err := p.change(func(l *ledger) { addrs = l.owners.Held(OwnerOf(svc)) })
	return status(addrs), len(addrs) > 0, err
}

// GetLoadBalancerName implements cloudprovider.LoadBalancer.
func (p *Provider) GetLoadBalancerName(_ context.Context, _ string, svc *corev1.Service) string {
	return cloudprovider.DefaultLoadBalancerName(svc)
}

// UpdateLoadBalancer implements cloudprovider.LoadBalancer. Which nodes there are
// concerns who announces the addresses, which is not done here.
func (p *Provider) UpdateLoadBalancer(context.Context, string, *corev1.Service, []*corev1.Node) error {
	return cloudprovider.ImplementedElsewhere
}

func status(addrs []netip.Addr) *corev1.LoadBalancerStatus {
	out := &corev1.LoadBalancerStatus{}
	for _, a := range addrs {
		out.Ingress = append(out.Ingress, corev1.LoadBalancerIngress{IP: a.String()})
	}
	return out
}

// Initialize implements cloudprovider.Interface. What there is to start, Look starts.
func (p *Provider) Initialize(cloudprovider.ControllerClientBuilder, <-chan struct{}) {}

// LoadBalancer implements cloudprovider.Interface.
func (p *Provider) LoadBalancer() (cloudprovider.LoadBalancer, bool) { return p, true }

// Instances implements cloudprovider.Interface.
func (p *Provider) Instances() (cloudprovider.Instances, bool) { return nil, false }

// InstancesV2 implements cloudprovider.Interface.
func (p *Provider) InstancesV2() (cloudprovider.InstancesV2, bool) { return nil, false }

// Zones implements cloudprovider.Interface.
func (p *Provider) Zones() (cloudprovider.Zones, bool) { return nil, false }

// Clusters implements cloudprovider.Interface.
func (p *Provider) Clusters() (cloudprovider.Clusters, bool) { return nil, false }

// Routes implements cloudprovider.Interface.
func (p *Provider) Routes() (cloudprovider.Routes, bool) { return nil, false }

// ProviderName implements cloudprovider.Interface.
func (p *Provider) ProviderName() string { return Name }

// HasClusterID implements cloudprovider.Interface. No resource outside the cluster has
// to be told from another cluster's.
func (p *Provider) HasClusterID() bool { return true }

// holds says whether what is in the status of svc is from here, or is to be. It may be of
// another class than those we want: one that we served before, or that another fairlead
// did. Two at the same time need pools of their own: what the other assigns after our
// first listing is not followed.
func (p *Provider) holds(svc *corev1.Service) bool {
	return p.wants(svc) || svc.Annotations[v1alpha1.AnnotationProvider] == Name
}

var (
	_ cloudprovider.Interface    = (*Provider)(nil)
	_ cloudprovider.LoadBalancer = (*Provider)(nil)
	_ cloud.Looker               = (*Provider)(nil)
)
