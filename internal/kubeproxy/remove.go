package kubeproxy

import (
	"context"
	"errors"
)

// Report says in words what was done, a line for each thing.
type Report struct {
	// Removed is what was there and is gone, such as "link kube-ipvs0".
	Removed []string
	// Kept is what is kube-proxy's and was left, with the reason.
	Kept []string
}

func (r *Report) add(other Report) {
	r.Removed = append(r.Removed, other.Removed...)
	r.Kept = append(r.Kept, other.Kept...)
}

// Remove removes what kube-proxy of any mode left in the network namespace of the
// calling thread: tables of nftables, chains of iptables in both its makings, virtual
// servers, link and IP sets of ipvs mode. Each is tried whatever becomes of the others;
// the errors come joined, and calling it again is safe. Rules of other programs in the
// same tables stay.
//
// Chains of iptables over nf_tables need no program of the node; those of the legacy
// kind are removed by iptables-legacy-restore, and where there are such tables without
// that program an error says so.
func Remove(ctx context.Context) (Report, error) {
	var report Report
	var errs []error
	for _, remove := range []func(context.Context) (Report, error){
		removeTables, removeChains, removeLegacy,
		removeVirtualServers, removeLink, // in this order, the link tells of the mode
		removeIPSets, // after the rules that use them
	} {
		done, err := remove(ctx)
		report.add(done)
		errs = append(errs, err)
	}
	return report, errors.Join(errs...)
}
