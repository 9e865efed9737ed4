package controllers

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	fairleadv1alpha1 "fairlead.dev/fairlead/api/v1alpha1"
	"fairlead.dev/fairlead/internal/cloud/baremetal"
)

// poolBatch is how long changes of a pool are gathered before its status is written:
// ten thousand Services in one pool are then some tens of writes and not ten thousand,
// and nobody watching a pool notices.
const poolBatch = 250 * time.Millisecond

// faultsShown keeps 256 faults of some 200 bytes within the 32768 bytes that the API
// server takes as the message of a condition.
const faultsShown = 100

// poolAddresses is set from the status that was written last.
var poolAddresses = prometheus.NewGaugeVec(prometheus.GaugeOpts{
	Name: "fairlead_pool_addresses",
	Help: "Addresses of an AddressPool by state: assigned to Services, or available.",
}, []string{"pool", "family", "state"})

// PoolReporter is the part of the bare-metal provider that the AddressPool controller needs.
type PoolReporter interface {
	// Report returns what there is to say about a pool, false where it is not known.
	Report(name string) (baremetal.Report, bool)
}

// +kubebuilder:rbac:groups=fairlead.dev,resources=addresspools,verbs=get;list;watch
// +kubebuilder:rbac:groups=fairlead.dev,resources=addresspools/status,verbs=patch

// AddressPoolReconciler writes the status of AddressPools.
type AddressPoolReconciler struct {
	Client   client.Client
	Reporter PoolReporter
}

// Reconcile implements reconcile.Reconciler.
func (r *AddressPoolReconciler) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	var pool fairleadv1alpha1.AddressPool
	if err := r.Client.Get(ctx, req.NamespacedName, &pool); err != nil {
		if apierrors.IsNotFound(err) {
			poolAddresses.DeletePartialMatch(prometheus.Labels{"pool": req.Name})
		}
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	report, ok := r.Reporter.Report(pool.Name)
	if !ok || report.Generation != pool.Generation {
		return ctrl.Result{}, nil // poolQueue brings it back when the provider has seen it
	}
	measure(pool.Name, report)
	before := pool.DeepCopy()
	describe(&pool, report)
	if equality.Semantic.DeepEqual(before.Status, pool.Status) {
		return ctrl.Result{}, nil
	}
	return outcome(writing("patching the status", r.Client.Status().Patch(ctx, &pool, optimistic(before))))
}

// describe writes report into the status of pool, in memory.
func describe(pool *fairleadv1alpha1.AddressPool, report baremetal.Report) {
	pool.Status.ObservedGeneration = report.Generation
	pool.Status.Capacity = report.Capacity
	pool.Status.Assigned = report.Assigned
	pool.Status.Available = report.Available

	conflict := metav1.Condition{
		Type: fairleadv1alpha1.ConditionConflict, Status: metav1.ConditionFalse,
		Reason: fairleadv1alpha1.ReasonNoOverlap, Message: "no older AddressPool has any of the addresses",
	}
	ready := metav1.Condition{
		Type: fairleadv1alpha1.ConditionReady, Status: metav1.ConditionTrue,
		Reason: fairleadv1alpha1.ReasonReady, Message: "all of spec.addresses is in use",
	}
	if len(report.Overlaps) > 0 {
		conflict.Status, conflict.Reason = metav1.ConditionTrue, fairleadv1alpha1.ReasonOverlap
		conflict.Message = fmt.Sprintf("older AddressPools have some of the addresses, so nothing new is assigned from here: %s",
			strings.Join(report.Overlaps, ", "))
		ready.Status, ready.Reason, ready.Message = metav1.ConditionFalse, conflict.Reason, conflict.Message
	}
	if len(report.Faults) > 0 {
		ready.Status, ready.Reason = metav1.ConditionFalse, fairleadv1alpha1.ReasonInvalidAddresses
		ready.Message = strings.Join(report.Faults[:min(len(report.Faults), faultsShown)], "; ")
		if more := len(report.Faults) - faultsShown; more > 0 {
			ready.Message += fmt.Sprintf("; and %d more", more)
		}
	}
	for _, c := range []metav1.Condition{ready, conflict} {
		c.ObservedGeneration = report.Generation
		apimeta.SetStatusCondition(&pool.Status.Conditions, c)
	}
}

func measure(pool string, report baremetal.Report) {
	set := func(family, state string, n int64) {
		poolAddresses.WithLabelValues(pool, family, state).Set(float64(n))
	}
	set("IPv4", "assigned", report.Assigned.IPv4)
	set("IPv6", "assigned", report.Assigned.IPv6)
	set("IPv4", "available", report.Available.IPv4)
	set("IPv6", "available", report.Available.IPv6)
}

// SetupWithManager registers the controller.
func (r *AddressPoolReconciler) SetupWithManager(mgr ctrl.Manager, pools *poolQueue) error {
	if err := registerMetrics(poolAddresses); err != nil {
		return err
	}
	return ctrl.NewControllerManagedBy(mgr).Named("addresspool").
		For(&fairleadv1alpha1.AddressPool{}, builder.WithPredicates(predicate.GenerationChangedPredicate{})).
		WatchesRawSource(source.Func(pools.start)).
		Complete(r)
}

// registerMetrics registers collectors that are there once per process, however many
// managers the process has.
func registerMetrics(collectors ...prometheus.Collector) error {
	for _, c := range collectors {
		var twice prometheus.AlreadyRegisteredError
		if err := metrics.Registry.Register(c); err != nil && !errors.As(err, &twice) {
			return fmt.Errorf("registering metrics: %w", err)
		}
	}
	return nil
}

// poolQueue brings pools back whose report has changed. What changes before the
// controller has started is seen by its first listing.
type poolQueue struct {
	mu    sync.Mutex
	queue workqueue.TypedRateLimitingInterface[reconcile.Request]
}

func (q *poolQueue) start(_ context.Context, queue workqueue.TypedRateLimitingInterface[reconcile.Request]) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.queue = queue
	return nil
}

func (q *poolQueue) changed(name string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.queue != nil {
		q.queue.AddAfter(reconcile.Request{NamespacedName: types.NamespacedName{Name: name}}, poolBatch)
	}
}
