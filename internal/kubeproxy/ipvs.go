package kubeproxy

import (
	"context"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

const (
	// IPVSLink is the link that ipvs mode binds all virtual addresses to.
	IPVSLink = "kube-ipvs0"

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
	_, err := netlink.LinkByName(IPVSLink)
	if _, missing := errors.AsType[netlink.LinkNotFoundError](err); missing {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("looking for link %s: %w", IPVSLink, err)
	}
	return true, nil
}

// removeLink deletes the link with the virtual addresses of ipvs mode.
func removeLink(context.Context) (report Report, err error) {
	link, err := netlink.LinkByName(IPVSLink)
	if _, missing := errors.AsType[netlink.LinkNotFoundError](err); missing {
		return report, nil
	}
	if err == nil {
		err = netlink.LinkDel(link)
	}
	if err != nil {
		return report, fmt.Errorf("deleting link %s: %w", IPVSLink, err)
	}
	report.Removed = append(report.Removed, "link "+IPVSLink)
	return report, nil
}

// removeIPSets destroys the sets that the iptables rules of ipvs mode ask. They are asked
// for by name: others' sets, which can be long, need not be listed.
func removeIPSets(context.Context) (report Report, err error) {
	var errs []error
	for _, name := range ipSets {
		switch err := destroyIPSet(name); {
		case err == nil:
			report.Removed = append(report.Removed, "IP set "+name)
		case errors.Is(err, unix.ENOENT):
		case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP):
			return report, nil // this kernel has no IP sets
		default:
			errs = append(errs, fmt.Errorf("destroying IP set %s: %w", name, err))
		}
	}
	return report, errors.Join(errs...)
}

// destroyIPSet returns ENOENT where there is no such set, as netlink.IpsetDestroy does
// not.
func destroyIPSet(name string) error {
	req := nl.NewNetlinkRequest(nl.IPSET_CMD_DESTROY|unix.NFNL_SUBSYS_IPSET<<8, unix.NLM_F_ACK|unix.NLM_F_EXCL)
	req.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_UNSPEC, Version: nl.NFNETLINK_V0})
	req.AddData(nl.NewRtAttr(nl.IPSET_ATTR_PROTOCOL, nl.Uint8Attr(nl.IPSET_PROTOCOL)))
	req.AddData(nl.NewRtAttr(nl.IPSET_ATTR_SETNAME, nl.ZeroTerminated(name)))
	_, err := req.Execute(unix.NETLINK_NETFILTER, 0)
	if errno, ok := errors.AsType[unix.Errno](err); ok && int(errno) >= nl.IPSET_ERR_PRIVATE {
		return nl.IPSetError(errno)
	}
	return err
}
