package kubeproxy

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

const (
	// ipvsLink is the link that ipvs mode binds all virtual addresses to.
	ipvsLink = "kube-ipvs0"

	// From linux/ip_vs.h.
	ipvsFamily   = "IPVS"
	ipvsVersion  = 1
	ipvsCmdFlush = 17
)

// removeVirtualServers deletes the virtual servers of IPVS, all of them, as kube-proxy
// does when it cleans up: its node ports cannot be told from other servers. So it does
// that only where kube-proxy's link says that it ran in ipvs mode here.
func removeVirtualServers(context.Context) (report Report, err error) {
	if there, err := hasLink(); err != nil || !there {
		return report, err
	}
	family, err := netlink.GenlFamilyGet(ipvsFamily)
	if errors.Is(err, unix.ENOENT) {
		return report, nil // this kernel has no IPVS, or has not loaded it
	}
	if err != nil {
		return report, fmt.Errorf("looking for IPVS: %w", err)
	}
	req := nl.NewNetlinkRequest(int(family.ID), unix.NLM_F_ACK)
	req.AddData(&nl.Genlmsg{Command: ipvsCmdFlush, Version: ipvsVersion})
	if _, err := req.Execute(unix.NETLINK_GENERIC, 0); err != nil {
		return report, fmt.Errorf("deleting the virtual servers of IPVS: %w", err)
	}
	report.Removed = append(report.Removed, "all virtual servers of IPVS")
	return report, nil
}

func hasLink() (bool, error) {
	_, err := netlink.LinkByName(ipvsLink)
	if _, missing := errors.AsType[netlink.LinkNotFoundError](err); missing {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("looking for link %s: %w", ipvsLink, err)
	}
	return true, nil
}

// removeLink deletes the link with the virtual addresses of ipvs mode.
func removeLink(context.Context) (report Report, err error) {
	link, err := netlink.LinkByName(ipvsLink)
	if _, missing := errors.AsType[netlink.LinkNotFoundError](err); missing {
		return report, nil
	}
	if err == nil {
		err = netlink.LinkDel(link)
	}
	if err != nil {
		return report, fmt.Errorf("deleting link %s: %w", ipvsLink, err)
	}
	report.Removed = append(report.Removed, "link "+ipvsLink)
	return report, nil
}

// removeIPSets destroys the sets that the iptables rules of ipvs mode ask.
func removeIPSets(context.Context) (report Report, err error) {
	list, err := netlink.IpsetListAll()
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOENT) {
		return report, nil // this kernel has no IP sets, or has not loaded them
	}
	if err != nil {
		return report, fmt.Errorf("listing IP sets: %w", err)
	}
	var sets []string
	for _, set := range list {
		if isIPSet(set.SetName) {
			sets = append(sets, set.SetName)
		}
	}
	slices.Sort(sets)
	var errs []error
	for _, name := range slices.Compact(sets) { // a large one comes in several parts
		if err := netlink.IpsetDestroy(name); err != nil {
			errs = append(errs, fmt.Errorf("destroying IP set %s: %w", name, err))
			continue
		}
		report.Removed = append(report.Removed, "IP set "+name)
	}
	return report, errors.Join(errs...)
}
