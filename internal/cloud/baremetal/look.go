package baremetal

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	toolscache "k8s.io/client-go/tools/cache"
	servicehelper "k8s.io/cloud-provider/service/helpers"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"fairlead.dev/fairlead/api/v1alpha1"
)

// Look implements cloud.Looker: it builds the ledger from a full listing of pools and
// Services, and follows both from then on.
func (p *Provider) Look(ctx context.Context, again func(types.NamespacedName)) error {
	// Handlers before the listing: what happens in between is then either in the
	// listing or waits for the lock, because a cache changes before it tells.
	if err := p.follow(ctx, &v1alpha1.AddressPool{}, p.poolHandler(ctx)); err != nil {
		return err
	}
	if err := p.follow(ctx, &corev1.Service{}, p.serviceHandler(ctx)); err != nil {
		return err
	}
	if err := p.load(ctx, again); err != nil {
		return err
	}
	return p.change(func(*ledger) {}) // tells about the pools
}

// follow adds handler to the informer of obj's type, which has synced when it returns.
func (p *Provider) follow(ctx context.Context, obj client.Object, handler toolscache.ResourceEventHandler) error {
	informer, err := p.cache.GetInformer(ctx, obj)
	if err != nil {
		return fmt.Errorf("getting the informer of %T: %w", obj, err)
	}
	if _, err := informer.AddEventHandler(handler); err != nil {
		return fmt.Errorf("following %T: %w", obj, err)
	}
	return nil
}

func (p *Provider) load(ctx context.Context, again func(types.NamespacedName)) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	var services corev1.ServiceList
	if err := p.cache.List(ctx, &services, client.UnsafeDisableDeepCopy); err != nil {
		return fmt.Errorf("listing Services: %w", err)
	}
	pools, err := p.listPools(ctx)
	if err != nil {
		return err
	}
	holdings, requests := p.survey(services.Items)
	p.ledger, p.again = newLedger(pools, holdings, requests), again
	return nil
}

func (p *Provider) listPools(ctx context.Context) ([]*pool, error) {
	var list v1alpha1.AddressPoolList
	if err := p.cache.List(ctx, &list, client.UnsafeDisableDeepCopy); err != nil {
		return nil, fmt.Errorf("listing AddressPools: %w", err)
	}
	return decodePools(list.Items), nil
}

// survey returns what Services have and what they want. Of two that have the same address
// one in use comes before a leftover, whose address may have been freed and given to the
// other since, and then the older before the younger, because it had it first.
func (p *Provider) survey(services []corev1.Service) (holdings []holding, requests []Request) {
	byAge := slices.Clone(services)
	slices.SortFunc(byAge, func(a, b corev1.Service) int {
		return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time),
			cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	var leftovers []holding
	for i := range byAge {
		svc := &byAge[i]
		if !p.holds(svc) || released(svc) {
			continue
		}
		used := p.wants(svc) && svc.DeletionTimestamp.IsZero()
		to := &leftovers
		if used {
			to = &holdings
		}
		for _, ingress := range svc.Status.LoadBalancer.Ingress {
			if addr, err := netip.ParseAddr(ingress.IP); err == nil {
				*to = append(*to, holding{addr: addr, owner: OwnerOf(svc)})
			}
		}
		if request, pending := Decode(svc); pending == nil && used {
			requests = append(requests, request)
		}
	}
	return append(holdings, leftovers...), requests
}

// released says whether the addresses of svc were freed while somebody else's finalizer
// keeps it: what its status shows may be another's by now.
func released(svc *corev1.Service) bool {
	return !svc.DeletionTimestamp.IsZero() && !servicehelper.HasLBFinalizer(svc)
}

// poolHandler lists all pools again after each change of one: overlaps concern several,
// and pools change rarely.
func (p *Provider) poolHandler(ctx context.Context) toolscache.ResourceEventHandler {
	changed := func() {
		pools, err := p.listPools(ctx)
		if err == nil {
			err = p.change(func(l *ledger) { l.setPools(pools) })
		}
		if err != nil {
			log.FromContext(ctx).V(1).Info("Could not follow a change of AddressPools", "reason", err.Error())
		}
	}
	return toolscache.ResourceEventHandlerDetailedFuncs{
		AddFunc: func(_ any, initial bool) {
			if !initial { // load lists those
				changed()
			}
		},
		UpdateFunc: func(before, after any) {
			old, ok := before.(*v1alpha1.AddressPool)
			now, ok2 := after.(*v1alpha1.AddressPool)
			if ok && ok2 && (old.Generation != now.Generation || old.UID != now.UID) {
				changed()
			}
		},
		DeleteFunc: func(any) { changed() },
	}
}

// serviceHandler releases what was assigned to a Service that went away before anything
// was ensured for it. All others are released by EnsureLoadBalancerDeleted.
func (p *Provider) serviceHandler(ctx context.Context) toolscache.ResourceEventHandler {
	release := func(svc *corev1.Service) {
		err := p.change(func(l *ledger) {
			// Under the lock, because an event tells what was: the Service may have come
			// back since and have been given its addresses again.
			if p.without(ctx, svc) {
				l.release(OwnerOf(svc))
			}
		})
		if err != nil {
			log.FromContext(ctx).V(1).Info("Could not release the addresses of a Service", "reason", err.Error())
		}
	}
	return toolscache.ResourceEventHandlerFuncs{
		UpdateFunc: func(before, after any) {
			old, ok := before.(*corev1.Service)
			now, ok2 := after.(*corev1.Service)
			if ok && ok2 && p.holds(old) && (!p.holds(now) || old.UID != now.UID) {
				release(old)
			}
		},
		DeleteFunc: func(obj any) {
			if gone, ok := obj.(toolscache.DeletedFinalStateUnknown); ok {
				obj = gone.Obj
			}
			if svc, ok := obj.(*corev1.Service); ok && p.holds(svc) {
				release(svc)
			}
		},
	}
}

// without says whether svc is gone, replaced by another of its name, or no longer ours. It
// says no where the cache cannot tell: EnsureLoadBalancerDeleted comes in any case that
// the controller has heard of.
func (p *Provider) without(ctx context.Context, svc *corev1.Service) bool {
	now := &corev1.Service{}
	err := p.cache.Get(ctx, client.ObjectKeyFromObject(svc), now)
	if err != nil {
		return apierrors.IsNotFound(err)
	}
	return now.UID != svc.UID || !p.holds(now)
}
