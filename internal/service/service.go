// Package service is the node's model of Services: plain values decoded from the
// Kubernetes API, with no clients, no clocks and no I/O.
package service

import (
	"net/netip"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"fairlead.dev/fairlead/internal/ipfamily"
	"fairlead.dev/fairlead/internal/persistent"
)

// Protocol is an IP protocol number.
type Protocol uint8

// The protocols a Service port can have (IANA protocol numbers).
const (
	TCP  Protocol = 6
	UDP  Protocol = 17
	SCTP Protocol = 132
)

// Backend is an endpoint of a Service port that should get new connections.
type Backend struct {
	Addr netip.AddrPort
	// Local says that the endpoint may be on this node: a packet of its own can come
	// back to it.
	Local bool
}

// Port is one port of a Service with what stands behind it.
type Port struct {
	Name     string
	Protocol Protocol
	Port     uint16
	NodePort uint16 // 0 for none
	// Backends are the usable endpoints of each family in address order.
	Backends [len(ipfamily.All)][]Backend
}

// Service is what a node has to know of a Service. It is immutable once in a Snapshot.
type Service struct {
	Name    types.NamespacedName
	Created time.Time
	// ClusterIPs, ExternalIPs and LoadBalancerIPs are the addresses it is reached at,
	// of both families. LoadBalancerIPs are those of ipMode VIP.
	ClusterIPs, ExternalIPs, LoadBalancerIPs []netip.Addr
	Ports                                    []Port
}

// Snapshot is the whole desired state of a node. It is an immutable value.
type Snapshot struct {
	Services persistent.Map[types.NamespacedName, *Service]
	// NodePortAddrs are the addresses of this node that serve node ports, in order.
	NodePortAddrs []netip.Addr
}
