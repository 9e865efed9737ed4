// Package service is the node's model of Services: plain values decoded from the
// Kubernetes API, with no clients, no clocks and no I/O.
package service

import (
	"net/netip"
	"strconv"
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

// String returns "TCP", "UDP" or "SCTP", the names that Kubernetes uses.
func (p Protocol) String() string {
	switch p {
	case TCP:
		return "TCP"
	case UDP:
		return "UDP"
	case SCTP:
		return "SCTP"
	default:
		return strconv.Itoa(int(p))
	}
}

// Scheduler says how the endpoint of a new connection is picked.
type Scheduler uint8

// The schedulers, by the values of annotation fairlead.dev/scheduler.
const (
	Random     Scheduler = iota // "random", the default
	RoundRobin                  // "round-robin": in turn
	SourceHash                  // "source-hash": by a hash of the client's address
	Maglev                      // "maglev": by a hash that moves few clients when endpoints change
)

// Backend is an endpoint of a Service port that should get new connections.
type Backend struct {
	Addr netip.AddrPort
	// Local says that the endpoint may be on this node: a packet of its own can come
	// back to it. It is true also of one that does not say where it is, which no policy
	// Local takes for one of this node.
	Local bool
	// Weight is its share of new connections beside the others', at least 1.
	Weight uint16
}

// Backends are endpoints by family, each in address order.
type Backends [len(ipfamily.All)][]Backend

// Port is one port of a Service with what stands behind it.
type Port struct {
	Name     string
	Protocol Protocol
	Port     uint16
	NodePort uint16 // 0 for none
	// Cluster are the usable endpoints of the whole cluster, after topology, Local
	// those on this node, only where a policy of the Service is Local. They are judged
	// separately: draining endpoints of this node are in Local while there are ready
	// ones elsewhere.
	Cluster, Local Backends
	// Serving are the endpoints that still serve but are neither in Cluster nor in
	// Local, in address order: flows that they have are theirs to end.
	Serving [len(ipfamily.All)][]netip.AddrPort
}

// Service is what a node has to know of a Service. It is immutable once in a Snapshot.
type Service struct {
	Name    types.NamespacedName
	Created time.Time
	// UID and ResourceVersion are for references to it, in Events. The version may be an
	// older one where nothing else differs.
	UID             types.UID
	ResourceVersion string
	// ClusterIPs, ExternalIPs and LoadBalancerIPs are the addresses it is reached at,
	// of both families. LoadBalancerIPs are those of ipMode VIP.
	ClusterIPs, ExternalIPs, LoadBalancerIPs []netip.Addr
	Ports                                    []Port

	// InternalLocal is internalTrafficPolicy Local, ExternalLocal externalTrafficPolicy
	// Local of a Service that can be reached from outside.
	InternalLocal, ExternalLocal bool
	// Affinity is for how long a client stays with its endpoint after its last new
	// connection, in whole seconds; 0 for no affinity.
	Affinity time.Duration
	// SourceRanges are who may reach the LoadBalancerIPs, of both families and in order;
	// nil is everyone. A family without a range is closed where SourceRanges is not nil,
	// also when it is empty: then no range that was asked for could be used. It has
	// 0.0.0.0/0 or ::/0 only where that family is open and the other is not.
	SourceRanges []netip.Prefix
	Scheduler    Scheduler
	// HealthCheckNodePort is 0 for none. ReadyLocal is how many addresses with a ready
	// endpoint there are on this node, of each family; only the health check tells it,
	// so it is 0 without.
	HealthCheckNodePort uint16
	ReadyLocal          [len(ipfamily.All)]int

	// Faults say which values of the object could not be used, by field; the rest is.
	Faults []string
}

// Snapshot is the whole desired state of a node. It is an immutable value.
type Snapshot struct {
	Services persistent.Map[types.NamespacedName, *Service]
	// NodePortAddrs are the addresses of this node that serve node ports, in order.
	NodePortAddrs []netip.Addr
	// NodeAddrs are all addresses of this node that other hosts can reach, in order.
	NodeAddrs []netip.Addr
	// PodCIDRs are the ranges that pods are told by, of both families, in order: those
	// of the cluster or of this node, as configured.
	PodCIDRs []netip.Prefix
	// ServiceCIDRs are the ranges that ClusterIPs come from, of both families, in order.
	ServiceCIDRs []netip.Prefix
}
