package v1alpha1

// Conditions on a Service. An event's reason is the reason of the condition it
// announces.
const (
	// ConditionAddressAssigned says whether the Service has the load balancer
	// addresses it wants, and if not, why.
	ConditionAddressAssigned = "fairlead.dev/AddressAssigned"
)

// Reasons of ConditionAddressAssigned.
const (
	// ReasonAssigned: the Service has what it wants.
	ReasonAssigned = "Assigned"
	// ReasonNoAddress: the provider is done and gave no address.
	ReasonNoAddress = "NoAddress"
	// ReasonNoPool: there is no pool that it could have got addresses from.
	ReasonNoPool = "NoPool"
	// ReasonPoolExhausted: the pools it may use have no address free.
	ReasonPoolExhausted = "PoolExhausted"
	// ReasonPoolNotFound: it asks for a pool that does not exist.
	ReasonPoolNotFound = "PoolNotFound"
	// ReasonPoolConflict: it asks for a pool that overlaps an older one.
	ReasonPoolConflict = "PoolConflict"
	// ReasonAddressInvalid: what it asks for is not a list of addresses, at most
	// one per family.
	ReasonAddressInvalid = "AddressInvalid"
	// ReasonAddressNotInPool: it asks for an address that is in no pool, or not in
	// the pool that it asks for.
	ReasonAddressNotInPool = "AddressNotInPool"
	// ReasonAddressTaken: it asks for an address that another Service has.
	ReasonAddressTaken = "AddressTaken"
	// ReasonFamilyMismatch: it asks for an address of a family that it has not.
	ReasonFamilyMismatch = "FamilyMismatch"
	// ReasonConflictingRequests: it asks for addresses, or for a pool, in two ways.
	ReasonConflictingRequests = "ConflictingRequests"
)

// Reasons of events on a Service, those of upstream's service controller
// (k8s.io/cloud-provider/controllers/service), which alerts are written for.
// ReasonSyncLoadBalancerFailed and ReasonDeleteLoadBalancerFailed are reasons of
// ConditionAddressAssigned too.
const (
	ReasonEnsuringLoadBalancer     = "EnsuringLoadBalancer"
	ReasonEnsuredLoadBalancer      = "EnsuredLoadBalancer"
	ReasonUpdatedLoadBalancer      = "UpdatedLoadBalancer"
	ReasonSyncLoadBalancerFailed   = "SyncLoadBalancerFailed"
	ReasonDeletingLoadBalancer     = "DeletingLoadBalancer"
	ReasonDeletedLoadBalancer      = "DeletedLoadBalancer"
	ReasonDeleteLoadBalancerFailed = "DeleteLoadBalancerFailed"
	ReasonUnAvailableLoadBalancer  = "UnAvailableLoadBalancer"
)

// Reasons of events on a Service that nodes send.
const (
	// ReasonFailedToStartServiceHealthcheck: the health check node port cannot be
	// listened on. It is kube-proxy's, which alerts are written for.
	ReasonFailedToStartServiceHealthcheck = "FailedToStartServiceHealthcheck"
	// ReasonPartlyServed: part of the Service has no rules on the node.
	ReasonPartlyServed = "PartlyServed"
	// ReasonInvalidValue: a value of the object cannot be used, the rest is.
	ReasonInvalidValue = "InvalidValue"
)

// Conditions on an AddressPool, and their reasons.
const (
	// ConditionReady says whether addresses can be assigned from all of spec.addresses.
	ConditionReady = "Ready"
	// ConditionConflict says whether the pool has an address that an older pool has
	// too. It assigns nothing new then.
	ConditionConflict = "Conflict"

	// ReasonReady: all of spec.addresses is in use.
	ReasonReady = "Ready"
	// ReasonInvalidAddresses: some of spec.addresses cannot be used, the rest is.
	ReasonInvalidAddresses = "InvalidAddresses"
	// ReasonOverlap: an older pool has some of the addresses.
	ReasonOverlap = "Overlap"
	// ReasonNoOverlap: no older pool has any of the addresses.
	ReasonNoOverlap = "NoOverlap"
)

// Annotations on a Service that ask for something.
const (
	// AnnotationAddresses asks for addresses: a comma list, at most one per family.
	AnnotationAddresses = "fairlead.dev/addresses"
	// AnnotationPool asks for addresses from the AddressPool of that name.
	AnnotationPool = "fairlead.dev/pool"

	// The annotations of MetalLB are honoured, so that users can move without
	// editing Services. The second prefix is that of MetalLB before v0.13.10.
	AnnotationMetalLBAddresses    = "metallb.io/loadBalancerIPs"
	AnnotationMetalLBPool         = "metallb.io/address-pool"
	AnnotationOldMetalLBAddresses = "metallb.universe.tf/loadBalancerIPs"
	AnnotationOldMetalLBPool      = "metallb.universe.tf/address-pool"

	// AnnotationScheduler says how the endpoint of a new connection is picked. It is
	// one of the Scheduler constants, SchedulerRandom where there is none.
	AnnotationScheduler = "fairlead.dev/scheduler"
)

// Values of AnnotationScheduler.
const (
	SchedulerRandom     = "random"
	SchedulerRoundRobin = "round-robin"
	SchedulerSourceHash = "source-hash"
	SchedulerMaglev     = "maglev"
)

// AnnotationWeights on a pod is its share of new connections beside the other endpoints',
// a whole number from 1, the default, to MaxWeight. On an EndpointSlice it is a JSON
// object of the same by address, such as {"10.244.1.2":3}; what is no such number in a
// pod is a string there, so that the nodes can say so.
const (
	AnnotationWeights = "fairlead.dev/weights"
	MaxWeight         = 100
)

// Annotations on a Service that are written together with its cleanup finalizer, and
// go with it. Nothing else tells whose the load balancer is once the Service has changed:
// the API server wipes spec.loadBalancerClass with the type, and the finalizer is the
// same for every controller.
const (
	// AnnotationProvider names the provider that holds a load balancer.
	AnnotationProvider = "fairlead.dev/provider"
	// AnnotationProviderClass is the loadBalancerClass that the controller in front of
	// the provider is configured with, also where the Service has none.
	AnnotationProviderClass = "fairlead.dev/provider-class"
)
