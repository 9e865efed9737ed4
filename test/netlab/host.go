package netlab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Host is a network namespace with an address of each family: a pod, a client,
// or what is the same in all of them of a node.
type Host struct {
	Name       string // also that of the namespace under /run/netns
	IPv4, IPv6 netip.Addr
	Link       string // the host's own link: eth0
	Port       string // the other end of Link: at the bridge, or a pod's at its node

	ns *namespace
}

// Do runs fn on a thread inside the host's namespace: sockets that fn itself
// makes are the host's, those of goroutines it starts are not. The files of
// /proc/net are those of the process; /proc/thread-self/net has the host's.
// Processes belong to Start. The error is fn's, or that of getting in or out.
func (h *Host) Do(fn func() error) error { return h.ns.do(fn) }

// Start is cmd.Start inside the host's namespace. The process is killed when
// the host is removed or the lab closed, and when this process ends in
// whichever way; not so the processes that it starts in turn. The caller waits
// for cmd as usual.
func (h *Host) Start(cmd *exec.Cmd) error {
	if err := h.ns.start(cmd); err != nil {
		return fmt.Errorf("starting %s on %s: %w", cmd.Path, h.Name, err)
	}
	return nil
}

// Output runs a command inside the host's namespace and returns what it wrote
// to standard output; an error carries what it wrote to standard error.
func (h *Host) Output(ctx context.Context, name string, args ...string) ([]byte, error) {
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.WaitDelay = time.Second // for a grandchild that keeps the pipes open
	if err := h.Start(cmd); err != nil {
		return nil, err
	}
	if err := cmd.Wait(); err != nil {
		return stdout.Bytes(), fmt.Errorf("running %s on %s: %w\n%s", cmd.Path, h.Name, err, bytes.TrimSpace(stderr.Bytes()))
	}
	return stdout.Bytes(), nil
}

// AddAddr gives the host another address on its own link, usable at once. An
// address that several hosts share belongs on lo instead: a host solicits
// IPv6 neighbours from the address it answers from if the link has it (RFC
// 4861, 7.2.2), and the advertisement would find its way to any of them.
func (h *Host) AddAddr(prefix netip.Prefix) error {
	link, err := h.ns.nl.LinkByName(h.Link)
	if err == nil {
		err = h.ns.nl.AddrAdd(link, address(prefix))
	}
	if err != nil {
		return fmt.Errorf("adding address %s to %s: %w", prefix, h.Name, err)
	}
	return nil
}

// DelAddr takes an address from the host again.
func (h *Host) DelAddr(prefix netip.Prefix) error {
	link, err := h.ns.nl.LinkByName(h.Link)
	if err == nil {
		err = h.ns.nl.AddrDel(link, address(prefix))
	}
	if err != nil {
		return fmt.Errorf("deleting address %s from %s: %w", prefix, h.Name, err)
	}
	return nil
}

// AddRoute sends packets for dst to the routers via, split equally by
// connection when there are several, or looks for dst on the host's own link
// when there is none. A route to the same dst is replaced.
func (h *Host) AddRoute(dst netip.Prefix, via ...netip.Addr) error {
	err := func() error {
		link, err := h.ns.nl.LinkByName(h.Link)
		if err != nil {
			return err
		}
		route, err := newRoute(link.Attrs().Index, dst, via)
		if err != nil {
			return err
		}
		return h.ns.nl.RouteReplace(route)
	}()
	if err != nil {
		return fmt.Errorf("adding the route to %s via %v on %s: %w", dst, via, h.Name, err)
	}
	return nil
}

// DelRoute removes the route to dst that AddRoute made.
func (h *Host) DelRoute(dst netip.Prefix) error {
	if err := h.ns.nl.RouteDel(&netlink.Route{Dst: ipNet(dst)}); err != nil {
		return fmt.Errorf("deleting the route to %s on %s: %w", dst, h.Name, err)
	}
	return nil
}

// newRoute returns the route of AddRoute. The link with the given index is
// only named where the kernel cannot derive it from the router's address.
func newRoute(index int, dst netip.Prefix, via []netip.Addr) (*netlink.Route, error) {
	route := &netlink.Route{Dst: ipNet(dst.Masked())}
	for _, v := range via {
		if v.Is4() != dst.Addr().Is4() {
			return nil, errors.New("the families differ")
		}
		hop := &netlink.NexthopInfo{Gw: v.AsSlice()}
		if v.IsLinkLocalUnicast() {
			hop.LinkIndex = index
		}
		route.MultiPath = append(route.MultiPath, hop)
	}
	switch len(via) {
	case 0:
		route.LinkIndex, route.Scope = index, netlink.SCOPE_LINK
	case 1:
		route.Gw, route.LinkIndex = route.MultiPath[0].Gw, route.MultiPath[0].LinkIndex
		route.MultiPath = nil
	}
	return route, nil
}

// addr returns the host's address of the family of p.
func (h *Host) addr(p netip.Prefix) netip.Addr {
	if p.Addr().Is4() {
		return h.IPv4
	}
	return h.IPv6
}

// addLANAddrs gives the host its addresses on the LAN.
func (h *Host) addLANAddrs() error {
	return errors.Join(h.AddAddr(netip.PrefixFrom(h.IPv4, 24)), h.AddAddr(netip.PrefixFrom(h.IPv6, 64)))
}

// setUp sets the host's own link up.
func (h *Host) setUp() error {
	link, err := h.ns.nl.LinkByName(h.Link)
	if err == nil {
		err = h.ns.nl.LinkSetUp(link)
	}
	if err != nil {
		return fmt.Errorf("setting link %s of %s up: %w", h.Link, h.Name, err)
	}
	return nil
}

// delLink deletes a link of the host, which may have gone with its other end.
func (h *Host) delLink(name string) error {
	link, err := h.ns.nl.LinkByName(name)
	if err == nil {
		err = h.ns.nl.LinkDel(link)
	}
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("deleting link %s of %s: %w", name, h.Name, err)
	}
	return nil
}

// nodeMAC is the node's end of every pod's link, the same one as each has
// nobody else on it.
var nodeMAC = net.HardwareAddr{0xee, 0xee, 0xee, 0xee, 0xee, 0xee}

// hardwareAddr derives the address of a host's link from its IPv4 address, so
// that captures can be read: 0a:58, which is locally administered, and the
// four bytes.
func hardwareAddr(ipv4 netip.Addr) net.HardwareAddr {
	return append(net.HardwareAddr{0x0a, 0x58}, ipv4.AsSlice()...)
}

// newVeth returns a pair of links to be made: port where it is added, and
// hostLink in the namespace of h.
func newVeth(port string, h *Host) *netlink.Veth {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = port
	attrs.Flags = net.FlagUp
	veth := netlink.NewVeth(attrs)
	veth.PeerName = h.Link
	veth.PeerHardwareAddr = hardwareAddr(h.IPv4)
	veth.PeerNamespace = netlink.NsFd(h.ns.fd)
	return veth
}

// permanent returns a neighbour entry that needs no discovery.
func permanent(link int, addr netip.Addr, mac net.HardwareAddr) *netlink.Neigh {
	return &netlink.Neigh{LinkIndex: link, IP: addr.AsSlice(), HardwareAddr: mac, State: unix.NUD_PERMANENT}
}

// address returns p for netlink, without duplicate address detection.
func address(p netip.Prefix) *netlink.Addr {
	a := &netlink.Addr{IPNet: ipNet(p)}
	if p.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD
	}
	return a
}

// hostPrefix returns the prefix that holds addr alone.
func hostPrefix(addr netip.Addr) netip.Prefix { return netip.PrefixFrom(addr, addr.BitLen()) }

// ipNet returns p as the netlink package wants it.
func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
