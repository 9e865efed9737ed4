package controllers

import (
	"context"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/log"

	fairleadv1alpha1 "fairlead.dev/fairlead/api/v1alpha1"
)

// statusRepairs counts how often somebody else wrote status.loadBalancer of a Service.
var statusRepairs = prometheus.NewCounter(prometheus.CounterOpts{
	Name: "fairlead_loadbalancer_status_repairs_total",
	Help: "How often status.loadBalancer of a Service was put back after somebody else changed it.",
})

// assigned returns svc's condition AddressAssigned, nil where it has none.
func assigned(svc *corev1.Service) *metav1.Condition {
	return apimeta.FindStatusCondition(svc.Status.Conditions, fairleadv1alpha1.ConditionAddressAssigned)
}

func sameIngress(a, b []corev1.LoadBalancerIngress) bool {
	return equality.Semantic.DeepEqual(a, b)
}

// sameCondition says whether both say the same, whenever and about whichever generation.
func sameCondition(a, b *metav1.Condition) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.Status == b.Status && a.Reason == b.Reason && a.Message == b.Message
}

// publish writes p to the status of svc where it differs, and then says so in events.
func (r *LoadBalancerReconciler) publish(ctx context.Context, svc *corev1.Service, p provided) error {
	before := svc.DeepCopy()
	had := assigned(before)
	moved := !sameIngress(before.Status.LoadBalancer.Ingress, p.ingress)
	if moved {
		svc.Status.LoadBalancer.Ingress = p.ingress
	}
	p.condition = p.shown()
	p.condition.ObservedGeneration = svc.Generation
	if apimeta.SetStatusCondition(&svc.Status.Conditions, p.condition) || moved {
		if err := writing("patching the status", r.Client.Status().Patch(ctx, svc, optimistic(before))); err != nil {
			return err
		}
	}
	r.announce(ctx, svc, p, moved, sameCondition(had, &p.condition))
	return nil
}

// announce says in events and in the log what publish wrote. moved says that it was
// another ingress, told that the condition said the same before.
func (r *LoadBalancerReconciler) announce(ctx context.Context, svc *corev1.Service, p provided, moved, told bool) {
	logger, message := log.FromContext(ctx), p.condition.Message
	good := p.condition.Status == metav1.ConditionTrue
	switch {
	case !good && !told:
		r.event(svc, serviceEvent{corev1.EventTypeWarning, p.condition.Reason, "AssignAddress", message})
		logger.Info("Load balancer not assigned", "reason", p.condition.Reason, "message", message)
	case good && (p.announce || moved && !p.published):
		r.event(svc, eventEnsured(message))
		logger.Info("Ensured load balancer", "result", message)
	case moved && p.published:
		statusRepairs.Inc()
		logger.Info("Put back the load balancer status that was changed", "result", message)
	}
}

// serviceEvent is one event about a Service.
type serviceEvent struct{ kind, reason, action, note string }

var (
	eventEnsuring    = serviceEvent{corev1.EventTypeNormal, fairleadv1alpha1.ReasonEnsuringLoadBalancer, "EnsureLoadBalancer", "Ensuring load balancer"}
	eventUpdated     = serviceEvent{corev1.EventTypeNormal, fairleadv1alpha1.ReasonUpdatedLoadBalancer, "UpdateLoadBalancer", "Updated load balancer with new hosts"}
	eventUnavailable = serviceEvent{corev1.EventTypeWarning, fairleadv1alpha1.ReasonUnAvailableLoadBalancer, "UpdateLoadBalancer", "There are no available nodes for LoadBalancer"}
	eventDeleting    = serviceEvent{corev1.EventTypeNormal, fairleadv1alpha1.ReasonDeletingLoadBalancer, "DeleteLoadBalancer", "Deleting load balancer"}
	eventDeleted     = serviceEvent{corev1.EventTypeNormal, fairleadv1alpha1.ReasonDeletedLoadBalancer, "DeleteLoadBalancer", "Deleted load balancer"}
)

func eventEnsured(what string) serviceEvent {
	return serviceEvent{corev1.EventTypeNormal, fairleadv1alpha1.ReasonEnsuredLoadBalancer, "EnsureLoadBalancer", "Ensured load balancer: " + what}
}

func eventFailed(err error) serviceEvent {
	return serviceEvent{corev1.EventTypeWarning, fairleadv1alpha1.ReasonSyncLoadBalancerFailed, "UpdateLoadBalancer", "Error syncing load balancer: " + err.Error()}
}

// noteLimit is what the API server takes (pkg/apis/core/validation NoteLengthLimit); the
// words of a provider can be longer.
const noteLimit = 1024

func (r *LoadBalancerReconciler) event(svc *corev1.Service, e serviceEvent) {
	r.Events.Eventf(svc, nil, e.kind, e.reason, e.action, "%s", cut(e.note, noteLimit))
}

// cut returns the start of s, limit bytes at most, without half a character at its end.
func cut(s string, limit int) string {
	if len(s) <= limit {
		return s
	}
	for limit > 0 && !utf8.RuneStart(s[limit]) {
		limit--
	}
	return s[:limit]
}
