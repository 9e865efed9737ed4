package dataplane

import (
	"encoding/binary"
	"fmt"

	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"fairlead.dev/fairlead/internal/ipfamily"
)

// The messages of nf_tables (linux/netfilter/nf_tables.h) are put together here rather
// than by github.com/google/nftables, which asks for an acknowledgement of every
// message: a few hundred of them overflow the receive buffer that an unprivileged
// process can have. Here a batch asks for one, and element lists are written straight
// into their buffer. Expressions, the intricate part, are that library's.

const (
	// elementsPerMessage keeps a list of elements, each at most 104 bytes long, below
	// the 65,535 bytes that a netlink attribute can hold.
	elementsPerMessage = 600

	// Not in golang.org/x/sys/unix yet (linux/netfilter/nf_tables.h).
	nftSetConcat     = 0x80
	nftSetDescConcat = 2
	nftSetFieldLen   = 1
	nftSetElemKeyEnd = 10
	nftDynsetDelete  = 2

	// User data that tells nft how to print keys and data (libnftnl udata.h).
	udataKeyByteOrder  = 0
	udataDataByteOrder = 1
	udataHostEndian    = 1
)

// datatype is a type of nft: its number in nft's datatype.h, by which nft knows how to
// print a value, and its size in bytes.
type datatype struct{ magic, size uint32 }

var (
	typeIPv4    = datatype{7, 4}
	typeIPv6    = datatype{8, 16}
	typeProto   = datatype{12, 1}
	typeService = datatype{13, 2}
	typeMark    = datatype{19, 4}
	typeClassID = datatype{23, 4}
)

// concat returns the number and length of a concatenation: six bits a type, every
// field padded to a register of four bytes (nft datatype.c, concat_type_alloc).
func concat(types []datatype) (magic, length uint32) {
	for _, t := range types {
		magic = magic<<6 | t.magic
		length += (t.size + 3) &^ 3
	}
	return magic, length
}

// setDef defines a set, a map where data is given, a verdict map where verdicts is.
type setDef struct {
	name      string
	key, data []datatype
	verdicts  bool
	interval  bool   // elements are ranges of the key's last field
	dynamic   uint32 // how many elements packets may add; 0 for none
	expires   bool   // those elements have a timeout
}

// element is one element of a set or map.
type element struct {
	key, data []byte
	keyEnd    []byte // the last key of a range, in a set of concatenations
	end       bool   // the key is the first behind a range, in a set of one field
	goTo      string // of a verdict map

	packets, bytes uint64 // of its counter, read only
}

// batch is a transaction in the making.
type batch struct {
	messages []netlink.Message
	err      error
}

func family(f ipfamily.Family) byte {
	if f == ipfamily.IPv4 {
		return unix.NFPROTO_IPV4
	}
	return unix.NFPROTO_IPV6
}

// header is struct nfgenmsg.
func header(family byte, resource uint16) []byte {
	return binary.BigEndian.AppendUint16([]byte{family, unix.NFNETLINK_V0}, resource)
}

func nftType(t uint16) netlink.HeaderType {
	return netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | t)
}

func (b *batch) add(f ipfamily.Family, msgType uint16, flags netlink.HeaderFlags, attributes func(*netlink.AttributeEncoder)) {
	ae := netlink.NewAttributeEncoder()
	ae.ByteOrder = binary.BigEndian
	attributes(ae)
	data, err := ae.Encode()
	if err != nil && b.err == nil {
		b.err = fmt.Errorf("encoding nftables message %d: %w", msgType, err)
	}
	b.append(nftType(msgType), flags, append(header(family(f), 0), data...))
}

func (b *batch) append(t netlink.HeaderType, flags netlink.HeaderFlags, data []byte) {
	b.messages = append(b.messages, netlink.Message{
		Header: netlink.Header{Type: t, Flags: netlink.Request | flags},
		Data:   data,
	})
}

func (b *batch) addTable(f ipfamily.Family) {
	b.add(f, unix.NFT_MSG_NEWTABLE, netlink.Create, func(ae *netlink.AttributeEncoder) {
		ae.String(unix.NFTA_TABLE_NAME, TableName)
	})
}

func (b *batch) deleteTable(f ipfamily.Family) {
	b.add(f, unix.NFT_MSG_DELTABLE, 0, func(ae *netlink.AttributeEncoder) {
		ae.String(unix.NFTA_TABLE_NAME, TableName)
	})
}

// hook is where a base chain is called, and with what priority.
type hook struct {
	number   uint32
	priority int32
	filter   bool // sees all packets; a chain for nat sees the first of a connection
}

func (b *batch) addChain(f ipfamily.Family, name string, h *hook) {
	b.add(f, unix.NFT_MSG_NEWCHAIN, netlink.Create, func(ae *netlink.AttributeEncoder) {
		ae.String(unix.NFTA_CHAIN_TABLE, TableName)
		ae.String(unix.NFTA_CHAIN_NAME, name)
		if h == nil {
			return
		}
		kind := "nat"
		if h.filter {
			kind = "filter"
		}
		ae.String(unix.NFTA_CHAIN_TYPE, kind)
		ae.Nested(unix.NFTA_CHAIN_HOOK, func(nae *netlink.AttributeEncoder) error {
			nae.Uint32(unix.NFTA_HOOK_HOOKNUM, h.number)
			nae.Uint32(unix.NFTA_HOOK_PRIORITY, uint32(h.priority))
			return nil
		})
	})
}

func (b *batch) addRule(f ipfamily.Family, chain string, exprs ...expr.Any) {
	b.addRuleTo(TableName, f, chain, exprs...)
}

func (b *batch) addRuleTo(table string, f ipfamily.Family, chain string, exprs ...expr.Any) {
	b.add(f, unix.NFT_MSG_NEWRULE, netlink.Create|netlink.Append, func(ae *netlink.AttributeEncoder) {
		ae.String(unix.NFTA_RULE_TABLE, table)
		ae.String(unix.NFTA_RULE_CHAIN, chain)
		ae.Nested(unix.NFTA_RULE_EXPRESSIONS, func(nae *netlink.AttributeEncoder) error {
			for _, e := range exprs {
				raw, err := expr.Marshal(family(f), e)
				if err != nil {
					return err
				}
				nae.Bytes(unix.NLA_F_NESTED|unix.NFTA_LIST_ELEM, raw)
			}
			return nil
		})
	})
}

func (b *batch) addSet(f ipfamily.Family, def setDef, id uint32) {
	keyMagic, keyLen := concat(def.key)
	var flags uint32
	if len(def.data) > 0 || def.verdicts {
		flags |= unix.NFT_SET_MAP
	}
	if len(def.key) > 1 {
		flags |= nftSetConcat
	}
	if def.interval {
		flags |= unix.NFT_SET_INTERVAL
	}
	if def.dynamic > 0 {
		flags |= unix.NFT_SET_EVAL
	}
	if def.expires {
		flags |= unix.NFT_SET_TIMEOUT
	}
	b.add(f, unix.NFT_MSG_NEWSET, netlink.Create, func(ae *netlink.AttributeEncoder) {
		ae.String(unix.NFTA_SET_TABLE, TableName)
		ae.String(unix.NFTA_SET_NAME, def.name)
		ae.Uint32(unix.NFTA_SET_ID, id)
		ae.Uint32(unix.NFTA_SET_FLAGS, flags)
		ae.Uint32(unix.NFTA_SET_KEY_TYPE, keyMagic)
		ae.Uint32(unix.NFTA_SET_KEY_LEN, keyLen)
		switch magic, length := concat(def.data); {
		case def.verdicts:
			ae.Uint32(unix.NFTA_SET_DATA_TYPE, unix.NFT_DATA_VERDICT)
		case length > 0:
			ae.Uint32(unix.NFTA_SET_DATA_TYPE, magic)
			ae.Uint32(unix.NFTA_SET_DATA_LEN, length)
		}
		ae.Nested(unix.NFTA_SET_DESC, func(nae *netlink.AttributeEncoder) error {
			if def.dynamic > 0 {
				nae.Uint32(unix.NFTA_SET_DESC_SIZE, def.dynamic)
			}
			if len(def.key) > 1 {
				nae.Nested(nftSetDescConcat, fieldLengths(def.key))
			}
			return nil
		})
		ae.Bytes(unix.NFTA_SET_USERDATA, byteOrders(def))
	})
}

// fieldLengths tells the fields of a concatenation; nft aborts when it lists a
// concatenation without them.
func fieldLengths(key []datatype) func(*netlink.AttributeEncoder) error {
	return func(ae *netlink.AttributeEncoder) error {
		for _, t := range key {
			ae.Nested(unix.NFTA_LIST_ELEM, func(nae *netlink.AttributeEncoder) error {
				nae.Uint32(nftSetFieldLen, t.size)
				return nil
			})
		}
		return nil
	}
}

// byteOrders says that single class ids are in the byte order of the host; other types
// know their own. An entry is type, length, value (libnftnl udata.c).
func byteOrders(def setDef) []byte {
	var out []byte
	for kind, types := range [][]datatype{udataKeyByteOrder: def.key, udataDataByteOrder: def.data} {
		if len(types) == 1 && types[0] == typeClassID {
			out = append(out, byte(kind), 4)
			out = binary.NativeEndian.AppendUint32(out, udataHostEndian)
		}
	}
	return out
}

func (b *batch) addElements(f ipfamily.Family, set string, elems elementList) {
	b.elements(f, set, unix.NFT_MSG_NEWSETELEM, netlink.Create, elems)
}

func (b *batch) deleteElements(f ipfamily.Family, set string, elems elementList) {
	b.elements(f, set, unix.NFT_MSG_DELSETELEM, 0, elems)
}

func (b *batch) elements(f ipfamily.Family, set string, msgType uint16, flags netlink.HeaderFlags, elems elementList) {
	for _, list := range elems.lists {
		b.add(f, msgType, flags, func(ae *netlink.AttributeEncoder) {
			ae.String(unix.NFTA_SET_ELEM_LIST_TABLE, TableName)
			ae.String(unix.NFTA_SET_ELEM_LIST_SET, set)
			ae.Bytes(unix.NLA_F_NESTED|unix.NFTA_SET_ELEM_LIST_ELEMENTS, list)
		})
	}
}

// elementList are elements as they stand in messages, as many to each as fit.
type elementList struct {
	lists [][]byte
	last  int // elements in the last list
}

func listOf(elems ...element) (out elementList) {
	out.append(elems...)
	return out
}

func (l *elementList) append(elems ...element) {
	for _, e := range elems {
		if len(l.lists) == 0 || l.last == elementsPerMessage {
			l.lists, l.last = append(l.lists, nil), 0
		}
		at := &l.lists[len(l.lists)-1]
		*at = e.appendTo(*at)
		l.last++
	}
}

func (e element) appendTo(out []byte) []byte {
	value := func(v []byte) func([]byte) []byte {
		return func(out []byte) []byte { return attribute(out, unix.NFTA_DATA_VALUE, v) }
	}
	return nest(out, unix.NFTA_LIST_ELEM, func(out []byte) []byte {
		out = nest(out, unix.NFTA_SET_ELEM_KEY, value(e.key))
		if e.end {
			out = attribute(out, unix.NFTA_SET_ELEM_FLAGS, binary.BigEndian.AppendUint32(nil, unix.NFT_SET_ELEM_INTERVAL_END))
		}
		if len(e.keyEnd) > 0 {
			out = nest(out, nftSetElemKeyEnd, value(e.keyEnd))
		}
		switch {
		case e.goTo != "":
			out = nest(out, unix.NFTA_SET_ELEM_DATA, func(out []byte) []byte { return appendGoto(out, e.goTo) })
		case len(e.data) > 0:
			out = nest(out, unix.NFTA_SET_ELEM_DATA, value(e.data))
		}
		return out
	})
}

func appendGoto(out []byte, chain string) []byte {
	return nest(out, unix.NFTA_DATA_VERDICT, func(out []byte) []byte {
		code := int32(unix.NFT_GOTO)
		out = attribute(out, unix.NFTA_VERDICT_CODE, binary.BigEndian.AppendUint32(nil, uint32(code)))
		return attribute(out, unix.NFTA_VERDICT_CHAIN, append([]byte(chain), 0))
	})
}

// attribute appends a netlink attribute, padded to four bytes (linux/netlink.h).
func attribute(out []byte, t uint16, value []byte) []byte {
	out = binary.NativeEndian.AppendUint16(out, uint16(unix.NLA_HDRLEN+len(value)))
	out = binary.NativeEndian.AppendUint16(out, t)
	out = append(out, value...)
	return append(out, make([]byte, -len(value)&3)...)
}

func nest(out []byte, t uint16, inner func([]byte) []byte) []byte {
	start := len(out)
	out = inner(append(out, 0, 0, 0, 0))
	binary.NativeEndian.PutUint16(out[start:], uint16(len(out)-start))
	binary.NativeEndian.PutUint16(out[start+2:], unix.NLA_F_NESTED|t)
	return out
}

func (b *batch) deleteChain(f ipfamily.Family, name string) {
	b.add(f, unix.NFT_MSG_DELCHAIN, 0, func(ae *netlink.AttributeEncoder) {
		ae.String(unix.NFTA_CHAIN_TABLE, TableName)
		ae.String(unix.NFTA_CHAIN_NAME, name)
	})
}

// addEdits puts the edits of one phase into b.
func (b *batch) addEdits(phase map[setRef]*edits) {
	for ref, e := range phase {
		b.deleteElements(ref.family, ref.name, e.del)
		b.addElements(ref.family, ref.name, e.add)
	}
}
