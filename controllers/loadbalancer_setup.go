package controllers

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/util/workqueue"
	cloudprovider "k8s.io/cloud-provider"
	servicehelper "k8s.io/cloud-provider/service/helpers"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"fairlead.dev/fairlead/api/config/v1alpha1"
	"fairlead.dev/fairlead/internal/cloud"
	"fairlead.dev/fairlead/internal/cloud/baremetal"
)

const (
	// loadBalancerWorkers is how many Services are served at once. Most of the time
	// goes into two or three writes to the API server, a few milliseconds each.
	loadBalancerWorkers = 10

	// minRetry and maxRetry bound the backoff per Service after a provider's error:
	// those of upstream's service controller (minRetryDelay, maxRetryDelay).
	minRetry = 5 * time.Second
	maxRetry = 5 * time.Minute
)

// setupLoadBalancer registers the controllers of the LoadBalancer lifecycle. A nil
// provider means the one that cfg names; no name switches all of it off.
func setupLoadBalancer(mgr ctrl.Manager, cfg v1alpha1.LoadBalancer, provider cloudprovider.Interface) error {
	if cfg.Provider == "" {
		return nil
	}
	pools := &poolQueue{}
	if provider == nil {
		var err error
		if provider, err = builtin(mgr, cfg, pools).Provider(cfg.Provider); err != nil {
			return err
		}
	}
	r := &LoadBalancerReconciler{
		Client: mgr.GetClient(), Events: mgr.GetEventRecorder("fairlead-loadbalancer"),
		Provider: provider.ProviderName(), Class: cfg.Class, Default: cfg.Default,
	}
	if err := r.SetupWithManager(mgr, provider); err != nil {
		return fmt.Errorf("setting up the LoadBalancer controller: %w", err)
	}
	reporter, ok := provider.(PoolReporter)
	if !ok {
		return nil
	}
	if err := (&AddressPoolReconciler{Client: mgr.GetClient(), Reporter: reporter}).SetupWithManager(mgr, pools); err != nil {
		return fmt.Errorf("setting up the AddressPool controller: %w", err)
	}
	return nil
}

// builtin returns the providers that come with fairlead.
func builtin(mgr ctrl.Manager, cfg v1alpha1.LoadBalancer, pools *poolQueue) cloud.Registry {
	return cloud.Registry{
		baremetal.Name: func() (cloudprovider.Interface, error) {
			wants := func(svc *corev1.Service) bool { return wantsLoadBalancer(svc, cfg.Class, cfg.Default) }
			return baremetal.New(mgr.GetCache(), wants, pools.changed), nil
		},
	}
}

// SetupWithManager registers the controller, which starts provider before its first
// reconciliation and takes r.Balancer from it then.
func (r *LoadBalancerReconciler) SetupWithManager(mgr ctrl.Manager, provider cloudprovider.Interface) error {
	if err := registerMetrics(statusRepairs); err != nil {
		return err
	}
	started := make(chan error, 1)
	start := func(ctx context.Context, again func(types.NamespacedName)) {
		balancer, err := cloud.Start(ctx, provider, mgr.GetConfig(), again)
		r.Balancer = balancer // nobody reads it before WaitForSync has heard of it
		started <- err
	}
	return ctrl.NewControllerManagedBy(mgr).Named("loadbalancer").
		For(&corev1.Service{}, builder.WithPredicates(r.concerns())).
		Watches(&corev1.Node{}, r.nodeHandler()).
		WatchesRawSource(&providerSource{start: start, started: started, memory: &r.memory}).
		WithOptions(controller.Options{
			MaxConcurrentReconciles: loadBalancerWorkers,
			RateLimiter:             jittered{workqueue.NewTypedItemExponentialFailureRateLimiter[reconcile.Request](minRetry, maxRetry)},
		}).
		Complete(r)
}

// concerns drops what changes nothing for us. Without it each condition that we write
// after an error would bring the Service back at once, past its backoff.
func (r *LoadBalancerReconciler) concerns() predicate.Predicate {
	ours := func(svc *corev1.Service) bool { return r.wants(svc) || r.holds(svc) }
	return predicate.Funcs{
		CreateFunc: func(e event.CreateEvent) bool {
			svc, ok := e.Object.(*corev1.Service)
			return ok && ours(svc)
		},
		UpdateFunc: func(e event.UpdateEvent) bool {
			old, ok := e.ObjectOld.(*corev1.Service)
			now, ok2 := e.ObjectNew.(*corev1.Service)
			if !ok || !ok2 || !ours(old) && !ours(now) {
				return false
			}
			return !sameDemand(old, now) || r.disclaimed(old, now) || r.drifted(old, now) ||
				old.DeletionTimestamp.IsZero() != now.DeletionTimestamp.IsZero()
		},
		DeleteFunc: func(e event.DeleteEvent) bool {
			svc, ok := e.Object.(*corev1.Service)
			return ok && ours(svc)
		},
	}
}

// disclaimed says whether somebody took away what marks a Service as ours: without it we
// would not know after a restart what there is to clean up.
func (r *LoadBalancerReconciler) disclaimed(old, now *corev1.Service) bool {
	return servicehelper.HasLBFinalizer(old) && !servicehelper.HasLBFinalizer(now) || r.claimed(old) && !r.claimed(now)
}

// drifted says whether the status of now, which was old, may have to be put back. What we
// wrote as the condition is what memory says, so that writing it brings nothing back.
func (r *LoadBalancerReconciler) drifted(old, now *corev1.Service) bool {
	if !r.active(now) {
		return false
	}
	if !sameIngress(old.Status.LoadBalancer.Ingress, now.Status.LoadBalancer.Ingress) {
		return true
	}
	last, ok := r.memory.get(client.ObjectKeyFromObject(now))
	if !ok || last.elsewhere || sameCondition(assigned(old), assigned(now)) {
		return false
	}
	shown := last.shown()
	return !sameCondition(assigned(now), &shown)
}

// providerSource is the source of a controller that hosts a cloud provider: the
// controller does nothing before the provider has started, and looks again at the
// Services that the provider names.
type providerSource struct {
	start   func(ctx context.Context, again func(types.NamespacedName))
	started <-chan error
	memory  *memory
}

// Start implements source.Source.
func (s *providerSource) Start(ctx context.Context, queue workqueue.TypedRateLimitingInterface[reconcile.Request]) error {
	go s.start(ctx, func(key types.NamespacedName) {
		s.memory.askAgain(key)
		queue.Add(reconcile.Request{NamespacedName: key})
	})
	return nil
}

// WaitForSync implements source.SyncingSource.
func (s *providerSource) WaitForSync(ctx context.Context) error {
	select {
	case err := <-s.started:
		return err
	case <-ctx.Done():
		return fmt.Errorf("waiting for the cloud provider to start: %w", ctx.Err())
	}
}

// String names the source in logs.
func (s *providerSource) String() string { return "cloud provider" }

var _ source.SyncingSource = (*providerSource)(nil)

// jittered spreads the retries of Services that failed together.
type jittered struct {
	workqueue.TypedRateLimiter[reconcile.Request]
}

// When adds up to a tenth to the delay.
func (j jittered) When(req reconcile.Request) time.Duration {
	return wait.Jitter(j.TypedRateLimiter.When(req), 0.1)
}
