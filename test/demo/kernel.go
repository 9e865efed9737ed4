package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"fairlead.dev/fairlead/internal/dataplane"
)

// nfgenmsgLen is the length of struct nfgenmsg, which stands before the attributes
// (linux/netfilter/nfnetlink.h).
const nfgenmsgLen = 4

// watchRules records what is committed to the nftables of n until ctx ends.
func watchRules(ctx context.Context, n *node, pods []*pod, events *recorder, failed func(error)) error {
	return n.Transactions(ctx, func(messages []netlink.Message) {
		tx := transaction{node: n.Name, pods: pods}
		for _, m := range messages {
			tx.take(m)
		}
		for _, e := range tx.events {
			events.add(e)
		}
	}, failed)
}

// transaction collects what the messages of a transaction are about.
type transaction struct {
	node   string
	pods   []*pod
	events []event
}

func (tx *transaction) take(m netlink.Message) {
	if len(m.Data) < nfgenmsgLen {
		return
	}
	switch m.Header.Type & 0xff { // the rest is the subsystem
	case unix.NFT_MSG_NEWSETELEM, unix.NFT_MSG_DELSETELEM:
		for _, p := range tx.pods {
			if bytes.Contains(m.Data, p.IPv4.AsSlice()) || bytes.Contains(m.Data, p.IPv6.AsSlice()) {
				tx.note(event{kind: committed, pod: p.Name, place: tx.node})
			}
		}
	case unix.NFT_MSG_NEWTABLE:
		tx.noteTable(made, m.Data[nfgenmsgLen:])
	case unix.NFT_MSG_DELTABLE:
		tx.noteTable(unmade, m.Data[nfgenmsgLen:])
	default: // chains and rules are not looked at
	}
}

func (tx *transaction) note(e event) {
	if !slices.Contains(tx.events, e) {
		tx.events = append(tx.events, e)
	}
}

// noteTable notes an event for each table of ours: there is one for each family.
func (tx *transaction) noteTable(k kind, attributes []byte) {
	decoder, err := netlink.NewAttributeDecoder(attributes)
	if err != nil {
		return // the kernel does not send such
	}
	for decoder.Next() {
		if decoder.Type() == unix.NFTA_TABLE_NAME && decoder.String() == dataplane.TableName {
			tx.events = append(tx.events, event{kind: k, place: tx.node})
		}
	}
}

// rules is what nft says about our tables on a node.
type rules struct {
	frontends map[frontend]bool
	words     map[string]bool // every address among the elements
}

// frontend is what a Service can be reached at.
type frontend struct {
	addr     netip.Addr
	protocol string // "tcp" or "udp"
	port     uint16
}

func (f frontend) String() string {
	return fmt.Sprintf("%s/%s", netip.AddrPortFrom(f.addr, f.port), f.protocol)
}

// listRules asks nft on the node, as anybody can who wants to see the rules.
func (d *demo) listRules(ctx context.Context, n *node) (rules, error) {
	out, err := n.Output(ctx, d.bin.nft, "--json", "--numeric", "list", "ruleset")
	if err != nil {
		return rules{}, err
	}
	r, err := parseRules(out)
	if err != nil {
		return r, fmt.Errorf("reading the rules of %s: %w", n.Name, err)
	}
	return r, nil
}

// parseRules reads the elements of maps and sets in nft's JSON (libnftables-json(5)).
func parseRules(data []byte) (rules, error) {
	var ruleset struct {
		Nftables []map[string]struct {
			Table string            `json:"table"`
			Elem  []json.RawMessage `json:"elem"`
		} `json:"nftables"`
	}
	r := rules{frontends: map[frontend]bool{}, words: map[string]bool{}}
	if err := json.Unmarshal(data, &ruleset); err != nil {
		return r, err
	}
	for _, object := range ruleset.Nftables {
		for kind, o := range object {
			if (kind != "map" && kind != "set") || o.Table != dataplane.TableName {
				continue
			}
			for _, raw := range o.Elem {
				var element any
				if err := json.Unmarshal(raw, &element); err != nil {
					return r, err
				}
				r.addElement(element)
			}
		}
	}
	return r, nil
}

// addElement takes a set's element, or a map's as [key, value].
func (r *rules) addElement(element any) {
	walk(element, func(word string) { r.words[word] = true })
	pair, ok := element.([]any)
	if !ok || len(pair) == 0 {
		return
	}
	key, ok := pair[0].(map[string]any)
	if !ok {
		return
	}
	if parts, ok := key["concat"].([]any); ok && len(parts) == 3 {
		addr, addrErr := netip.ParseAddr(fmt.Sprint(parts[0]))
		port, isPort := parts[2].(float64)
		if addrErr == nil && isPort {
			r.frontends[frontend{addr, protocolName(parts[1]), uint16(port)}] = true
		}
	}
}

// protocolName returns the name of a protocol that nft may give by number.
func protocolName(v any) string {
	switch v {
	case float64(unix.IPPROTO_TCP):
		return "tcp"
	case float64(unix.IPPROTO_UDP):
		return "udp"
	default:
		return strings.ToLower(fmt.Sprint(v))
	}
}

// walk calls visit with every string in a JSON value.
func walk(v any, visit func(string)) {
	switch v := v.(type) {
	case string:
		visit(v)
	case []any:
		for _, e := range v {
			walk(e, visit)
		}
	case map[string]any:
		for _, e := range v {
			walk(e, visit)
		}
	}
}
