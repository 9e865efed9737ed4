package conntrack

import (
	"encoding/binary"
	"iter"
	"net/netip"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"fairlead.dev/fairlead/internal/ipfamily"
	"fairlead.dev/fairlead/internal/service"
)

// Values of linux/netfilter/nfnetlink_conntrack.h, nf_conntrack_common.h and
// nf_conntrack_tcp.h.
const (
	msgGet    = 1
	msgDelete = 2

	ctaTupleOrig  = 1
	ctaTupleReply = 2
	ctaStatus     = 3
	ctaProtoInfo  = 4
	ctaID         = 12
	ctaZone       = 18
	ctaFilter     = 25
	ctaStatusMask = 26

	ctaTupleIP    = 1
	ctaTupleProto = 2

	ctaIPv4Src = 1
	ctaIPv4Dst = 2
	ctaIPv6Src = 3
	ctaIPv6Dst = 4

	ctaProtoNum     = 1
	ctaProtoSrcPort = 2
	ctaProtoDstPort = 3

	ctaProtoInfoTCP      = 1
	ctaProtoInfoTCPState = 1

	ctaFilterOrigFlags = 1
	filterIPDst        = 1 << 1
	filterProtoNum     = 1 << 3
	filterProtoDstPort = 1 << 5

	statusSeenReply = 1 << 1
	tcpSynSent      = 1
)

// attrTypeMask takes the flags off the type of an attribute (linux/netlink.h).
const attrTypeMask = 1<<14 - 1

// nfgen is the size of the header that follows netlink's: family, version, resource.
const nfgen = 4

func ctType(msg uint16) netlink.HeaderType {
	return netlink.HeaderType(unix.NFNL_SUBSYS_CTNETLINK<<8 | msg)
}

func header(f ipfamily.Family) []byte {
	if f == ipfamily.IPv4 {
		return []byte{unix.AF_INET, unix.NFNETLINK_V0, 0, 0}
	}
	return []byte{unix.AF_INET6, unix.NFNETLINK_V0, 0, 0}
}

// query says which flows to walk over.
type query struct {
	family   ipfamily.Family
	protocol service.Protocol
	// to is the original destination; an invalid address and port 0 are any.
	addr netip.Addr
	port uint16
}

// request asks the kernel for the flows of q; of TCP for those that had no reply yet.
// Unfiltered it asks for all flows of the family.
func (q query) request(unfiltered bool) (netlink.Message, error) {
	m := netlink.Message{
		Header: netlink.Header{Type: ctType(msgGet), Flags: netlink.Request | netlink.Dump},
		Data:   header(q.family),
	}
	if unfiltered {
		return m, nil
	}
	flags := uint32(filterProtoNum)
	ae := netlink.NewAttributeEncoder()
	ae.Nested(ctaTupleOrig, func(ae *netlink.AttributeEncoder) error {
		// For IPv6 the kernel leaves out exactly what was asked for: in 6.18
		// ctnetlink_filter_match_tuple compares the wrong way round.
		if q.addr.Is4() {
			flags |= filterIPDst
			ae.Nested(ctaTupleIP, func(ae *netlink.AttributeEncoder) error {
				ae.Bytes(ctaIPv4Dst, q.addr.AsSlice())
				return nil
			})
		}
		ae.Nested(ctaTupleProto, func(ae *netlink.AttributeEncoder) error {
			ae.Uint8(ctaProtoNum, uint8(q.protocol))
			if q.port != 0 {
				flags |= filterProtoDstPort
				ae.Bytes(ctaProtoDstPort, binary.BigEndian.AppendUint16(nil, q.port))
			}
			return nil
		})
		return nil
	})
	ae.Nested(ctaFilter, func(ae *netlink.AttributeEncoder) error {
		ae.Uint32(ctaFilterOrigFlags, flags)
		return nil
	})
	if q.protocol == service.TCP {
		ae.Bytes(ctaStatus, make([]byte, 4))
		ae.Bytes(ctaStatusMask, binary.BigEndian.AppendUint32(nil, statusSeenReply))
	}
	attributes, err := ae.Encode()
	m.Data = append(m.Data, attributes...)
	return m, err
}

// flow is an entry of the table. Its slices are of the datagram that it came in.
type flow struct {
	protocol service.Protocol
	to       netip.AddrPort // the original destination
	backend  netip.AddrPort // who replies; to itself where nothing is translated
	opening  bool           // TCP in SYN_SENT

	family          byte
	tuple, id, zone []byte // what the kernel knows it by; zone is empty for the default one
}

// decode reads an entry, and says whether it is a whole one of TCP or UDP.
func (fl *flow) decode(data []byte) bool {
	if len(data) < nfgen {
		return false
	}
	var value [ctaZone + 1][]byte
	for kind, v := range attributes(data[nfgen:]) {
		if int(kind) < len(value) {
			value[kind] = v
		}
	}
	status := value[ctaStatus]
	if len(status) != 4 || len(value[ctaID]) != 4 {
		return false
	}
	*fl = flow{
		opening: decodeTCPState(value[ctaProtoInfo]) == tcpSynSent && binary.BigEndian.Uint32(status)&statusSeenReply == 0,
		family:  data[0], tuple: value[ctaTupleOrig], id: value[ctaID], zone: value[ctaZone],
	}
	fl.protocol, _, fl.to = decodeTuple(fl.tuple)
	protocol, backend, _ := decodeTuple(value[ctaTupleReply])
	fl.backend = backend
	known := fl.protocol == service.TCP || fl.protocol == service.UDP
	return known && protocol == fl.protocol && fl.to.Addr().IsValid() && backend.Addr().IsValid()
}

// removal asks the kernel to remove the flow, if it is still the same. Without a tuple
// the kernel would remove all flows, so that one without is never made: see decode.
func (fl *flow) removal() (netlink.Message, error) {
	attrs := []netlink.Attribute{{Type: netlink.Nested | ctaTupleOrig, Data: fl.tuple}, {Type: ctaID, Data: fl.id}}
	if len(fl.zone) > 0 {
		attrs = append(attrs, netlink.Attribute{Type: ctaZone, Data: fl.zone})
	}
	data, err := netlink.MarshalAttributes(attrs)
	return netlink.Message{
		Header: netlink.Header{Type: ctType(msgDelete), Flags: netlink.Request | netlink.Acknowledge},
		Data:   append([]byte{fl.family, unix.NFNETLINK_V0, 0, 0}, data...),
	}, err
}

// decodeTuple returns what a tuple says, with invalid addresses where it says nothing.
func decodeTuple(data []byte) (protocol service.Protocol, src, dst netip.AddrPort) {
	var from, to netip.Addr
	var fromPort, toPort uint16
	for kind, value := range attributes(data) {
		switch kind {
		case ctaTupleIP:
			from, to = decodeAddrs(value)
		case ctaTupleProto:
			protocol, fromPort, toPort = decodePorts(value)
		}
	}
	return protocol, netip.AddrPortFrom(from, fromPort), netip.AddrPortFrom(to, toPort)
}

func decodeAddrs(data []byte) (src, dst netip.Addr) {
	for kind, value := range attributes(data) {
		switch kind {
		case ctaIPv4Src, ctaIPv6Src:
			src, _ = netip.AddrFromSlice(value)
		case ctaIPv4Dst, ctaIPv6Dst:
			dst, _ = netip.AddrFromSlice(value)
		}
	}
	return src, dst
}

func decodePorts(data []byte) (protocol service.Protocol, src, dst uint16) {
	for kind, value := range attributes(data) {
		switch {
		case kind == ctaProtoNum && len(value) == 1:
			protocol = service.Protocol(value[0])
		case kind == ctaProtoSrcPort && len(value) == 2:
			src = binary.BigEndian.Uint16(value)
		case kind == ctaProtoDstPort && len(value) == 2:
			dst = binary.BigEndian.Uint16(value)
		}
	}
	return protocol, src, dst
}

// decodeTCPState returns 0, which is none, for another protocol.
func decodeTCPState(data []byte) (state byte) {
	for kind, value := range attributes(data) {
		if kind != ctaProtoInfoTCP {
			continue
		}
		for kind, value := range attributes(value) {
			if kind == ctaProtoInfoTCPState && len(value) == 1 {
				state = value[0]
			}
		}
	}
	return state
}

// attributes iterates over attributes in place, for a table of a million flows has ten
// million of them: the netlink library's decoder allocates for each level.
func attributes(data []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for len(data) >= unix.NLA_HDRLEN {
			size := int(binary.NativeEndian.Uint16(data))
			kind := binary.NativeEndian.Uint16(data[2:]) & attrTypeMask
			if size < unix.NLA_HDRLEN || size > len(data) || !yield(kind, data[unix.NLA_HDRLEN:size]) {
				return
			}
			data = data[min((size+unix.NLA_ALIGNTO-1)&^(unix.NLA_ALIGNTO-1), len(data)):]
		}
	}
}
