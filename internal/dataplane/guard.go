package dataplane

import (
	"errors"

	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"fairlead.dev/fairlead/internal/ipfamily"
)

const (
	// guardName is a table beside ours that decides nothing.
	guardName = TableName + "-guard"

	// tableOwner is NFT_TABLE_F_OWNER (linux/netfilter/nf_tables.h, from 5.12 on): the
	// table belongs to the socket that made it and goes with it. Nobody else can change
	// it, and `flush ruleset` passes it by.
	tableOwner = 0x2
)

// guard keeps connections that stand from breaking while others have deleted or disabled
// our tables. With the last rules for it the kernel stops to track and translate at all: what an
// endpoint sends then reaches its client from an address which that does not know, and is
// answered with a reset. So one more chain, which nobody can take away, stays for
// as long as the agent runs. When that ends, our tables are there still.
type guard struct {
	conn        *netlink.Conn // nil while it does not stand
	unsupported bool
}

// stand sets the guard up where it does not stand yet. What keeps it from that, such as
// the guard of another agent that is about to end, is no reason not to write rules: it is
// tried again the next time.
func (g *guard) stand() {
	if g.conn != nil || g.unsupported {
		return
	}
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return
	}
	b := &batch{}
	for _, f := range ipfamily.All {
		b.addGuard(f)
	}
	if err := (&kernel{conn: conn}).transact(b.messages); err != nil {
		_ = conn.Close() // only a second close can fail
		// Older kernels do not know the flag.
		g.unsupported = errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL)
		return
	}
	g.conn = conn
}

func (b *batch) addGuard(f ipfamily.Family) {
	b.add(f, unix.NFT_MSG_NEWTABLE, netlink.Create, func(ae *netlink.AttributeEncoder) {
		ae.String(unix.NFTA_TABLE_NAME, guardName)
		ae.Uint32(unix.NFTA_TABLE_FLAGS, tableOwner)
	})
	// The first chain for nat brings the hooks of all, whichever it is (nf_nat_core.c,
	// nf_nat_register_fn).
	b.add(f, unix.NFT_MSG_NEWCHAIN, netlink.Create, func(ae *netlink.AttributeEncoder) {
		ae.String(unix.NFTA_CHAIN_TABLE, guardName)
		ae.String(unix.NFTA_CHAIN_NAME, chainPostrouting)
		ae.String(unix.NFTA_CHAIN_TYPE, "nat")
		ae.Nested(unix.NFTA_CHAIN_HOOK, func(nae *netlink.AttributeEncoder) error {
			nae.Uint32(unix.NFTA_HOOK_HOOKNUM, unix.NF_INET_POST_ROUTING)
			nae.Uint32(unix.NFTA_HOOK_PRIORITY, uint32(prioritySourceNAT))
			return nil
		})
	})
	// A rule about connections, whatever it says, keeps them tracked (nft_ct.c,
	// nft_ct_get_init).
	b.addRuleTo(guardName, f, chainPostrouting,
		&expr.Ct{Key: expr.CtKeyDIRECTION, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{0}},
		&expr.Verdict{Kind: expr.VerdictAccept})
}
