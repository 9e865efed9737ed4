package dataplane

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"fairlead.dev/fairlead/internal/ipfamily"
)

// inspectTries is how often the rules are read for a listing that nobody wrote into.
const inspectTries = 5

// ErrNotInstalled means that there are no rules of fairlead in a network namespace.
var ErrNotInstalled = errors.New("no rules of fairlead are installed here " +
	"(is `fairlead node` running on this node, and is this the network namespace of the node?)")

// Installed is what the kernel has, whoever wrote it.
type Installed struct {
	Config  Config
	Ruleset Ruleset
	// Ours says that chains and rules are those that this version makes of Config.
	Ours bool
	// Moving says that the rules changed while they were read, so that what belongs
	// together may be from before and after a change.
	Moving bool
	// Counts are of the frontends that had any packets; nil where Config has no Counters.
	Counts map[Frontend]Count
}

// Inspect reads the rules of the network namespace of the calling thread. It returns
// ErrNotInstalled where there are none, ErrPermission where this process may not look.
func Inspect() (Installed, error) {
	var k kernel
	defer func() { k.close() }()
	var out Installed
	var readErr error
	for range inspectTries {
		before, err := k.generation()
		if err != nil {
			return Installed{}, err
		}
		out, readErr = inspect(&k)
		after, err := k.generation()
		if err != nil {
			return Installed{}, err
		}
		if out.Moving = before != after; !out.Moving {
			break
		}
	}
	return out, readErr
}

func inspect(k *kernel) (Installed, error) {
	ruleset, err := k.contents()
	if errors.Is(err, fs.ErrNotExist) {
		return Installed{}, fmt.Errorf("%w: %w", ErrNotInstalled, err)
	}
	if err != nil {
		return Installed{}, err
	}
	cfg, err := installedConfig()
	if err != nil {
		return Installed{}, err
	}
	sum, markers, err := k.skeleton()
	if err != nil {
		return Installed{}, err
	}
	out := Installed{Config: cfg, Ruleset: ruleset, Ours: true}
	if cfg.Counters {
		if out.Counts, err = ReadCounters(); err != nil {
			return Installed{}, err
		}
	}
	expected := NewSink(cfg).marker(sum)
	for _, f := range ipfamily.All {
		out.Ours = out.Ours && markers[f] == expected
	}
	return out, nil
}

// installedConfig reads what the rules were made of out of those that differ by it. The
// chain of ClusterIPs tells no pods where all is masqueraded; that of policy Local does.
func installedConfig() (cfg Config, err error) {
	conn, err := nftables.New()
	if err != nil {
		return cfg, fmt.Errorf("opening a netlink socket: %w", explain(err))
	}
	read := func(chain string) []*nftables.Rule {
		table := &nftables.Table{Name: TableName, Family: nftables.TableFamilyIPv4}
		rules, readErr := conn.GetRules(table, &nftables.Chain{Name: chain, Table: table})
		if readErr != nil {
			err = errors.Join(err, fmt.Errorf("listing rules of nftables chain ip %s %s: %w", TableName, chain, readErr))
		}
		return rules
	}
	cluster, local := read(chainCluster), read(chainLocal)
	cfg.Counters = len(read(chainCountPrerouting)) > 0
	cfg.MasqueradeAll = len(cluster) == 1 && goesTo(cluster[0], chainMasquerade)
	if len(local) > 1 {
		cfg.Local = localTrafficOf(local[0])
	}
	return cfg, err
}

func goesTo(r *nftables.Rule, chain string) bool {
	for _, e := range r.Exprs {
		if v, ok := e.(*expr.Verdict); ok && v.Kind == expr.VerdictGoto && v.Chain == chain {
			return true
		}
	}
	return false
}

// localTrafficOf reads what fromPods writes.
func localTrafficOf(r *nftables.Rule) (l LocalTraffic) {
	byInterface := false
	for _, e := range r.Exprs {
		switch e := e.(type) {
		case *expr.Lookup:
			l.CIDRs = l.CIDRs || e.SetName == setPods
		case *expr.Meta:
			byInterface = byInterface || e.Key == expr.MetaKeyIIFNAME
		case *expr.Cmp:
			// A whole name is compared with the zeros behind it.
			switch name, _, whole := bytes.Cut(e.Data, []byte{0}); {
			case !byInterface:
			case whole:
				l.Bridge = string(name)
			default:
				l.InterfacePrefix = string(name)
			}
		}
	}
	return l
}
