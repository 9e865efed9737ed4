package node

import (
	"maps"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"fairlead.dev/fairlead/api/config/v1alpha1"
	"fairlead.dev/fairlead/internal/ipfamily"
	"fairlead.dev/fairlead/internal/service"
)

// taintToBeDeleted is set by the cluster autoscaler on a node that it is about to take
// away; load balancers should stop sending there (KEP-3836).
const taintToBeDeleted = "ToBeDeletedByClusterAutoscaler"

// model is what the agent knows: Services, slices, its Node, its addresses.
type model struct {
	store *service.Store
	// nodePortCIDRs pick the addresses for node ports; with none it is the node's
	// primary ones.
	nodePortCIDRs []netip.Prefix
	// nodeCIDR says that pods are told by spec.podCIDRs of the Node.
	nodeCIDR bool

	node         *corev1.Node // nil while there is none
	podCIDRs     []netip.Prefix
	local        []netip.Addr              // of the host's interfaces, in the order of interfaces
	serviceCIDRs map[string][]netip.Prefix // by name of the ServiceCIDR
}

// configure takes in what cfg says about addresses.
func (m *model) configure(cfg *v1alpha1.NodeConfiguration) {
	m.nodePortCIDRs = nodePortCIDRs(cfg.NodePortAddresses)
	m.nodeCIDR = cfg.LocalTraffic.NodeCIDR
	m.podCIDRs = prefixes(cfg.LocalTraffic.ClusterCIDRs)
	m.store.SetPodCIDRs(m.podCIDRs)
}

// setNode takes in the Node, nil for one that is gone. That says nothing about the zone
// and the pods of this node: they stay as they were.
func (m *model) setNode(n *corev1.Node) {
	m.node = n
	m.settleAddrs()
	if n == nil {
		return
	}
	m.store.SetZone(n.Labels[corev1.LabelTopologyZone])
	if cidrs := podCIDRs(n); m.nodeCIDR && len(cidrs) > 0 {
		m.podCIDRs = cidrs
		m.store.SetPodCIDRs(cidrs)
	}
}

func (m *model) setLocalAddrs(addrs []netip.Addr) {
	m.local = addrs
	m.settleAddrs()
}

func (m *model) settleAddrs() {
	m.store.SetNodePortAddrs(m.nodePortAddrs())
	// A Node may have addresses that no interface has, where they are translated.
	m.store.SetNodeAddrs(slices.Concat(m.local, internalIPs(m.node)))
}

// setServiceCIDRs takes in the ranges of the ServiceCIDR of that name, none for one that
// is gone. One that is being deleted still counts: it goes when its last address does.
func (m *model) setServiceCIDRs(name string, cidrs []netip.Prefix) {
	if m.serviceCIDRs == nil {
		m.serviceCIDRs = map[string][]netip.Prefix{}
	}
	if m.serviceCIDRs[name] = cidrs; len(cidrs) == 0 {
		delete(m.serviceCIDRs, name)
	}
	m.store.SetServiceCIDRs(slices.Concat(slices.Collect(maps.Values(m.serviceCIDRs))...))
}

// podsUnknown says whether pods are to be told by ranges of the Node, which has none yet.
func (m *model) podsUnknown() bool { return m.nodeCIDR && len(m.podCIDRs) == 0 }

// podCIDRs are the ranges of the pods of a Node, as the API server has validated them.
func podCIDRs(n *corev1.Node) []netip.Prefix {
	if len(n.Spec.PodCIDRs) == 0 {
		return prefixes([]string{n.Spec.PodCIDR})
	}
	return prefixes(n.Spec.PodCIDRs)
}

func (m *model) nodePortAddrs() []netip.Addr { return nodePortAddrs(m.nodePortCIDRs, m.node, m.local) }

// eligible says whether the node should get traffic from load balancers.
func (m *model) eligible() bool {
	return m.node != nil && m.node.DeletionTimestamp.IsZero() &&
		!slices.ContainsFunc(m.node.Spec.Taints, func(t corev1.Taint) bool { return t.Key == taintToBeDeleted })
}

// nodePortAddrs returns the addresses that serve node ports: those of the host inside
// cidrs. Without cidrs it is the first InternalIP of each family in the Node's status,
// and for a Node that is not there or says nothing, the host's first address of each
// family.
func nodePortAddrs(cidrs []netip.Prefix, node *corev1.Node, local []netip.Addr) []netip.Addr {
	if len(cidrs) > 0 {
		return slices.DeleteFunc(slices.Clone(local), func(a netip.Addr) bool {
			return !slices.ContainsFunc(cidrs, func(p netip.Prefix) bool { return p.Contains(a) })
		})
	}
	if primary := firstOfEach(internalIPs(node)); len(primary) > 0 {
		return primary
	}
	return firstOfEach(slices.DeleteFunc(slices.Clone(local), func(a netip.Addr) bool { return !a.IsGlobalUnicast() }))
}

func internalIPs(node *corev1.Node) []netip.Addr {
	var out []netip.Addr
	if node == nil {
		return out
	}
	for _, address := range node.Status.Addresses {
		if addr, err := netip.ParseAddr(address.Address); err == nil && address.Type == corev1.NodeInternalIP {
			out = append(out, addr.Unmap())
		}
	}
	return out
}

func firstOfEach(addrs []netip.Addr) []netip.Addr {
	var out []netip.Addr
	for _, f := range ipfamily.All {
		for _, a := range addrs {
			if ipfamily.Of(a) == f {
				out = append(out, a)
				break
			}
		}
	}
	return out
}
