package kubeproxy

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

const (
	// tableName is the name of its tables in nftables mode.
	tableName = "kube-proxy"

	// chunk is how many chains are deleted in one transaction: the kernel answers each
	// message, and 250 answers fill the receive buffer that every process can have.
	chunk = 200

	// buffer is the size of socket buffers asked for.
	buffer = 8 << 20
)

// families are those that kube-proxy has rules in, by their names in nft.
var families = []struct {
	name   string
	family nftables.TableFamily
}{{"ip", nftables.TableFamilyIPv4}, {"ip6", nftables.TableFamilyIPv6}}

// connect opens a connection to nf_tables of the calling thread's network namespace.
func connect() (*nftables.Conn, error) {
	conn, err := nftables.New(nftables.AsLasting(), nftables.WithSockOptions(func(c *netlink.Conn) error {
		_ = c.SetReadBuffer(buffer) // what is granted does, too
		_ = c.SetWriteBuffer(buffer)
		return nil
	}))
	if err != nil {
		return nil, fmt.Errorf("opening a netlink socket: %w", err)
	}
	return conn, nil
}

// hangUp closes a connection on which all is said and done.
func hangUp(conn *nftables.Conn) { _ = conn.CloseLasting() }

// removeTables deletes the tables of nftables mode.
func removeTables(context.Context) (report Report, err error) {
	conn, err := connect()
	if err != nil {
		return report, err
	}
	defer hangUp(conn)
	for _, f := range families {
		there, err := hasTable(conn, f.family, tableName)
		if err == nil && there {
			conn.DelTable(&nftables.Table{Name: tableName, Family: f.family})
			err = conn.Flush()
		}
		if err != nil {
			return report, fmt.Errorf("deleting table %s %s: %w", f.name, tableName, err)
		}
		if there {
			report.Removed = append(report.Removed, fmt.Sprintf("table %s %s of nftables", f.name, tableName))
		}
	}
	return report, nil
}

func hasTable(conn *nftables.Conn, family nftables.TableFamily, name string) (bool, error) {
	list, err := conn.ListTablesOfFamily(family)
	return slices.ContainsFunc(list, func(t *nftables.Table) bool { return t.Name == name }), err
}

// removeChains deletes the chains that iptables made over nf_tables.
func removeChains(context.Context) (report Report, err error) {
	conn, err := connect()
	if err != nil {
		return report, err
	}
	defer hangUp(conn)
	for _, f := range families {
		chains, err := conn.ListChainsOfTableFamily(f.family)
		if err != nil {
			return report, fmt.Errorf("listing chains of %s: %w", f.name, err)
		}
		for _, name := range tables {
			where := fmt.Sprintf("table %s %s of iptables-nft", f.name, name)
			done, err := removeChainsOf(conn, &nftables.Table{Name: name, Family: f.family}, chains, where)
			report.add(done)
			if err != nil {
				return report, fmt.Errorf("deleting chains of %s: %w", where, err)
			}
		}
	}
	return report, nil
}

func removeChainsOf(conn *nftables.Conn, table *nftables.Table, all []*nftables.Chain, where string) (Report, error) {
	chains := map[string]chain{}
	ours := false
	for _, c := range all {
		if c.Table.Name == table.Name {
			chains[c.Name] = chain{builtIn: c.Hooknum != nil}
			ours = ours || isChain(c.Name)
		}
	}
	if !ours {
		return Report{}, nil // nothing can lead to what is not there
	}
	for name, c := range chains {
		rules, err := conn.GetRules(table, &nftables.Chain{Name: name, Table: table})
		if err != nil {
			return Report{}, fmt.Errorf("listing rules of chain %s: %w", name, err)
		}
		c.jumps = jumps(rules)
		chains[name] = c
	}
	p := planTable(chains)
	if err := carryOut(conn, table, p); err != nil {
		return Report{}, err
	}
	return p.words(where), nil
}

// jumps returns those of rules that lead to other chains.
func jumps(rules []*nftables.Rule) []jump {
	var out []jump
	for _, r := range rules {
		for _, e := range r.Exprs {
			if v, ok := e.(*expr.Verdict); ok && (v.Kind == expr.VerdictJump || v.Kind == expr.VerdictGoto) {
				out = append(out, jump{target: v.Chain, handle: r.Handle})
			}
		}
	}
	return out
}

// carryOut cuts kube-proxy's chains off in one transaction, so that no packet sees a
// part of them, and then deletes them.
func carryOut(conn *nftables.Conn, table *nftables.Table, p plan) error {
	for name, jumps := range p.jumps {
		for _, j := range jumps {
			rule := &nftables.Rule{Table: table, Chain: &nftables.Chain{Name: name, Table: table}, Handle: j.handle.(uint64)}
			if err := conn.DelRule(rule); err != nil {
				return err
			}
		}
	}
	if err := conn.Flush(); err != nil {
		return explain(err)
	}
	// All are emptied before the first is deleted, since they lead to one another.
	for _, edit := range []func(*nftables.Chain){conn.FlushChain, conn.DelChain} {
		for names := range slices.Chunk(p.chains, chunk) {
			for _, name := range names {
				edit(&nftables.Chain{Name: name, Table: table})
			}
			if err := conn.Flush(); err != nil {
				return explain(err)
			}
		}
	}
	return nil
}

// explain says what the kernel means where that is not plain.
func explain(err error) error {
	if errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("somebody else's map leads to one of them: %w", err)
	}
	return err
}
