package netlab

import (
	"context"
	"fmt"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// eventBuffer holds the events of a ruleset of some 10,000 elements made at once.
const eventBuffer = 4 << 20

// Transactions calls each with the messages of every transaction that is committed to
// the nftables of h, as soon as the kernel says so, from a goroutine of its own until
// ctx ends. It calls failed when events were lost or could not be read.
func (h *Host) Transactions(ctx context.Context, each func([]netlink.Message), failed func(error)) error {
	var conn *netlink.Conn
	err := h.Do(func() (err error) {
		conn, err = netlink.Dial(unix.NETLINK_NETFILTER, nil)
		return err
	})
	if err != nil {
		return fmt.Errorf("opening a netlink socket on %s: %w", h.Name, err)
	}
	if err := conn.SetReadBuffer(eventBuffer); err != nil {
		return fmt.Errorf("enlarging the netlink buffer on %s: %w", h.Name, err)
	}
	if err := conn.JoinGroup(unix.NFNLGRP_NFTABLES); err != nil {
		return fmt.Errorf("subscribing to nftables on %s: %w", h.Name, err)
	}
	context.AfterFunc(ctx, func() { _ = conn.Close() }) // ends Receive
	go func() {
		var open []netlink.Message
		for {
			messages, err := conn.Receive()
			if err != nil {
				if ctx.Err() == nil {
					failed(fmt.Errorf("watching nftables on %s: %w", h.Name, err))
				}
				return
			}
			for _, m := range messages {
				open = append(open, m)
				// The new generation's number ends a transaction's events.
				if m.Header.Type == unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWGEN {
					each(open)
					open = nil
				}
			}
		}
	}()
	return nil
}
