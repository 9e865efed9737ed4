package node

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// watchAddrs delivers the host's addresses to the intake, now and whenever one comes or
// goes. It returns once the first ones are in.
func watchAddrs(ctx context.Context, in *intake) error {
	updates := make(chan netlink.AddrUpdate, 64)
	if err := netlink.AddrSubscribe(updates, ctx.Done()); err != nil {
		return fmt.Errorf("watching the host's addresses: %w", err)
	}
	addrs, err := localAddrs()
	if err != nil {
		return err
	}
	deliver := func(addrs []netip.Addr) { in.push(false, func(m *model) { m.setLocalAddrs(addrs) }) }
	deliver(addrs)
	go func() {
		for range updates {
			// The whole listing, for its order; a failed one leaves the last standing.
			if addrs, err := localAddrs(); err == nil {
				deliver(addrs)
			}
		}
	}()
	return nil
}

// localAddrs returns the addresses of all interfaces in the order of interfaces,
// without those that other hosts cannot reach: link-local and loopback ones, and those
// that are not usable yet.
func localAddrs() ([]netip.Addr, error) {
	list, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("listing the host's addresses: %w", err)
	}
	var out []netip.Addr
	for _, a := range list {
		addr, ok := netip.AddrFromSlice(a.IP)
		if !ok || a.Flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED) != 0 {
			continue
		}
		if addr = addr.Unmap(); !addr.IsLoopback() && !addr.IsLinkLocalUnicast() {
			out = append(out, addr)
		}
	}
	return out, nil
}
