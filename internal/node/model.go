package node

import (
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"

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

	node  *corev1.Node // nil while there is none
	local []netip.Addr // of the host's interfaces, in the order of interfaces
}

func (m *model) setNode(n *corev1.Node) {
	m.node = n
	m.settleAddrs()
}

func (m *model) setLocalAddrs(addrs []netip.Addr) {
	m.local = addrs
	m.settleAddrs()
}

func (m *model) settleAddrs() { m.store.SetNodePortAddrs(m.nodePortAddrs()) }

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
