package node

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/go-logr/logr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/util/wait"

	"fairlead.dev/fairlead/internal/kubeproxy"
)

const (
	// updateBuffer holds the news of some thousand addresses that come at once.
	updateBuffer = 1 << 20

	// resubscribeWait is between two subscriptions, after the kernel had more to say
	// than the buffer held.
	resubscribeWait = time.Second
)

// watchAddrs delivers the host's addresses to the intake, now and whenever some come or
// go. It returns once the first ones are in, and goes on until ctx ends.
func watchAddrs(ctx context.Context, in *intake, logger logr.Logger) error {
	updates, err := subscribeAddrs(ctx, in)
	if err != nil {
		return err
	}
	go func() {
		for ctx.Err() == nil {
			followAddrs(updates, in, logger)
			// The subscription ended: news were lost, so list and subscribe anew.
			_ = wait.PollUntilContextCancel(ctx, resubscribeWait, false, func(ctx context.Context) (bool, error) {
				updates, err = subscribeAddrs(ctx, in)
				return err == nil, nil
			}) // ends with ctx only
		}
	}()
	return nil
}

// subscribeAddrs subscribes, and then delivers what is there, so that nothing is missed
// in between.
func subscribeAddrs(ctx context.Context, in *intake) (chan netlink.AddrUpdate, error) {
	updates, done := make(chan netlink.AddrUpdate, 1024), make(chan struct{})
	if err := netlink.AddrSubscribeWithOptions(updates, done, netlink.AddrSubscribeOptions{
		ReceiveBufferSize: updateBuffer,
		ErrorCallback:     func(error) {}, // the channel is closed then
	}); err != nil {
		return nil, fmt.Errorf("watching the host's addresses: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { close(done) })
	if err := deliverAddrs(in); err != nil {
		if stop() {
			close(done) // the next try subscribes anew
		}
		return nil, err
	}
	return updates, nil
}

// followAddrs delivers the addresses after each run of updates, until the channel is
// closed.
func followAddrs(updates chan netlink.AddrUpdate, in *intake, logger logr.Logger) {
	for range updates {
		for len(updates) > 0 {
			<-updates
		}
		if err := deliverAddrs(in); err != nil {
			logger.Error(err, "Node ports stay on the addresses known so far")
		}
	}
}

// deliverAddrs delivers the whole listing, for its order.
func deliverAddrs(in *intake) error {
	addrs, err := localAddrs()
	if err != nil {
		return err
	}
	in.push(false, func(m *model) { m.setLocalAddrs(addrs) })
	return nil
}

// localAddrs returns the addresses of all interfaces in the order of interfaces,
// without those that other hosts cannot reach: link-local and loopback ones, and those
// that are not usable yet, and without the virtual ones that a kube-proxy in ipvs mode has
// or left behind.
func localAddrs() ([]netip.Addr, error) {
	list, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	// Torn by a change, whose own news brings the next listing.
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, fmt.Errorf("listing the host's addresses: %w", err)
	}
	virtual := -1
	if link, err := netlink.LinkByName(kubeproxy.IPVSLink); err == nil {
		virtual = link.Attrs().Index
	}
	var out []netip.Addr
	for _, a := range list {
		addr, ok := netip.AddrFromSlice(a.IP)
		if !ok || a.LinkIndex == virtual || a.Flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED) != 0 {
			continue
		}
		if addr = addr.Unmap(); !addr.IsLoopback() && !addr.IsLinkLocalUnicast() {
			out = append(out, addr)
		}
	}
	return out, nil
}
