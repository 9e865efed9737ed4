package netlab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Node is a cluster node with pods behind it. Pods are routed, also over a
// bridge: every packet between two of them passes the node's netfilter hooks,
// so that a translated one finds its way back.
type Node struct {
	Host
	PodCIDRs []netip.Prefix // IPv4, IPv6

	lab     *Lab // its mutex guards what follows
	index   int
	pods    map[int]*Host // by the host part of the addresses
	lastPod int
	bridge  *netlink.Bridge // that pods are plugged into; nil for links of their own
}

// The next hop of a pod is no address anyone has; a permanent neighbour entry
// leads to the node's end of the link, as Calico's answer to it does
// (https://docs.tigera.io/calico/latest/reference/faq).
var (
	podGateway4 = netip.MustParseAddr("169.254.1.1")
	podGateway6 = netip.MustParseAddr("fe80::1")
)

const (
	firstPod = 2   // .1 is what bridges of other networks call themselves
	lastPod  = 254 // .255 is the broadcast address
)

// AddPod adds a pod with the next free addresses of the node's networks. At
// the node its link is Port, "pod" and the last part of the IPv4 address.
func (n *Node) AddPod(name string) (*Host, error) {
	n.lab.mu.Lock()
	defer n.lab.mu.Unlock()

	k, err := n.nextPod()
	if err != nil {
		return nil, fmt.Errorf("adding pod %s: %w", name, err)
	}
	ipv4 := netip.AddrFrom4([4]byte{10, 244, byte(n.index), byte(k)})
	ipv6 := netip.MustParseAddr(fmt.Sprintf("fd00:10:244:%d::%d", n.index, k))
	pod, err := n.lab.newHost(name, ipv4, ipv6, nil)
	if err != nil {
		return nil, fmt.Errorf("adding pod %s: %w", name, err)
	}
	pod.Port = fmt.Sprintf("pod%d", k)
	if err := n.plug(pod); err != nil {
		return nil, errors.Join(fmt.Errorf("adding pod %s: %w", name, err), n.drop(pod))
	}
	n.pods[k] = pod
	n.lastPod = k
	return pod, nil
}

// UseBridge plugs the pods that are added from now on into a bridge of that
// name, which their packets come in by; what else they see stays the same.
func (n *Node) UseBridge(name string) error {
	n.lab.mu.Lock()
	defer n.lab.mu.Unlock()

	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	attrs.Flags = net.FlagUp
	attrs.HardwareAddr = nodeMAC
	bridge := &netlink.Bridge{LinkAttrs: attrs}
	if err := n.ns.nl.LinkAdd(bridge); err != nil {
		return fmt.Errorf("adding bridge %s to %s: %w", name, n.Name, err)
	}
	n.bridge = bridge
	return nil
}

// nextPod returns the next free number after the last one given, so that the
// addresses of a removed pod rest for as long as possible.
func (n *Node) nextPod() (int, error) {
	const count = lastPod - firstPod + 1
	for i := range count {
		k := firstPod + (max(n.lastPod, firstPod-1)+1-firstPod+i)%count
		if n.pods[k] == nil {
			return k, nil
		}
	}
	return 0, fmt.Errorf("node %s has %d pods and no address left", n.Name, count)
}

// plug makes the link between the node and a pod, and the routes to and fro.
func (n *Node) plug(pod *Host) error {
	veth := newVeth(pod.Port, pod)
	veth.HardwareAddr = nodeMAC
	if n.bridge != nil {
		veth.HardwareAddr, veth.MasterIndex = nil, n.bridge.Index
	}
	if err := n.ns.nl.LinkAdd(veth); err != nil {
		return fmt.Errorf("adding link %s: %w", pod.Port, err)
	}
	if n.bridge != nil {
		// Where bridges call netfilter, a packet that a pod sends itself by way of the
		// node goes back through the port it came from.
		if err := n.ns.nl.LinkSetHairpin(veth, true); err != nil {
			return fmt.Errorf("setting hairpin mode of %s: %w", pod.Port, err)
		}
	}
	if err := pod.setUp(); err != nil {
		return err
	}
	inside, err := pod.ns.nl.LinkByName(hostLink)
	if err != nil {
		return fmt.Errorf("finding link %s: %w", hostLink, err)
	}
	for _, hop := range []struct{ pod, node, gateway netip.Addr }{
		{pod.IPv4, n.IPv4, podGateway4},
		{pod.IPv6, n.IPv6, podGateway6},
	} {
		if err := pod.AddAddr(hostPrefix(hop.pod)); err != nil {
			return err
		}
		if err := pod.addDefault(inside, hop.gateway); err != nil {
			return err
		}
		if err := n.addPodRoute(veth, hop.pod, hop.node); err != nil {
			return err
		}
	}
	return nil
}

// addDefault sends all that a pod sends through its link to the node.
func (h *Host) addDefault(link netlink.Link, gateway netip.Addr) error {
	index := link.Attrs().Index
	if err := h.ns.nl.NeighSet(permanent(index, gateway, nodeMAC)); err != nil {
		return fmt.Errorf("adding neighbour %s: %w", gateway, err)
	}
	route := &netlink.Route{
		LinkIndex: index,
		Gw:        gateway.AsSlice(),
		Dst:       ipNet(netip.PrefixFrom(gateway, 0).Masked()),
		Flags:     unix.RTNH_F_ONLINK,
	}
	if err := h.ns.nl.RouteAdd(route); err != nil {
		return fmt.Errorf("adding the default route via %s: %w", gateway, err)
	}
	return nil
}

// addPodRoute leads to a pod's address through its link. What the node itself
// sends there comes from the node's own address, the link having none.
func (n *Node) addPodRoute(link *netlink.Veth, pod, source netip.Addr) error {
	index := link.Index
	if n.bridge != nil {
		index = n.bridge.Index
	}
	if err := n.ns.nl.NeighSet(permanent(index, pod, link.PeerHardwareAddr)); err != nil {
		return fmt.Errorf("adding neighbour %s: %w", pod, err)
	}
	route := &netlink.Route{
		LinkIndex: index,
		Dst:       ipNet(hostPrefix(pod)),
		Src:       source.AsSlice(),
		Scope:     netlink.SCOPE_LINK,
	}
	if err := n.ns.nl.RouteAdd(route); err != nil {
		return fmt.Errorf("adding the route to %s: %w", pod, err)
	}
	return nil
}

// RemovePod kills the pod's processes and removes it. It fails for a pod that
// is not on this node, or no more.
func (n *Node) RemovePod(pod *Host) error {
	n.lab.mu.Lock()
	defer n.lab.mu.Unlock()

	for k, p := range n.pods {
		if p == pod {
			delete(n.pods, k)
			if err := n.drop(pod); err != nil {
				return fmt.Errorf("removing pod %s: %w", pod.Name, err)
			}
			return nil
		}
	}
	return fmt.Errorf("removing pod %s: node %s does not have it", pod.Name, n.Name)
}

// drop closes a pod and removes its link, with which its routes go; those over a bridge
// go one by one.
func (n *Node) drop(pod *Host) error {
	delete(n.lab.names, pod.Name)
	err := errors.Join(pod.ns.close(), n.delLink(pod.Port))
	if n.bridge == nil {
		return err
	}
	for _, addr := range []netip.Addr{pod.IPv4, pod.IPv6} {
		route := &netlink.Route{LinkIndex: n.bridge.Index, Dst: ipNet(hostPrefix(addr)), Scope: netlink.SCOPE_LINK}
		neighbour := permanent(n.bridge.Index, addr, hardwareAddr(pod.IPv4))
		err = errors.Join(err, gone(n.ns.nl.RouteDel(route)), gone(n.ns.nl.NeighDel(neighbour)))
	}
	return err
}

// gone takes it as done that what was to be deleted is not there.
func gone(err error) error {
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}
