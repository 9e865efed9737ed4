package netlab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// sysctl is one setting of a network namespace, as in ip-sysctl.rst of the
// kernel's documentation.
type sysctl struct {
	path     string // under /proc/sys
	value    string
	optional bool // some kernels have it once per machine, out of our reach
}

// hostSysctls returns what every namespace gets, so that packets are neither
// delayed nor dropped by guards which the tests are not about. A new namespace
// inherits some of them from the machine (devconf_inherit_init_net).
func hostSysctls() []sysctl {
	settings := []sysctl{
		// REJECT is answered each time, not once a second per destination.
		{path: "net/ipv4/icmp_ratemask", value: "0"},
		{path: "net/ipv6/icmp/ratelimit", value: "0"},
		{path: "net/ipv4/icmp_msgs_per_sec", value: "1000000", optional: true},
		// Equal-cost paths are chosen by ports, too.
		{path: "net/ipv4/fib_multipath_hash_policy", value: "1"},
		{path: "net/ipv6/fib_multipath_hash_policy", value: "1"},
		{path: "net/ipv4/conf/lo/rp_filter", value: "0"},
	}
	for _, scope := range []string{"all", "default"} {
		settings = append(settings,
			sysctl{path: "net/ipv4/conf/" + scope + "/rp_filter", value: "0"},
			// Nobody finds a shorter way than the one the lab laid.
			sysctl{path: "net/ipv4/conf/" + scope + "/send_redirects", value: "0"},
			sysctl{path: "net/ipv4/conf/" + scope + "/accept_redirects", value: "0"},
			sysctl{path: "net/ipv6/conf/" + scope + "/accept_redirects", value: "0"},
			// Addresses are usable at once, without duplicate address
			// detection's second of waiting (RFC 4862, 5.4).
			sysctl{path: "net/ipv6/conf/" + scope + "/accept_dad", value: "0"},
			sysctl{path: "net/ipv6/conf/" + scope + "/accept_ra", value: "0"},
			sysctl{path: "net/ipv6/conf/" + scope + "/router_solicitations", value: "0"},
		)
	}
	return settings
}

// routerSysctls returns what a namespace that forwards packets gets on top.
func routerSysctls() []sysctl {
	return []sysctl{
		{path: "net/ipv4/ip_forward", value: "1"},
		{path: "net/ipv6/conf/all/forwarding", value: "1"},
	}
}

// setSysctls writes settings in the calling thread's network namespace.
func setSysctls(settings []sysctl) error {
	for _, s := range settings {
		err := os.WriteFile(filepath.Join("/proc/sys", s.path), []byte(s.value), 0o644)
		switch {
		case err == nil:
		case s.optional && (errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission)):
		case errors.Is(err, syscall.EROFS):
			return fmt.Errorf("setting sysctl: %w: the container mounts /proc/sys read-only; "+
				"run it privileged (docker: --security-opt systempaths=unconfined)", err)
		case errors.Is(err, fs.ErrNotExist):
			return fmt.Errorf("setting sysctl: %w: the kernel lacks it; is IPv6 compiled in and on?", err)
		default:
			return fmt.Errorf("setting sysctl: %w", err)
		}
	}
	return nil
}
