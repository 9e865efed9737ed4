package netlab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"regexp"
	"sync"

	"github.com/vishvananda/netlink"
)

const (
	lanLink    = "lan0" // the bridge, in the world's own namespace
	hostLink   = "eth0" // the link of every other host
	firstNode  = 10     // the host part of node 1's LAN address is one more
	maxNodes   = 80
	firstGuest = 100 // likewise for clients
	maxGuests  = 150
)

// nameRE is what a host may be called: a file name that is also a DNS label.
var nameRE = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)

// Lab is a LAN with cluster nodes and clients on it. Its methods may be called
// from several goroutines.
type Lab struct {
	spawner *spawner
	gateway *Host
	bridge  int // index of lanLink

	mu      sync.Mutex
	nodes   []*Node
	clients []*Host
	names   map[string]bool // of all hosts, pods included
	closed  bool
}

// New makes the LAN: a bridge in the world's own namespace with the addresses
// 172.18.0.1/24 and fd00:172:18::1/64. A world has room for one lab at a time,
// so the one before must be closed; outside a world New refuses.
func New() (*Lab, error) {
	if os.Getenv(worldVar) != worldReady {
		return nil, errors.New("making a lab outside a world: call netlab.Enter first")
	}
	s := newSpawner()
	ns, err := worldNamespace(s)
	if err != nil {
		s.close()
		return nil, fmt.Errorf("making a lab: %w", err)
	}
	l := &Lab{
		spawner: s,
		gateway: &Host{Name: "gateway", IPv4: lanAddr4(1), IPv6: lanAddr6(1), Link: lanLink, ns: ns},
		names:   map[string]bool{},
	}
	if err := l.addBridge(); err != nil {
		s.close()
		return nil, errors.Join(fmt.Errorf("making a lab: %w", err), ns.close())
	}
	return l, nil
}

// addBridge makes the LAN's bridge. On error there is none of ours.
func (l *Lab) addBridge() error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = lanLink
	attrs.Flags = net.FlagUp
	// Or else it takes the lowest of its ports', a different one as they come.
	attrs.HardwareAddr = hardwareAddr(l.gateway.IPv4)
	// Snooping may drop the multicast that neighbour discovery lives on.
	snooping := false
	nl := l.gateway.ns.nl
	bridge := &netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &snooping}
	if err := nl.LinkAdd(bridge); errors.Is(err, os.ErrExist) {
		return fmt.Errorf("adding link %s: %w: close the other lab of this world first", lanLink, err)
	} else if err != nil {
		return fmt.Errorf("adding link %s: %w", lanLink, err)
	}
	l.bridge = bridge.Index
	if err := l.gateway.addLANAddrs(); err != nil {
		return errors.Join(err, nl.LinkDel(bridge))
	}
	return nil
}

// Gateway returns the world's own namespace as a host of the LAN: 172.18.0.1
// and fd00:172:18::1. It forwards nothing. It is where the calling process
// itself lives, so an API server that listens there is reachable from nodes.
func (l *Lab) Gateway() *Host { return l.gateway }

// Nodes returns the nodes in the order they were added.
func (l *Lab) Nodes() []*Node {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]*Node(nil), l.nodes...)
}

// AddNode adds a cluster node, the i-th from 1, to the LAN. It has the
// addresses 172.18.0.(10+i) and fd00:172:18::(10+i), forwards both families,
// routes the pod networks of the other nodes to them, and sends the rest to
// the gateway. Its own pods live in 10.244.i.0/24 and fd00:10:244:i::/64.
func (l *Lab) AddNode(name string) (*Node, error) {
	l.mu.Lock()
	defer l.mu.Unlock()

	i := len(l.nodes) + 1
	if i > maxNodes {
		return nil, fmt.Errorf("adding node %s: a lab has at most %d", name, maxNodes)
	}
	h, err := l.addLANHost(name, fmt.Sprintf("node%d", i), firstNode+i, routerSysctls())
	if err != nil {
		return nil, fmt.Errorf("adding node %s: %w", name, err)
	}
	n := &Node{Host: *h, lab: l, index: i, pods: map[int]*Host{}, PodCIDRs: []netip.Prefix{
		netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(i), 0}), 24),
		netip.MustParsePrefix(fmt.Sprintf("fd00:10:244:%d::/64", i)),
	}}
	if err := l.connect(n); err != nil {
		return nil, errors.Join(fmt.Errorf("adding node %s: %w", name, err), l.drop(&n.Host))
	}
	l.nodes = append(l.nodes, n)
	return n, nil
}

// connect lays the routes between a new node, the others and the gateway.
func (l *Lab) connect(n *Node) error {
	for _, def := range []netip.Prefix{
		netip.PrefixFrom(netip.IPv4Unspecified(), 0), netip.PrefixFrom(netip.IPv6Unspecified(), 0),
	} {
		if err := n.AddRoute(def, l.gateway.addr(def)); err != nil {
			return err
		}
	}
	for _, other := range l.nodes {
		for _, cidr := range other.PodCIDRs {
			if err := n.AddRoute(cidr, other.addr(cidr)); err != nil {
				return err
			}
		}
		for _, cidr := range n.PodCIDRs {
			if err := other.AddRoute(cidr, n.addr(cidr)); err != nil {
				return err
			}
		}
	}
	return nil
}

// AddClient adds a host outside the cluster, the i-th from 1, to the LAN, with
// the addresses 172.18.0.(100+i) and fd00:172:18::(100+i). It knows no way to
// anything but the LAN until AddRoute.
func (l *Lab) AddClient(name string) (*Host, error) {
	l.mu.Lock()
	defer l.mu.Unlock()

	i := len(l.clients) + 1
	if i > maxGuests {
		return nil, fmt.Errorf("adding client %s: a lab has at most %d", name, maxGuests)
	}
	h, err := l.addLANHost(name, fmt.Sprintf("client%d", i), firstGuest+i, nil)
	if err != nil {
		return nil, fmt.Errorf("adding client %s: %w", name, err)
	}
	l.clients = append(l.clients, h)
	return h, nil
}

// addLANHost makes a namespace that is plugged into the LAN with the given
// host part of its addresses; port is the link's name at the bridge. On error
// nothing stays behind. The caller holds l.mu.
func (l *Lab) addLANHost(name, port string, host int, sysctls []sysctl) (*Host, error) {
	h, err := l.newHost(name, lanAddr4(host), lanAddr6(host), sysctls)
	if err != nil {
		return nil, err
	}
	h.Port = port
	plug := func() error {
		veth := newVeth(port, h)
		veth.MasterIndex = l.bridge
		if err := l.gateway.ns.nl.LinkAdd(veth); err != nil {
			return fmt.Errorf("adding link %s: %w", port, err)
		}
		if err := h.setUp(); err != nil {
			return err
		}
		return h.addLANAddrs()
	}
	if err := plug(); err != nil {
		return nil, errors.Join(err, l.drop(h))
	}
	return h, nil
}

// newHost makes a host with a namespace and no links. The caller holds l.mu.
func (l *Lab) newHost(name string, ipv4, ipv6 netip.Addr, sysctls []sysctl) (*Host, error) {
	switch {
	case l.closed:
		return nil, ErrClosed
	case !nameRE.MatchString(name):
		return nil, fmt.Errorf("%q is no name: want lower-case letters, digits and dashes", name)
	case l.names[name]:
		return nil, fmt.Errorf("the name %s is taken", name)
	}
	ns, err := newNamespace(name, l.spawner, sysctls...)
	if err != nil {
		return nil, err
	}
	l.names[name] = true
	return &Host{Name: name, IPv4: ipv4, IPv6: ipv6, Link: hostLink, ns: ns}, nil
}

// drop closes a LAN host and removes its link. The caller holds l.mu.
func (l *Lab) drop(h *Host) error {
	delete(l.names, h.Name)
	return errors.Join(h.ns.close(), l.gateway.delLink(h.Port))
}

// Close kills the processes that were started in the lab and removes every
// namespace and link it made. Everything is tried; the errors come joined.
// A second call does nothing.
func (l *Lab) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil
	}
	l.closed = true
	var errs []error
	for _, n := range l.nodes {
		for _, pod := range n.pods {
			errs = append(errs, n.drop(pod))
		}
		errs = append(errs, l.drop(&n.Host))
	}
	for _, c := range l.clients {
		errs = append(errs, l.drop(c))
	}
	errs = append(errs, l.gateway.delLink(lanLink), l.gateway.ns.close())
	l.spawner.close()
	return errors.Join(errs...)
}

// lanAddr4 returns the LAN's IPv4 address with the given host part, below 255.
func lanAddr4(host int) netip.Addr {
	return netip.AddrFrom4([4]byte{172, 18, 0, byte(host)})
}

// lanAddr6 is lanAddr4 for IPv6. The host part reads the same in both
// families, 11 is ::11, for people who look at packets.
func lanAddr6(host int) netip.Addr {
	return netip.MustParseAddr(fmt.Sprintf("fd00:172:18::%d", host))
}
