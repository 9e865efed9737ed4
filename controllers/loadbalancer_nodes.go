package controllers

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/util/workqueue"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
)

const (
	// toBeDeletedTaint is set by the cluster autoscaler before it removes a node
	// (cluster-autoscaler/utils/taints).
	toBeDeletedTaint = "ToBeDeletedByClusterAutoscaler"

	// nodeBatch is how long changes of nodes are gathered before load balancers are
	// updated: nodes come and go in groups, and each group is one call per Service.
	nodeBatch = time.Second
)

// nodes are the nodes that load balancers may send traffic to. key is equal for sets
// that are equal for a provider.
type nodes struct {
	list []*corev1.Node
	key  string
}

// balanced says whether a load balancer may send traffic to n. It is what upstream's
// service controller asks (allNodePredicates).
func balanced(n *corev1.Node) bool {
	if !n.DeletionTimestamp.IsZero() {
		return false
	}
	if v, ok := n.Labels[corev1.LabelNodeExcludeBalancers]; ok {
		if excluded, err := strconv.ParseBool(v); err != nil || excluded {
			return false
		}
	}
	if slices.ContainsFunc(n.Spec.Taints, func(t corev1.Taint) bool { return t.Key == toBeDeletedTaint }) {
		return false
	}
	return slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
	})
}

// sameBalanced says whether a and b, of one name, are the same to a load balancer.
func sameBalanced(a, b *corev1.Node) bool {
	return balanced(a) == balanced(b) && a.Spec.ProviderID == b.Spec.ProviderID
}

// nodeSet remembers the nodes between changes: listing a thousand of them for each of
// ten thousand Services would take longer than all the rest.
type nodeSet struct {
	mu     sync.Mutex
	latest *nodes // nil after a change
}

func (s *nodeSet) get(ctx context.Context, c client.Reader) (nodes, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.latest != nil {
		return *s.latest, nil
	}
	var list corev1.NodeList
	if err := c.List(ctx, &list, client.UnsafeDisableDeepCopy); err != nil {
		return nodes{}, fmt.Errorf("listing nodes: %w", err)
	}
	var found nodes
	var key strings.Builder
	slices.SortFunc(list.Items, func(a, b corev1.Node) int { return strings.Compare(a.Name, b.Name) })
	for i := range list.Items {
		if n := &list.Items[i]; balanced(n) {
			found.list = append(found.list, n)
			fmt.Fprintf(&key, "%s=%s\n", n.Name, n.Spec.ProviderID)
		}
	}
	found.key = key.String()
	s.latest = &found
	return found, nil
}

// changed forgets the nodes and says whether anybody has looked at them since the last
// change.
func (s *nodeSet) changed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	looked := s.latest != nil
	s.latest = nil
	return looked
}

// nodeHandler brings every Service back, nodeBatch after a change that concerns load
// balancers. Services that are not known yet get the new nodes anyway.
func (r *LoadBalancerReconciler) nodeHandler() handler.EventHandler {
	type queue = workqueue.TypedRateLimitingInterface[reconcile.Request]
	bring := func(q queue) {
		if !r.nodes.changed() {
			return // all of them are on their way since the change before
		}
		for _, key := range r.memory.keys() {
			q.AddAfter(ctrl.Request{NamespacedName: key}, nodeBatch)
		}
	}
	return handler.Funcs{
		CreateFunc: func(_ context.Context, e event.CreateEvent, q queue) {
			if n, ok := e.Object.(*corev1.Node); ok && balanced(n) {
				bring(q)
			}
		},
		UpdateFunc: func(_ context.Context, e event.UpdateEvent, q queue) {
			old, ok := e.ObjectOld.(*corev1.Node)
			now, ok2 := e.ObjectNew.(*corev1.Node)
			if ok && ok2 && !sameBalanced(old, now) {
				bring(q)
			}
		},
		DeleteFunc: func(_ context.Context, e event.DeleteEvent, q queue) {
			if n, ok := e.Object.(*corev1.Node); ok && balanced(n) {
				bring(q)
			}
		},
	}
}
