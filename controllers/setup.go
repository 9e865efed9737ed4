// Package controllers adapts the Kubernetes API to the pure packages in internal.
package controllers

import (
	"context"
	"fmt"
	"time"

	apimeta "k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	cloudprovider "k8s.io/cloud-provider"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/manager"

	"fairlead.dev/fairlead/api/config/v1alpha1"
	fairleadv1alpha1 "fairlead.dev/fairlead/api/v1alpha1"
	"fairlead.dev/fairlead/internal/cloud/baremetal"
)

// crdInterval is how often a missing CRD is looked for: one small GET each.
const crdInterval = 2 * time.Second

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
	if provider == nil && cfg.LoadBalancer.Provider == baremetal.Name && !servesPools(mgr) {
		return mgr.Add(latecomer(mgr, cfg.LoadBalancer))
	}
	return setupLoadBalancer(mgr, cfg.LoadBalancer, provider)
}

// servesPools says whether the API server knows AddressPools. Where it cannot be asked
// it says yes, and the controllers say what is wrong.
func servesPools(mgr ctrl.Manager) bool {
	kind := fairleadv1alpha1.GroupVersion.WithKind("AddressPool")
	_, err := mgr.GetRESTMapper().RESTMapping(kind.GroupKind(), kind.Version)
	return !apimeta.IsNoMatchError(err)
}

// latecomer sets up the LoadBalancer lifecycle of the bare-metal provider when its CRD
// comes. Until then the other controllers do their work.
func latecomer(mgr ctrl.Manager, cfg v1alpha1.LoadBalancer) manager.Runnable {
	return manager.RunnableFunc(func(ctx context.Context) error {
		mgr.GetLogger().Info("CRD addresspools.fairlead.dev is not installed: no LoadBalancer Service is served until it is; " +
			"everything else works. Install config/crd or the chart's, or set loadBalancer.provider to \"\"")
		err := wait.PollUntilContextCancel(ctx, crdInterval, false, func(context.Context) (bool, error) { return servesPools(mgr), nil })
		if err != nil {
			return nil //nolint:nilerr // told to stop
		}
		return setupLoadBalancer(mgr, cfg, nil)
	})
}
