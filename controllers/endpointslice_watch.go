package controllers

import (
	"context"
	"maps"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"fairlead.dev/fairlead/internal/endpointslice"
)

type queue = workqueue.TypedRateLimitingInterface[ctrl.Request]

func enqueue(q queue, services ...types.NamespacedName) {
	for _, service := range services {
		q.Add(ctrl.Request{NamespacedName: service})
	}
}

func indexPodByNode(obj client.Object) []string {
	if pod, ok := obj.(*corev1.Pod); ok && pod.Spec.NodeName != "" {
		return []string{pod.Spec.NodeName}
	}
	return nil
}

func indexSliceByService(obj client.Object) []string {
	var names []string
	if slice, ok := obj.(*discoveryv1.EndpointSlice); ok {
		for _, service := range endpointslice.ServicesOf(slice) {
			names = append(names, service.Name)
		}
	}
	return names
}

// serviceHandler keeps the selectors true before it enqueues the Service: a pod that
// comes in between is either found by its own event or by the Service's sync.
func (r *EndpointSliceReconciler) serviceHandler() handler.Funcs {
	set := func(obj client.Object, q queue) {
		if svc, ok := obj.(*corev1.Service); ok {
			key := client.ObjectKeyFromObject(svc)
			r.selectors.Set(key, selectorOf(svc))
			enqueue(q, key)
		}
	}
	return handler.Funcs{
		CreateFunc: func(_ context.Context, e event.CreateEvent, q queue) { set(e.Object, q) },
		UpdateFunc: func(_ context.Context, e event.UpdateEvent, q queue) {
			if serviceChanged(e.ObjectOld, e.ObjectNew) {
				set(e.ObjectNew, q)
			}
		},
		DeleteFunc: func(_ context.Context, e event.DeleteEvent, q queue) {
			key := client.ObjectKeyFromObject(e.Object)
			r.selectors.Set(key, nil)
			enqueue(q, key)
		},
	}
}

func selectorOf(svc *corev1.Service) map[string]string {
	if !endpointslice.Fills(svc) {
		return nil
	}
	return svc.Spec.Selector
}

// serviceChanged leaves out what only the status tells, load balancer addresses first
// of all. A resync, the same object twice, counts as a change: it is there to repair.
func serviceChanged(oldObj, newObj client.Object) bool {
	was, ok := oldObj.(*corev1.Service)
	is, also := newObj.(*corev1.Service)
	if !ok || !also {
		return false
	}
	return was.ResourceVersion == is.ResourceVersion ||
		was.UID != is.UID ||
		(was.DeletionTimestamp == nil) != (is.DeletionTimestamp == nil) ||
		!maps.Equal(was.Labels, is.Labels) ||
		!maps.Equal(was.Annotations, is.Annotations) ||
		!apiequality.Semantic.DeepEqual(was.Spec, is.Spec)
}

// podHandler enqueues the Services that a pod belongs to, and those it belonged to.
func (r *EndpointSliceReconciler) podHandler() handler.Funcs {
	return handler.Funcs{
		CreateFunc: func(_ context.Context, e event.CreateEvent, q queue) {
			// At the start every Service is enqueued by itself.
			if !e.IsInInitialList {
				enqueue(q, r.servicesOfPod(e.Object)...)
			}
		},
		UpdateFunc: func(_ context.Context, e event.UpdateEvent, q queue) {
			was, ok := e.ObjectOld.(*corev1.Pod)
			is, also := e.ObjectNew.(*corev1.Pod)
			if !ok || !also || !endpointslice.PodChanged(was, is) {
				return
			}
			enqueue(q, r.servicesOfPod(is)...)
			if !maps.Equal(was.Labels, is.Labels) {
				enqueue(q, r.servicesOfPod(was)...)
			}
		},
		DeleteFunc: func(_ context.Context, e event.DeleteEvent, q queue) {
			enqueue(q, r.servicesOfPod(e.Object)...)
		},
	}
}

func (r *EndpointSliceReconciler) servicesOfPod(pod client.Object) []types.NamespacedName {
	return r.selectors.Match(pod.GetNamespace(), pod.GetLabels())
}

// nodeHandler enqueues the Services of the pods on a Node that appears, goes, or moves
// to another zone. Whether it is ready does not matter: its pods tell that.
func (r *EndpointSliceReconciler) nodeHandler() handler.Funcs {
	return handler.Funcs{
		CreateFunc: func(ctx context.Context, e event.CreateEvent, q queue) {
			if !e.IsInInitialList {
				r.enqueueNode(ctx, e.Object, q)
			}
		},
		UpdateFunc: func(ctx context.Context, e event.UpdateEvent, q queue) {
			was, ok := e.ObjectOld.(*corev1.Node)
			is, also := e.ObjectNew.(*corev1.Node)
			if ok && also && endpointslice.NodeChanged(was, is) {
				r.enqueueNode(ctx, is, q)
			}
		},
		DeleteFunc: func(ctx context.Context, e event.DeleteEvent, q queue) { r.enqueueNode(ctx, e.Object, q) },
	}
}

func (r *EndpointSliceReconciler) enqueueNode(ctx context.Context, node client.Object, q queue) {
	pods, err := r.pods(ctx, client.MatchingFields{podNodeIndex: node.GetName()})
	if err != nil {
		log.FromContext(ctx).Error(err, "Cannot tell which Services a node concerns", "node", klog.KObj(node))
		return
	}
	for _, pod := range pods {
		enqueue(q, r.servicesOfPod(pod)...)
	}
}

// sliceHandler enqueues the Services of a slice that another writer touched.
func (r *EndpointSliceReconciler) sliceHandler() handler.Funcs {
	return handler.Funcs{
		CreateFunc: func(_ context.Context, e event.CreateEvent, q queue) {
			slice, ok := e.Object.(*discoveryv1.EndpointSlice)
			if ok && !r.writes.observe(slice, false) && managed(slice) {
				enqueue(q, endpointslice.ServicesOf(slice)...)
			}
		},
		UpdateFunc: func(_ context.Context, e event.UpdateEvent, q queue) {
			was, ok := e.ObjectOld.(*discoveryv1.EndpointSlice)
			is, also := e.ObjectNew.(*discoveryv1.EndpointSlice)
			if !ok || !also || r.writes.observe(is, false) || !managed(was) && !managed(is) {
				return
			}
			// Somebody may have labelled it away from its Service, or to another one.
			enqueue(q, endpointslice.ServicesOf(was)...)
			enqueue(q, endpointslice.ServicesOf(is)...)
		},
		DeleteFunc: func(_ context.Context, e event.DeleteEvent, q queue) {
			slice, ok := e.Object.(*discoveryv1.EndpointSlice)
			if ok && !r.writes.observe(slice, true) && managed(slice) {
				enqueue(q, endpointslice.ServicesOf(slice)...)
			}
		},
	}
}

func managed(slice *discoveryv1.EndpointSlice) bool {
	return slice.Labels[discoveryv1.LabelManagedBy] == endpointSliceManager
}
