package kubeproxy

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// tables are the tables of iptables that kube-proxy has chains in.
var tables = []string{"nat", "filter", "mangle"}

// entries are the chains that kube-proxy leads to from the built-in ones.
var entries = names("KUBE-SERVICES", "KUBE-EXTERNAL-SERVICES", "KUBE-NODEPORTS", "KUBE-FORWARD",
	"KUBE-PROXY-FIREWALL", "KUBE-POSTROUTING", "KUBE-NODE-PORT", "KUBE-IPVS-FILTER", "KUBE-IPVS-OUT-FILTER")

// inner are its other chains with a fixed name. The kubelet's stay: KUBE-MARK-DROP,
// KUBE-FIREWALL, KUBE-KUBELET-CANARY and KUBE-IPTABLES-HINT. Other programs have
// names with KUBE- too, such as kube-router's KUBE-ROUTER-INPUT, so nothing is taken
// for kube-proxy's by that alone.
var inner = names("KUBE-MARK-MASQ", "KUBE-PROXY-CANARY", "KUBE-SOURCE-RANGES-FIREWALL", "KUBE-LOAD-BALANCER")

// perService begin the names of the chains of a Service port or an endpoint; KUBE-XLB-
// is that of versions before 1.25.
var perService = []string{"KUBE-SVC-", "KUBE-SVL-", "KUBE-EXT-", "KUBE-FW-", "KUBE-SEP-", "KUBE-XLB-"}

// maxIPSetName is the length of the longest name that an IP set can have (IPSET_MAXNAMELEN),
// where kube-proxy cuts its own off.
const maxIPSetName = 31

// ipSets are the sets of ipvs mode, for IPv4 and IPv6.
var ipSets = func() (out []string) {
	for _, prefix := range []string{"KUBE-", "KUBE-6-"} {
		for _, name := range []string{"LOOP-BACK", "CLUSTER-IP", "EXTERNAL-IP", "EXTERNAL-IP-LOCAL",
			"LOAD-BALANCER", "LOAD-BALANCER-LOCAL", "LOAD-BALANCER-FW", "LOAD-BALANCER-SOURCE-IP",
			"LOAD-BALANCER-SOURCE-CIDR", "NODE-PORT-TCP", "NODE-PORT-LOCAL-TCP", "NODE-PORT-UDP",
			"NODE-PORT-LOCAL-UDP", "NODE-PORT-SCTP-HASH", "NODE-PORT-LOCAL-SCTP-HASH",
			"HEALTH-CHECK-NODE-PORT", "IPVS-IPS"} {
			out = append(out, (prefix + name)[:min(len(prefix+name), maxIPSetName)])
		}
	}
	return out
}()

func names(list ...string) map[string]bool {
	out := make(map[string]bool, len(list))
	for _, n := range list {
		out[n] = true
	}
	return out
}

// isChain says whether a chain of that name is kube-proxy's.
func isChain(name string) bool {
	return entries[name] || inner[name] ||
		slices.ContainsFunc(perService, func(p string) bool { return strings.HasPrefix(name, p) })
}

// chain is a chain of one table of iptables.
type chain struct {
	builtIn bool
	// jumps are the rules that lead to other chains, in order.
	jumps []jump
}

// jump is a rule that leads to another chain. Its handle is what a backend deletes it by.
type jump struct {
	target string
	handle any
}

// plan is what to do about one table.
type plan struct {
	// jumps are the rules to delete from built-in chains, by chain.
	jumps map[string][]jump
	// chains are to be deleted with all their rules, in the order of names.
	chains []string
	// kept are chains of kube-proxy that somebody else's rules lead to, in the order of
	// names. Without them those rules could not be either.
	kept []string
}

// planTable says what of a table is kube-proxy's left-over. Everybody else's rules stay,
// with the chains they lead to.
func planTable(table map[string]chain) plan {
	p := plan{jumps: map[string][]jump{}}
	kept := map[string]bool{}
	for name, c := range table {
		if isChain(name) {
			continue
		}
		for _, j := range c.jumps {
			if c.builtIn && entries[j.target] {
				p.jumps[name] = append(p.jumps[name], j)
			} else {
				keep(table, j.target, kept)
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(table)) {
		if kept[name] {
			p.kept = append(p.kept, name)
		} else if isChain(name) {
			p.chains = append(p.chains, name)
		}
	}
	return p
}

// keep adds a chain to kept, where it is kube-proxy's, and all it leads to.
func keep(table map[string]chain, name string, kept map[string]bool) {
	if _, ok := table[name]; !ok || kept[name] || !isChain(name) {
		return
	}
	kept[name] = true
	for _, j := range table[name].jumps {
		keep(table, j.target, kept)
	}
}

// words says what p removes and keeps of a table, which is called where.
func (p plan) words(where string) (report Report) {
	if len(p.chains) > 0 {
		report.Removed = append(report.Removed, some(p.chains)+" of "+where)
	} else if len(p.jumps) > 0 {
		report.Removed = append(report.Removed, "rules of "+where)
	}
	if len(p.kept) > 0 {
		report.Kept = append(report.Kept, some(p.kept)+" of "+where+", which somebody else's rules lead to")
	}
	return report
}

// some names the first of a list, which may be long.
func some(chains []string) string {
	const named = 3
	if len(chains) <= named {
		return "chains " + strings.Join(chains, ", ")
	}
	return fmt.Sprintf("chains %s and %d more", strings.Join(chains[:named], ", "), len(chains)-named)
}
