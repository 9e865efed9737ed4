package cloud

import (
	"context"
	"fmt"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	cloudprovider "k8s.io/cloud-provider"
)

// Start initializes provider, in the order of a cloud-controller-manager: Initialize,
// SetInformers where it wants informers, LoadBalancer, and then Look where it has that. It
// returns the LoadBalancer when it may be called. What it started ends with ctx.
func Start(ctx context.Context, provider cloudprovider.Interface, cfg *rest.Config, again func(types.NamespacedName)) (cloudprovider.LoadBalancer, error) {
	clients := clientBuilder{cfg}
	provider.Initialize(clients, ctx.Done())
	if user, ok := provider.(cloudprovider.InformerUser); ok {
		client, err := clients.Client("cloud-provider-informers")
		if err != nil {
			return nil, err
		}
		// No resync: a provider that polls has to say so itself.
		factory := informers.NewSharedInformerFactory(client, 0)
		user.SetInformers(factory)
		factory.Start(ctx.Done())
		for kind, synced := range factory.WaitForCacheSync(ctx.Done()) {
			if !synced {
				return nil, fmt.Errorf("waiting for the %s informer of the cloud provider: %w", kind, ctx.Err())
			}
		}
	}
	balancer, err := loadBalancer(provider)
	if err != nil {
		return nil, err
	}
	if looker, ok := provider.(Looker); ok {
		return balancer, looker.Look(ctx, again)
	}
	return balancer, nil
}

// clientBuilder implements cloudprovider.ControllerClientBuilder.
type clientBuilder struct{ config *rest.Config }

func (b clientBuilder) Config(name string) (*rest.Config, error) {
	return rest.AddUserAgent(rest.CopyConfig(b.config), name), nil
}

func (b clientBuilder) Client(name string) (kubernetes.Interface, error) {
	cfg, err := b.Config(name)
	if err != nil {
		return nil, err
	}
	client, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return nil, fmt.Errorf("making a client for the cloud provider: %w", err)
	}
	return client, nil
}

// ConfigOrDie panics as the interface promises.
func (b clientBuilder) ConfigOrDie(name string) *rest.Config {
	cfg, err := b.Config(name)
	if err != nil {
		panic(err)
	}
	return cfg
}

// ClientOrDie panics as the interface promises.
func (b clientBuilder) ClientOrDie(name string) kubernetes.Interface {
	client, err := b.Client(name)
	if err != nil {
		panic(err)
	}
	return client
}
