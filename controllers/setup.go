// Package controllers adapts the Kubernetes API to the pure packages in internal.
package controllers

import (
	"fmt"

	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	cloudprovider "k8s.io/cloud-provider"
	ctrl "sigs.k8s.io/controller-runtime"

	"fairlead.dev/fairlead/api/config/v1alpha1"
	fairleadv1alpha1 "fairlead.dev/fairlead/api/v1alpha1"
)

// NewScheme returns a scheme with the types of Kubernetes and of fairlead.dev.
func NewScheme() (*runtime.Scheme, error) {
	scheme := runtime.NewScheme()
	if err := clientgoscheme.AddToScheme(scheme); err != nil {
		return nil, fmt.Errorf("registering Kubernetes types: %w", err)
	}
	if err := fairleadv1alpha1.AddToScheme(scheme); err != nil {
		return nil, fmt.Errorf("registering fairlead.dev types: %w", err)
	}
	return scheme, nil
}

// Setup registers every controller that cfg switches on with mgr. It is the list of
// them. A nil provider means the one that cfg names.
func Setup(mgr ctrl.Manager, cfg *v1alpha1.ControllerConfiguration, provider cloudprovider.Interface) error {
	if cfg.Endpoints.Mode != v1alpha1.EndpointsOff {
		if err := newEndpointSliceReconciler(mgr, cfg.Endpoints).SetupWithManager(mgr); err != nil {
			return fmt.Errorf("setting up the EndpointSlice controller: %w", err)
		}
	}
	if err := setupLoadBalancer(mgr, cfg.LoadBalancer, provider); err != nil {
		return err
	}
	return nil
}
