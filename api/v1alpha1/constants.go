package v1alpha1

// Conditions on a Service. An event's reason is the reason of the condition it
// announces.
const (
	// ConditionAddressAssigned says whether the Service has the load balancer
	// addresses it wants, and if not, why.
	ConditionAddressAssigned = "fairlead.dev/AddressAssigned"
)
