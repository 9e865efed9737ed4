package dataplane

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"strings"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"fairlead.dev/fairlead/internal/ipfamily"
)

// generation returns the number of the ruleset, which every transaction of anybody in
// this network namespace raises by one.
func (k *kernel) generation() (uint32, error) {
	replies, err := k.get(unix.NFT_MSG_GETGEN, unix.AF_UNSPEC, 0)
	if err != nil {
		return 0, fmt.Errorf("reading the nftables generation: %w", err)
	}
	for _, r := range replies {
		ad, err := attributesOf(r)
		if err != nil {
			return 0, err
		}
		for ad.Next() {
			if ad.Type() == unix.NFTA_GEN_ID {
				return ad.Uint32(), ad.Err()
			}
		}
	}
	return 0, errors.New("reading the nftables generation: the kernel's answer has none")
}

// skeleton returns the hash of all chains and rules of our tables, handles included, so
// that any edit changes it, and the marker chains that are there.
func (k *kernel) skeleton() (sum string, markers map[ipfamily.Family]string, err error) {
	h := sha256.New()
	markers = map[ipfamily.Family]string{}
	for _, f := range ipfamily.All {
		table := netlink.Attribute{Type: unix.NFTA_RULE_TABLE, Data: append([]byte(TableName), 0)}
		if err := k.hashTable(h, f); err != nil {
			return "", nil, err
		}
		chains, err := k.get(unix.NFT_MSG_GETCHAIN, family(f), netlink.Dump)
		if err != nil {
			return "", nil, fmt.Errorf("listing nftables chains: %w", err)
		}
		for _, m := range chains {
			if err := hashChain(h, m, f, markers); err != nil {
				return "", nil, err
			}
		}
		rules, err := k.get(unix.NFT_MSG_GETRULE, family(f), netlink.Dump, table)
		if err != nil {
			return "", nil, fmt.Errorf("listing nftables rules: %w", err)
		}
		for _, m := range rules {
			h.Write(m.Data[min(4, len(m.Data)):]) // but for the header, which has the generation
		}
	}
	return hex.EncodeToString(h.Sum(nil))[:16], markers, nil
}

// hashTable adds the flags of our table to h: a dormant one has no hooks.
func (k *kernel) hashTable(h hash.Hash, f ipfamily.Family) error {
	replies, err := k.get(unix.NFT_MSG_GETTABLE, family(f), 0,
		netlink.Attribute{Type: unix.NFTA_TABLE_NAME, Data: append([]byte(TableName), 0)})
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("reading nftables table %s %s: %w", familyName(f), TableName, err)
	}
	for _, m := range replies {
		ad, err := attributesOf(m)
		if err != nil {
			return err
		}
		for ad.Next() {
			if ad.Type() == unix.NFTA_TABLE_FLAGS {
				h.Write(ad.Bytes())
			}
		}
	}
	return nil
}

// hashChain adds a chain of our table to h by what an edit could change.
func hashChain(h hash.Hash, m netlink.Message, f ipfamily.Family, markers map[ipfamily.Family]string) error {
	ad, err := attributesOf(m)
	if err != nil {
		return err
	}
	var table, name string
	var rest []byte
	for ad.Next() {
		switch ad.Type() {
		case unix.NFTA_CHAIN_TABLE:
			table = ad.String()
		case unix.NFTA_CHAIN_NAME:
			name = ad.String()
		case unix.NFTA_CHAIN_HOOK, unix.NFTA_CHAIN_POLICY, unix.NFTA_CHAIN_TYPE:
			rest = append(rest, ad.Bytes()...)
		}
	}
	switch {
	case table != TableName:
	case strings.HasPrefix(name, markerPrefix):
		markers[f] = name
	default:
		h.Write(fmt.Appendf(nil, "%d %s %x\n", f, name, rest))
	}
	return ad.Err()
}

// contents reads all elements of our tables, but for what packets add to them. A set
// that is missing is fs.ErrNotExist; what we never write is errForeign.
func (k *kernel) contents() (Ruleset, error) {
	r := newReader()
	for _, f := range ipfamily.All {
		for _, def := range shapeOf(f).sets(false) {
			if def.dynamic > 0 {
				continue
			}
			replies, err := k.list(f, def.name)
			if err != nil {
				return Ruleset{}, err
			}
			for _, m := range replies {
				if err := eachElement(m, func(e element) error { return r.take(f, def.name, e) }); err != nil {
					return Ruleset{}, err
				}
			}
		}
	}
	return r.ruleset()
}

// list returns the messages that list the elements of a set.
func (k *kernel) list(f ipfamily.Family, set string) ([]netlink.Message, error) {
	replies, err := k.get(unix.NFT_MSG_GETSETELEM, family(f), netlink.Dump,
		netlink.Attribute{Type: unix.NFTA_SET_ELEM_LIST_TABLE, Data: append([]byte(TableName), 0)},
		netlink.Attribute{Type: unix.NFTA_SET_ELEM_LIST_SET, Data: append([]byte(set), 0)})
	if err != nil {
		return nil, fmt.Errorf("listing nftables set %s %s: %w", familyName(f), set, err)
	}
	return replies, nil
}

// eachElement calls take with every element of a message that lists some.
func eachElement(m netlink.Message, take func(element) error) error {
	ad, err := attributesOf(m)
	if err != nil {
		return err
	}
	for ad.Next() {
		if ad.Type() != unix.NFTA_SET_ELEM_LIST_ELEMENTS {
			continue
		}
		ad.Nested(func(list *netlink.AttributeDecoder) error {
			for list.Next() {
				var e element
				list.Nested(e.decode)
				if err := take(e); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return ad.Err()
}

// decode reads what appendTo writes.
func (e *element) decode(ad *netlink.AttributeDecoder) error {
	for ad.Next() {
		switch ad.Type() {
		case unix.NFTA_SET_ELEM_KEY:
			ad.Nested(e.decodeData(&e.key))
		case nftSetElemKeyEnd:
			ad.Nested(e.decodeData(&e.keyEnd))
		case unix.NFTA_SET_ELEM_FLAGS:
			e.end = ad.Uint32()&unix.NFT_SET_ELEM_INTERVAL_END != 0
		case unix.NFTA_SET_ELEM_DATA:
			ad.Nested(e.decodeData(&e.data))
		case unix.NFTA_SET_ELEM_EXPR:
			ad.Nested(e.decodeCounter)
		}
	}
	return nil
}

func (e *element) decodeData(into *[]byte) func(*netlink.AttributeDecoder) error {
	return func(ad *netlink.AttributeDecoder) error {
		for ad.Next() {
			switch ad.Type() {
			case unix.NFTA_DATA_VALUE:
				*into = ad.Bytes()
			case unix.NFTA_DATA_VERDICT:
				ad.Nested(func(verdict *netlink.AttributeDecoder) error {
					for verdict.Next() {
						if verdict.Type() == unix.NFTA_VERDICT_CHAIN {
							e.goTo = verdict.String()
						}
					}
					return nil
				})
			}
		}
		return nil
	}
}

func attributesOf(m netlink.Message) (*netlink.AttributeDecoder, error) {
	if len(m.Data) < 4 {
		return nil, fmt.Errorf("nftables message of %d bytes has no header", len(m.Data))
	}
	ad, err := netlink.NewAttributeDecoder(m.Data[4:])
	if err != nil {
		return nil, err
	}
	ad.ByteOrder = binary.BigEndian
	return ad, nil
}
