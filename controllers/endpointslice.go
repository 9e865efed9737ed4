package controllers

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"

	"fairlead.dev/fairlead/api/config/v1alpha1"
	"fairlead.dev/fairlead/internal/endpointslice"
)

const (
	// endpointSliceManager is the name of kube-controller-manager's EndpointSlice
	// controller: in its place, what it wrote is ours, and conformance tests ask for it.
	endpointSliceManager = "endpointslice-controller.k8s.io"

	// endpointSliceWorkers is kube-controller-manager's default of
	// --concurrent-service-endpoint-syncs.
	endpointSliceWorkers = 5

	// endpointSliceRetry is the wait after another writer came first. What it wrote is
	// read before, so one retry does; the wait bounds a fight to 20 writes a second.
	endpointSliceRetry = 50 * time.Millisecond

	// Operations, as in the metrics.
	opCreate = "create"
	opUpdate = "update"
	opDelete = "delete"

	// Indices of the cache.
	podNodeIndex      = "endpointslice.node"
	sliceServiceIndex = "endpointslice.service"
)

// errOtherWriter means that a slice is not what the plan was made from. It has been
// read anew: plan again.
var errOtherWriter = errors.New("another writer came first")

// EndpointSliceReconciler keeps the EndpointSlices of each Service true.
type EndpointSliceReconciler struct {
	// Client reads from a cache.
	Client client.Client
	// Live reads from the API server: only a slice that another writer changed.
	Live  client.Reader
	Clock clock.PassiveClock
	// MaxEndpointsPerSlice is 1 to 1000.
	MaxEndpointsPerSlice int
	// Observe compares, and writes nothing.
	Observe bool

	selectors   endpointslice.Selectors
	writes      sliceWrites
	differences sliceDifferences
}

func newEndpointSliceReconciler(mgr ctrl.Manager, cfg v1alpha1.Endpoints) *EndpointSliceReconciler {
	return &EndpointSliceReconciler{
		Client:               mgr.GetClient(),
		Live:                 mgr.GetAPIReader(),
		Clock:                clock.RealClock{},
		MaxEndpointsPerSlice: int(cfg.MaxEndpointsPerSlice),
		Observe:              cfg.Mode == v1alpha1.EndpointsObserve,
	}
}

// Services, pods and nodes are read from the cache alone, so `get` is not needed there.
// The finalizers are for clusters with the admission plugin
// OwnerReferencesPermissionEnforcement: our owner references block the owner's deletion,
// as those of kube-controller-manager do.
// +kubebuilder:rbac:groups="",resources=services;pods;nodes,verbs=list;watch
// +kubebuilder:rbac:groups="",resources=services/finalizers,verbs=update
// +kubebuilder:rbac:groups=discovery.k8s.io,resources=endpointslices,verbs=get;list;watch;create;update;delete

// SetupWithManager registers the controller, its indices and its metrics.
func (r *EndpointSliceReconciler) SetupWithManager(mgr ctrl.Manager) error {
	if err := registerMetrics(endpointSliceChanges, endpointSliceSyncDuration, endpointSliceDifferences); err != nil {
		return err
	}
	// The manager stops its caches, so this context has nothing to end.
	ctx := context.Background()
	indexer := mgr.GetFieldIndexer()
	if err := indexer.IndexField(ctx, &corev1.Pod{}, podNodeIndex, indexPodByNode); err != nil {
		return fmt.Errorf("indexing pods by node: %w", err)
	}
	if err := indexer.IndexField(ctx, &discoveryv1.EndpointSlice{}, sliceServiceIndex, indexSliceByService); err != nil {
		return fmt.Errorf("indexing EndpointSlices by Service: %w", err)
	}
	return ctrl.NewControllerManagedBy(mgr).
		Named("endpointslice").
		Watches(&corev1.Service{}, r.serviceHandler()).
		Watches(&corev1.Pod{}, r.podHandler()).
		Watches(&corev1.Node{}, r.nodeHandler()).
		Watches(&discoveryv1.EndpointSlice{}, r.sliceHandler()).
		WithOptions(controller.Options{MaxConcurrentReconciles: endpointSliceWorkers}).
		Complete(r)
}

// Reconcile implements reconcile.Reconciler for one Service.
func (r *EndpointSliceReconciler) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	start := r.Clock.Now()
	defer func() { endpointSliceSyncDuration.Observe(r.Clock.Since(start).Seconds()) }()

	var svc corev1.Service
	if err := r.Client.Get(ctx, req.NamespacedName, &svc); err != nil {
		if apierrors.IsNotFound(err) { // the slices are the garbage collector's
			r.writes.forget(req.NamespacedName)
			if r.Observe {
				r.differences.set(req.NamespacedName, endpointslice.Plan{})
			}
		}
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	plan, err := r.plan(ctx, &svc)
	if err != nil {
		return ctrl.Result{}, err
	}
	if r.Observe {
		r.differences.set(req.NamespacedName, plan)
		return ctrl.Result{}, nil
	}
	err = r.carryOut(ctx, req.NamespacedName, plan)
	if errors.Is(err, errOtherWriter) {
		return ctrl.Result{RequeueAfter: endpointSliceRetry}, nil
	}
	return ctrl.Result{}, err
}

// plan reads what the slices of svc depend on and returns what has to be done.
func (r *EndpointSliceReconciler) plan(ctx context.Context, svc *corev1.Service) (endpointslice.Plan, error) {
	in := endpointslice.Input{Service: svc}
	var err error
	if in.Slices, err = r.slices(ctx, client.ObjectKeyFromObject(svc)); err != nil {
		return endpointslice.Plan{}, err
	}
	if endpointslice.Fills(svc) {
		if in.Pods, err = r.pods(ctx, client.InNamespace(svc.Namespace), client.MatchingLabels(svc.Spec.Selector)); err != nil {
			return endpointslice.Plan{}, err
		}
		if in.Nodes, err = r.nodes(ctx, in.Pods); err != nil {
			return endpointslice.Plan{}, err
		}
	}
	return endpointslice.Compute(in, endpointslice.Options{
		ManagedBy: endpointSliceManager, MaxEndpointsPerSlice: r.MaxEndpointsPerSlice,
	}), nil
}

// slices returns the slices of a Service, those newer than the cache included. They are
// the cache's own: not to be changed.
func (r *EndpointSliceReconciler) slices(ctx context.Context, svc types.NamespacedName) ([]*discoveryv1.EndpointSlice, error) {
	var list discoveryv1.EndpointSliceList
	if err := r.Client.List(ctx, &list, client.InNamespace(svc.Namespace),
		client.MatchingFields{sliceServiceIndex: svc.Name}, client.UnsafeDisableDeepCopy); err != nil {
		return nil, fmt.Errorf("listing EndpointSlices: %w", err)
	}
	cached := make([]*discoveryv1.EndpointSlice, 0, len(list.Items))
	for i := range list.Items {
		cached = append(cached, &list.Items[i])
	}
	return r.writes.overlay(svc, cached, r.Clock.Now()), nil
}

// pods returns pods of the cache, which are not to be changed.
func (r *EndpointSliceReconciler) pods(ctx context.Context, opts ...client.ListOption) ([]*corev1.Pod, error) {
	var list corev1.PodList
	if err := r.Client.List(ctx, &list, append(opts, client.UnsafeDisableDeepCopy)...); err != nil {
		return nil, fmt.Errorf("listing pods: %w", err)
	}
	pods := make([]*corev1.Pod, 0, len(list.Items))
	for i := range list.Items {
		pods = append(pods, &list.Items[i])
	}
	return pods, nil
}

// nodes returns those Nodes of pods that exist, by name; not to be changed.
func (r *EndpointSliceReconciler) nodes(ctx context.Context, pods []*corev1.Pod) (map[string]*corev1.Node, error) {
	nodes := map[string]*corev1.Node{}
	for _, pod := range pods {
		name := pod.Spec.NodeName
		if _, ok := nodes[name]; ok || name == "" {
			continue
		}
		node := &corev1.Node{}
		switch err := r.Client.Get(ctx, types.NamespacedName{Name: name}, node, client.UnsafeDisableDeepCopy); {
		case apierrors.IsNotFound(err): // a nil Node is an unknown one
			nodes[name] = nil
		case err != nil:
			return nil, fmt.Errorf("getting node %s: %w", name, err)
		default:
			nodes[name] = node
		}
	}
	return nodes, nil
}

// carryOut writes plan, up to the first error: what a failed create was to hold must
// not be deleted elsewhere. It returns errOtherWriter if the plan is out of date.
func (r *EndpointSliceReconciler) carryOut(ctx context.Context, svc types.NamespacedName, plan endpointslice.Plan) error {
	for _, step := range []struct {
		operation string
		slices    []*discoveryv1.EndpointSlice
	}{{opCreate, plan.Create}, {opUpdate, plan.Update}, {opDelete, plan.Delete}} {
		for _, slice := range step.slices {
			switch err := r.write(ctx, step.operation, slice); {
			case err == nil:
				r.remember(svc, step.operation, slice)
			case step.operation == opCreate && namespaceEnds(err):
				return nil
			case apierrors.IsConflict(err), apierrors.IsAlreadyExists(err), apierrors.IsNotFound(err):
				return r.readAgain(ctx, svc, slice)
			default:
				return fmt.Errorf("%s of EndpointSlice %s: %w", step.operation, client.ObjectKeyFromObject(slice), err)
			}
		}
	}
	return nil
}

// write does one operation. Update and delete are refused by the API server if slice is
// not the newest version.
func (r *EndpointSliceReconciler) write(ctx context.Context, operation string, slice *discoveryv1.EndpointSlice) error {
	switch operation {
	case opCreate:
		return r.Client.Create(ctx, slice)
	case opUpdate:
		return r.Client.Update(ctx, slice)
	default:
		return r.Client.Delete(ctx, slice, client.Preconditions{UID: &slice.UID, ResourceVersion: &slice.ResourceVersion})
	}
}

// remember takes note of a write that succeeded.
func (r *EndpointSliceReconciler) remember(svc types.NamespacedName, operation string, slice *discoveryv1.EndpointSlice) {
	endpointSliceChanges.WithLabelValues(operation).Inc()
	if operation == opDelete {
		r.writes.gone(svc, slice, r.Clock.Now())
	} else {
		r.writes.wrote(svc, slice, r.Clock.Now())
	}
}

// namespaceEnds says whether a create failed because its namespace is being deleted, or
// is gone. The Service goes with it: there is nothing to repair.
func namespaceEnds(err error) bool {
	return apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) || apierrors.IsNotFound(err)
}

// readAgain reads and remembers what a slice is that turned out to be something else
// than planned for. It returns errOtherWriter if that succeeds.
func (r *EndpointSliceReconciler) readAgain(ctx context.Context, svc types.NamespacedName, slice *discoveryv1.EndpointSlice) error {
	live := &discoveryv1.EndpointSlice{}
	switch err := r.Live.Get(ctx, client.ObjectKeyFromObject(slice), live); {
	case apierrors.IsNotFound(err):
		r.writes.gone(svc, slice, r.Clock.Now())
	case err != nil:
		return fmt.Errorf("reading EndpointSlice %s again: %w", client.ObjectKeyFromObject(slice), err)
	default:
		r.writes.found(svc, live, r.Clock.Now())
	}
	return errOtherWriter
}
