package controllers

import (
	"context"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	servicehelper "k8s.io/cloud-provider/service/helpers"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/log"

	fairleadv1alpha1 "fairlead.dev/fairlead/api/v1alpha1"
)

// release deletes what the provider has for svc, and all that we wrote to svc. The ingress
// goes first, because the provider may give the address to another Service at once.
func (r *LoadBalancerReconciler) release(ctx context.Context, svc *corev1.Service) error {
	key := client.ObjectKeyFromObject(svc)
	had := assigned(svc)
	failing := had != nil && had.Reason == fairleadv1alpha1.ReasonDeleteLoadBalancerFailed
	if !failing {
		r.event(svc, eventDeleting)
	}
	// A Service that has no condition of ours may have an ingress of somebody else's.
	mine := had != nil && !r.memory.disown(key)
	if err := r.unpublish(ctx, svc, withdrawal{ingress: mine, condition: !failing}); err != nil {
		return err
	}
	err := r.Balancer.EnsureLoadBalancerDeleted(ctx, clusterName, svc.DeepCopy())
	if ignoreElsewhere(err) != nil {
		publishErr := r.publish(ctx, svc, provided{
			ingress:   svc.Status.LoadBalancer.Ingress,
			condition: notAssigned(fairleadv1alpha1.ReasonDeleteLoadBalancerFailed, err.Error()),
		})
		return errors.Join(fmt.Errorf("deleting the load balancer: %w", err), publishErr)
	}
	if err := r.unpublish(ctx, svc, withdrawal{ingress: err == nil, condition: true}); err != nil {
		return err
	}
	before := svc.DeepCopy()
	controllerutil.RemoveFinalizer(svc, servicehelper.LoadBalancerCleanupFinalizer)
	delete(svc.Annotations, fairleadv1alpha1.AnnotationProvider)
	delete(svc.Annotations, fairleadv1alpha1.AnnotationProviderClass)
	if err := writing("removing the cleanup finalizer", r.Client.Patch(ctx, svc, optimistic(before))); err != nil {
		return err
	}
	r.memory.forget(key)
	r.event(svc, eventDeleted)
	log.FromContext(ctx).Info("Deleted load balancer")
	return nil
}

// withdrawal is what to take out of the status of a Service.
type withdrawal struct{ ingress, condition bool }

// unpublish takes out of the status of svc what we wrote there. A Service that goes with
// our finalizer keeps its status to the end.
func (r *LoadBalancerReconciler) unpublish(ctx context.Context, svc *corev1.Service, what withdrawal) error {
	if vanishes(svc) {
		return nil
	}
	before := svc.DeepCopy()
	changed := what.condition && apimeta.RemoveStatusCondition(&svc.Status.Conditions, fairleadv1alpha1.ConditionAddressAssigned)
	if what.ingress && len(svc.Status.LoadBalancer.Ingress) > 0 {
		svc.Status.LoadBalancer.Ingress, changed = nil, true
	}
	if !changed {
		return nil
	}
	return writing("clearing the status", r.Client.Status().Patch(ctx, svc, optimistic(before)))
}

// vanishes says whether svc is gone as soon as our finalizer is.
func vanishes(svc *corev1.Service) bool {
	others := len(svc.Finalizers)
	if servicehelper.HasLBFinalizer(svc) {
		others--
	}
	return !svc.DeletionTimestamp.IsZero() && others == 0
}
