package node

import (
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"fairlead.dev/fairlead/internal/service"
)

func services() kind[*corev1.Service] {
	return kind[*corev1.Service]{
		decode: func(s *corev1.Service) func(*model) {
			spec := service.DecodeService(s)
			return func(m *model) { m.store.PutService(spec) }
		},
		remove: func(m *model, n types.NamespacedName) { m.store.DeleteService(n) },
		names:  func(m *model) []types.NamespacedName { return m.store.ServiceNames() },
	}
}

func endpointSlices(node string) kind[*discoveryv1.EndpointSlice] {
	return kind[*discoveryv1.EndpointSlice]{
		decode: func(s *discoveryv1.EndpointSlice) func(*model) {
			slice := service.DecodeSlice(s, node)
			return func(m *model) { m.store.PutSlice(slice) }
		},
		remove: func(m *model, n types.NamespacedName) { m.store.DeleteSlice(n) },
		names:  func(m *model) []types.NamespacedName { return m.store.SliceNames() },
	}
}

// nodes is the one Node of that name, with the fields that the model reads: images alone
// would be tens of kilobytes.
func nodes(name string) kind[*corev1.Node] {
	return kind[*corev1.Node]{
		decode: func(n *corev1.Node) func(*model) {
			slim := &corev1.Node{
				ObjectMeta: metav1.ObjectMeta{Name: n.Name, UID: n.UID, Labels: n.Labels, DeletionTimestamp: n.DeletionTimestamp},
				Spec:       corev1.NodeSpec{PodCIDR: n.Spec.PodCIDR, PodCIDRs: n.Spec.PodCIDRs, Taints: n.Spec.Taints},
				Status:     corev1.NodeStatus{Addresses: n.Status.Addresses},
			}
			return func(m *model) { m.setNode(slim) }
		},
		remove: func(m *model, _ types.NamespacedName) { m.setNode(nil) },
		names:  func(*model) []types.NamespacedName { return []types.NamespacedName{{Name: name}} },
	}
}

func serviceCIDRs() kind[*networkingv1.ServiceCIDR] {
	return kind[*networkingv1.ServiceCIDR]{
		decode: func(c *networkingv1.ServiceCIDR) func(*model) {
			name, cidrs := c.Name, prefixes(c.Spec.CIDRs)
			return func(m *model) { m.setServiceCIDRs(name, cidrs) }
		},
		remove: func(m *model, n types.NamespacedName) { m.setServiceCIDRs(n.Name, nil) },
		names: func(m *model) []types.NamespacedName {
			var names []types.NamespacedName
			for name := range m.serviceCIDRs {
				names = append(names, types.NamespacedName{Name: name})
			}
			return names
		},
	}
}
