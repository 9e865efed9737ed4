package controllers

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	cloudprovider "k8s.io/cloud-provider"
	cloudapi "k8s.io/cloud-provider/api"
	servicehelper "k8s.io/cloud-provider/service/helpers"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	fairleadv1alpha1 "fairlead.dev/fairlead/api/v1alpha1"
	"fairlead.dev/fairlead/internal/cloud"
)

const (
	// clusterName is what providers get as the name of the cluster: the default of
	// a cloud-controller-manager's --cluster-name.
	clusterName = "kubernetes"

	// conflictDelay lets the cache catch up after it was behind what we patched: some
	// ten times what an event takes from the API server to us.
	conflictDelay = 200 * time.Millisecond
)

// +kubebuilder:rbac:groups="",resources=services,verbs=get;list;watch;patch
// +kubebuilder:rbac:groups="",resources=services/status,verbs=patch
// +kubebuilder:rbac:groups="",resources=nodes,verbs=get;list;watch
// +kubebuilder:rbac:groups=events.k8s.io,resources=events,verbs=create;patch

// LoadBalancerReconciler gives Services of type LoadBalancer what a cloud provider has for
// them, and takes it back when they want it no longer.
type LoadBalancerReconciler struct {
	Client client.Client
	// Balancer is the provider's. SetupWithManager takes it when the provider has started.
	Balancer cloudprovider.LoadBalancer
	Events   events.EventRecorder
	// Provider is the name of the provider. It is written to the Services it serves,
	// with Class, and neither may be empty.
	Provider string
	// Class is the spec.loadBalancerClass to serve, and Default says whether
	// Services without one are served too.
	Class   string
	Default bool

	memory memory
	nodes  nodeSet
}

// Reconcile implements reconcile.Reconciler.
func (r *LoadBalancerReconciler) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	svc := &corev1.Service{}
	gone := false
	if err := r.Client.Get(ctx, req.NamespacedName, svc); apierrors.IsNotFound(err) {
		gone = true
	} else if err != nil {
		return ctrl.Result{}, err
	}
	if old, ok := r.memory.get(req.NamespacedName); ok && (gone || old.given.UID != svc.UID) {
		// It went without our finalizer, and maybe came back as another one.
		if err := r.Balancer.EnsureLoadBalancerDeleted(ctx, clusterName, old.given); ignoreElsewhere(err) != nil {
			return outcome(fmt.Errorf("deleting the load balancer of a Service that is gone: %w", err))
		}
		r.memory.forget(req.NamespacedName)
	}
	switch {
	case gone:
	case r.active(svc):
		if err := r.ensure(ctx, svc); err != nil {
			return outcome(err)
		}
		return r.catchUp(ctx, req.NamespacedName)
	case r.holds(svc):
		return outcome(r.release(ctx, svc))
	}
	r.memory.forget(req.NamespacedName) // what the provider said about it since
	return ctrl.Result{}, nil
}

// writeError is the error of a patch of ours. Only there does the status of an API error
// speak of the Service at hand: a provider's NotFound may be about anything.
type writeError struct {
	what string
	err  error
}

// Error implements error.
func (e *writeError) Error() string { return e.what + ": " + e.err.Error() }

// Unwrap returns the API server's answer.
func (e *writeError) Unwrap() error { return e.err }

// writing says what was written where err is not nil.
func writing(what string, err error) error {
	if err == nil {
		return nil
	}
	return &writeError{what, err}
}

// outcome turns the error of a reconciliation into when to try again: after the delay
// that the provider names, shortly after the cache was behind, or else as the rate
// limiter says.
func outcome(err error) (ctrl.Result, error) {
	var retry *cloudapi.RetryError
	var write *writeError
	switch {
	case errors.As(err, &retry) && retry.RetryAfter() > 0:
		return ctrl.Result{RequeueAfter: retry.RetryAfter()}, nil
	case !errors.As(err, &write):
		return ctrl.Result{}, err
	case apierrors.IsConflict(write.err):
		return ctrl.Result{RequeueAfter: conflictDelay}, nil
	case apierrors.IsNotFound(write.err):
		return ctrl.Result{}, nil // it went meanwhile; its event brings us back
	}
	return ctrl.Result{}, err
}

func ignoreElsewhere(err error) error {
	if errors.Is(err, cloudprovider.ImplementedElsewhere) {
		return nil
	}
	return err
}

// wants says whether svc is one for our provider, deleted or not.
func (r *LoadBalancerReconciler) wants(svc *corev1.Service) bool {
	return wantsLoadBalancer(svc, r.Class, r.Default)
}

// active says whether svc is to be served now.
func (r *LoadBalancerReconciler) active(svc *corev1.Service) bool {
	return r.wants(svc) && svc.DeletionTimestamp.IsZero()
}

func wantsLoadBalancer(svc *corev1.Service, class string, byDefault bool) bool {
	if svc.Spec.Type != corev1.ServiceTypeLoadBalancer {
		return false
	}
	if svc.Spec.LoadBalancerClass == nil {
		return byDefault
	}
	return *svc.Spec.LoadBalancerClass == class
}

// holds says whether our provider may have something for svc. A finalizer alone does not
// say so where the type or the class has changed: all controllers use the same.
func (r *LoadBalancerReconciler) holds(svc *corev1.Service) bool {
	if _, ok := r.memory.get(client.ObjectKeyFromObject(svc)); ok {
		return true
	}
	return r.claimed(svc) || r.wants(svc) && servicehelper.HasLBFinalizer(svc)
}

// claimed says whether svc has our mark. It bears the class too, because another fairlead
// may serve another class with the same provider.
func (r *LoadBalancerReconciler) claimed(svc *corev1.Service) bool {
	return svc.Annotations[fairleadv1alpha1.AnnotationProvider] == r.Provider &&
		svc.Annotations[fairleadv1alpha1.AnnotationProviderClass] == r.Class
}

// ensure makes the load balancer of svc, or what has changed about it, and publishes it.
func (r *LoadBalancerReconciler) ensure(ctx context.Context, svc *corev1.Service) error {
	nodes, err := r.nodes.get(ctx, r.Client)
	if err != nil {
		return err
	}
	if err := r.claim(ctx, svc); err != nil {
		return err
	}
	key := client.ObjectKeyFromObject(svc)
	last, known := r.memory.get(key)
	again := r.memory.takeAgain(key)
	switch {
	case !known || again || !last.settled || !sameDemand(last.given, svc):
		last, err = r.provide(ctx, svc, last, nodes)
	case last.nodes != nodes.key && !last.elsewhere:
		last, err = r.update(ctx, last, nodes)
	}
	r.memory.set(key, last)
	if last.elsewhere {
		return err
	}
	publishErr := r.publish(ctx, svc, last)
	if publishErr == nil {
		last.announce, last.published = false, true
		r.memory.set(key, last)
	}
	return errors.Join(err, publishErr)
}

// catchUp brings a Service back whose ensure took longer than the nodes kept still: the
// first time nodeHandler did not know it yet.
func (r *LoadBalancerReconciler) catchUp(ctx context.Context, key types.NamespacedName) (ctrl.Result, error) {
	now, err := r.nodes.get(ctx, r.Client)
	if err != nil {
		return ctrl.Result{}, err
	}
	if last, ok := r.memory.get(key); ok && !last.elsewhere && last.nodes != now.key {
		return ctrl.Result{RequeueAfter: nodeBatch}, nil
	}
	return ctrl.Result{}, nil
}

// claim marks svc as ours before anything is made for it, so that it cannot go without us.
func (r *LoadBalancerReconciler) claim(ctx context.Context, svc *corev1.Service) error {
	before := svc.DeepCopy()
	added := controllerutil.AddFinalizer(svc, servicehelper.LoadBalancerCleanupFinalizer)
	if !added && r.claimed(svc) {
		return nil
	}
	metav1.SetMetaDataAnnotation(&svc.ObjectMeta, fairleadv1alpha1.AnnotationProvider, r.Provider)
	metav1.SetMetaDataAnnotation(&svc.ObjectMeta, fairleadv1alpha1.AnnotationProviderClass, r.Class)
	return writing("adding the cleanup finalizer", r.Client.Patch(ctx, svc, optimistic(before)))
}

// optimistic patches what differs from before, unless somebody else wrote since: lists
// such as finalizers and conditions are replaced as a whole.
func optimistic(before client.Object) client.Patch {
	return client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{})
}

// provide asks the provider for svc's load balancer and returns what is to be published.
// The error is one to try again after; it is in the condition too.
func (r *LoadBalancerReconciler) provide(ctx context.Context, svc *corev1.Service, last provided, nodes nodes) (provided, error) {
	fresh := freshDemand(svc, last)
	if fresh {
		r.event(svc, eventEnsuring)
		if len(nodes.list) == 0 {
			r.event(svc, eventUnavailable)
		}
	}
	next := provided{given: svc.DeepCopy(), nodes: nodes.key, settled: true, announce: last.announce || fresh, published: last.published}
	status, err := r.Balancer.EnsureLoadBalancer(ctx, clusterName, next.given, nodes.list)
	next.ingress = svc.Status.LoadBalancer.Ingress
	var pending *cloud.Pending
	switch {
	case errors.Is(err, cloudprovider.ImplementedElsewhere):
		next.elsewhere = true
		return next, nil
	case errors.As(err, &pending):
		next.condition = notAssigned(pending.Reason, pending.Message)
	case err != nil:
		// A status returned with a failure means nothing.
		next.settled = false
		next.condition = notAssigned(fairleadv1alpha1.ReasonSyncLoadBalancerFailed, err.Error())
		return next, fmt.Errorf("ensuring the load balancer: %w", err)
	}
	if status != nil {
		next.ingress = withIPMode(status.Ingress)
		next.published = next.published && sameIngress(next.ingress, last.ingress)
	}
	if err == nil {
		next.condition = assignedCondition(next.ingress)
	}
	return next, nil
}

// freshDemand says whether svc wants something that nobody was told about: after a start
// its condition shows that somebody was.
func freshDemand(svc *corev1.Service, last provided) bool {
	if last.given == nil {
		return assigned(svc) == nil
	}
	return !sameDemand(last.given, svc)
}

// update tells the provider about another set of nodes.
func (r *LoadBalancerReconciler) update(ctx context.Context, last provided, nodes nodes) (provided, error) {
	err := r.Balancer.UpdateLoadBalancer(ctx, clusterName, last.given, nodes.list)
	switch {
	case errors.Is(err, cloudprovider.ImplementedElsewhere):
	case err != nil:
		if last.failure != err.Error() {
			r.event(last.given, eventFailed(err))
		}
		last.failure = err.Error()
		return last, fmt.Errorf("updating the nodes of the load balancer: %w", err)
	case len(nodes.list) == 0:
		r.event(last.given, eventUnavailable)
	default:
		r.event(last.given, eventUpdated)
	}
	last.nodes, last.failure = nodes.key, ""
	return last, nil
}

// withIPMode fills in the default of the API, so that what is compared is complete.
func withIPMode(in []corev1.LoadBalancerIngress) []corev1.LoadBalancerIngress {
	var out []corev1.LoadBalancerIngress
	for _, i := range in {
		if i.IP != "" && i.IPMode == nil {
			i.IPMode = ptr.To(corev1.LoadBalancerIPModeVIP)
		}
		out = append(out, i)
	}
	return out
}

// assignedCondition returns the condition of a Service that the provider has done all for.
func assignedCondition(ingress []corev1.LoadBalancerIngress) metav1.Condition {
	if len(ingress) == 0 {
		return notAssigned(fairleadv1alpha1.ReasonNoAddress, "the provider made a load balancer that has no address yet")
	}
	var all []string
	for _, i := range ingress {
		all = append(all, i.IP+i.Hostname) // one of the two
	}
	return metav1.Condition{
		Type: fairleadv1alpha1.ConditionAddressAssigned, Status: metav1.ConditionTrue,
		Reason: fairleadv1alpha1.ReasonAssigned, Message: "assigned " + strings.Join(all, ", "),
	}
}

func notAssigned(reason, message string) metav1.Condition {
	return metav1.Condition{
		Type: fairleadv1alpha1.ConditionAddressAssigned, Status: metav1.ConditionFalse,
		Reason: reason, Message: message,
	}
}
