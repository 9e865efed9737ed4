package dataplane

import (
	"errors"
	"fmt"
	"slices"

	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/types"

	"fairlead.dev/fairlead/internal/ipfamily"
	"fairlead.dev/fairlead/internal/service"
)

// Names of the chains that count packets: from elsewhere, and from this node.
const (
	chainCountPrerouting = "count_prerouting"
	chainCountOutput     = "count_output"
)

// priorityCount is between connection tracking and the translation of destinations, so
// that each packet still has the address that its sender gave it (linux/netfilter_ipv4.h).
const priorityCount = -150

// Count is what a frontend has had since its rules were made.
type Count struct {
	// Connections were begun, refused ones among them.
	Connections uint64
	// Packets and Bytes are what clients sent.
	Packets, Bytes uint64
}

// addCounters counts connections where they are dispatched, and packets where they come
// in, by what the client addressed.
func (s shape) addCounters(b *batch) {
	f := s.family
	count := func(set string) []expr.Any {
		return append(s.frontend(), &expr.Dynset{
			SrcRegKey: reg0, SetName: set, Operation: uint32(unix.NFT_DYNSET_OP_UPDATE), Exprs: []expr.Any{&expr.Counter{}},
		})
	}
	b.addRule(f, chainDispatch, count(setConnections)...)
	for _, chain := range []struct {
		name string
		hook uint32
	}{{chainCountPrerouting, unix.NF_INET_PRE_ROUTING}, {chainCountOutput, unix.NF_INET_LOCAL_OUT}} {
		b.addChain(f, chain.name, &hook{number: chain.hook, priority: priorityCount, filter: true})
		for _, frontends := range []string{mapClusterPorts, mapExternalPorts} {
			known := append(s.frontend(), &expr.Lookup{SourceRegister: reg0, SetName: frontends})
			b.addRule(f, chain.name, append(known, count(setPackets)...)...)
		}
		known := append(s.member(setNodeAddresses), append(s.portOnly(), &expr.Lookup{SourceRegister: reg0, SetName: mapNodePorts})...)
		b.addRule(f, chain.name, append(known, count(setPackets)...)...)
	}
}

// ReadCounters returns what the frontends of this network namespace have had, by the
// address that clients used: node ports are named with the node's address. It returns
// none where the rules do not count. It has a connection of its own, so it may be called
// beside a Sink at work.
func ReadCounters() (map[Frontend]Count, error) {
	var k kernel
	defer k.close()
	out := map[Frontend]Count{}
	for _, f := range ipfamily.All {
		for _, set := range []string{setConnections, setPackets} {
			replies, err := k.list(f, set)
			if errors.Is(err, unix.ENOENT) {
				continue
			}
			if err != nil {
				return nil, fmt.Errorf("reading counters: %w", err)
			}
			for _, m := range replies {
				if err := eachElement(m, func(e element) error { return e.count(f, set, out) }); err != nil {
					return nil, fmt.Errorf("reading counters: %w", err)
				}
			}
		}
	}
	return out, nil
}

func (e element) count(f ipfamily.Family, set string, out map[Frontend]Count) error {
	front, _, ok := frontendOf(f, externalTable, e.key)
	if !ok {
		return errForeign
	}
	c := out[front]
	if set == setConnections {
		c.Connections = e.packets
	} else {
		c.Packets, c.Bytes = e.packets, e.bytes
	}
	out[front] = c
	return nil
}

// decodeCounter reads a counter among an element's expressions.
func (e *element) decodeCounter(ad *netlink.AttributeDecoder) error {
	for ad.Next() {
		if ad.Type() != unix.NFTA_EXPR_DATA {
			continue
		}
		ad.Nested(func(counter *netlink.AttributeDecoder) error {
			for counter.Next() {
				switch counter.Type() {
				case unix.NFTA_COUNTER_PACKETS:
					e.packets = counter.Uint64()
				case unix.NFTA_COUNTER_BYTES:
					e.bytes = counter.Uint64()
				}
			}
			return nil
		})
	}
	return nil
}

// Plus returns the sum of both.
func (c Count) Plus(o Count) Count {
	return Count{c.Connections + o.Connections, c.Packets + o.Packets, c.Bytes + o.Bytes}
}

// Owner is the Service port that has a frontend.
type Owner struct {
	Service  types.NamespacedName
	Protocol service.Protocol
	Port     uint16
}

// Owner returns who has a frontend as FrontendOf and ReadCounters name it.
func (p Program) Owner(f Frontend) (Owner, bool) {
	names := []Frontend{{clusterTable, f.Addr, f.Protocol, f.Port}, {externalTable, f.Addr, f.Protocol, f.Port}}
	if p.Snapshot != nil && slices.Contains(p.Snapshot.NodePortAddrs, f.Addr) {
		names = append(names, Frontend{nodePortTable, unspecified(ipfamily.Of(f.Addr)), f.Protocol, f.Port})
	}
	for _, name := range names {
		if claims, ok := p.claims.Get(name); ok {
			key := claims[0].owner
			return Owner{key.service, key.protocol, key.port}, true
		}
	}
	return Owner{}, false
}
