package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// AddressPool is a set of addresses that LoadBalancer Services get theirs from.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,categories=fairlead
// +kubebuilder:printcolumn:name="Auto-Assign",type=boolean,JSONPath=`.spec.autoAssign`
// +kubebuilder:printcolumn:name="IPv4",type=integer,JSONPath=`.status.capacity.ipv4`,description="IPv4 addresses in the pool"
// +kubebuilder:printcolumn:name="IPv4-Assigned",type=integer,JSONPath=`.status.assigned.ipv4`
// +kubebuilder:printcolumn:name="IPv4-Available",type=integer,JSONPath=`.status.available.ipv4`
// +kubebuilder:printcolumn:name="IPv6",type=integer,JSONPath=`.status.capacity.ipv6`,description="IPv6 addresses in the pool",priority=1
// +kubebuilder:printcolumn:name="IPv6-Assigned",type=integer,JSONPath=`.status.assigned.ipv6`
// +kubebuilder:printcolumn:name="IPv6-Available",type=integer,JSONPath=`.status.available.ipv6`,priority=1
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type AddressPool struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   AddressPoolSpec   `json:"spec"`
	Status AddressPoolStatus `json:"status,omitempty"`
}

// AddressPoolSpec says which addresses, and for whom.
type AddressPoolSpec struct {
	// Addresses are CIDRs or from-to ranges, IPv4 and IPv6: 192.0.2.0/26,
	// 192.0.2.100-192.0.2.120, 2001:db8::/112. All addresses of a CIDR are used,
	// its first and last too.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=256
	// +listType=atomic
	Addresses []AddressRange `json:"addresses"`
	// AutoAssign says whether Services that ask for no pool and for no address get
	// addresses from here. Defaults to true.
	// +kubebuilder:default=true
	// +optional
	AutoAssign *bool `json:"autoAssign,omitempty"`
}

// AddressRange is a CIDR or a from-to range. 91 is the length of the longest pair of
// IPv6 addresses (INET6_ADDRSTRLEN is 46 with its NUL, RFC 3493 section 6.6) and a dash.
//
// Every rule fires for its own fault only, so that a value gets one message.
//
// The last rule finds reversed ranges. CEL's addresses have no order, and strings that
// split() made have no length for the API server's cost estimate, which then exceeds
// its limit; so the rule counts n, the leading bits that both ends share, first by
// sixteens and then by ones, and wants bit n+1 of the upper end to be set. The two
// string literals in it spell the prefix length, for which string(int) has no cost either.
//
// +kubebuilder:validation:MinLength=1
// +kubebuilder:validation:MaxLength=91
// +kubebuilder:validation:XValidation:rule="self.contains('/') ? (isIP(self.substring(0, self.indexOf('/'))) && self.substring(self.indexOf('/') + 1).matches('^(0|[1-9][0-9]{0,2})$')) : (self.contains('-') && isIP(self.substring(0, self.indexOf('-'))) && isIP(self.substring(self.indexOf('-') + 1)))",messageExpression="isIP(self) ? 'is one address; write it as ' + self + (ip(self).family() == 4 ? '/32' : '/128') : 'is neither a CIDR such as 192.0.2.0/24 nor a range such as 192.0.2.10-192.0.2.20'",reason=FieldValueInvalid
// +kubebuilder:validation:XValidation:rule="!self.contains('/') || !isIP(self.substring(0, self.indexOf('/'))) || !self.substring(self.indexOf('/') + 1).matches('^(0|[1-9][0-9]{0,2})$') || int(self.substring(self.indexOf('/') + 1)) <= (ip(self.substring(0, self.indexOf('/'))).family() == 4 ? 32 : 128)",messageExpression="'has a prefix length over ' + (self.contains(':') ? '128, the length of an IPv6 address' : '32, the length of an IPv4 address')",reason=FieldValueInvalid
// +kubebuilder:validation:XValidation:rule="!isCIDR(self) || cidr(self) == cidr(self).masked()",message="has bits beyond its prefix length",reason=FieldValueInvalid
// +kubebuilder:validation:XValidation:rule="self.contains('/') || !self.contains('-') || !isIP(self.substring(0, self.indexOf('-'))) || !isIP(self.substring(self.indexOf('-') + 1)) || ip(self.substring(0, self.indexOf('-'))).family() == ip(self.substring(self.indexOf('-') + 1)).family()",message="mixes IPv4 and IPv6",reason=FieldValueInvalid
// +kubebuilder:validation:XValidation:rule="self.contains('/') || !self.contains('-') || !isIP(self.substring(0, self.indexOf('-'))) || !isIP(self.substring(self.indexOf('-') + 1)) || ip(self.substring(0, self.indexOf('-'))).family() != ip(self.substring(self.indexOf('-') + 1)).family() || [[16, 32, 48, 64, 80, 96, 112, 128].filter(h, h <= (self.contains(':') ? 128 : 32) && cidr(self.substring(self.indexOf('-') + 1) + '/' + '   1 2 3 4 5 6 7 8 9101112'.substring(2 * (h / 10), 2 * (h / 10) + 2).trim() + '0123456789'.substring(h % 10, h % 10 + 1)).containsIP(self.substring(0, self.indexOf('-')))).size() * 16].all(b, [[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15].filter(l, b + l <= (self.contains(':') ? 128 : 32) && cidr(self.substring(self.indexOf('-') + 1) + '/' + '   1 2 3 4 5 6 7 8 9101112'.substring(2 * ((b + l) / 10), 2 * ((b + l) / 10) + 2).trim() + '0123456789'.substring((b + l) % 10, (b + l) % 10 + 1)).containsIP(self.substring(0, self.indexOf('-')))).size() + b].all(n, n == (self.contains(':') ? 128 : 32) || !cidr(self.substring(self.indexOf('-') + 1) + '/' + '   1 2 3 4 5 6 7 8 9101112'.substring(2 * ((n + 1) / 10), 2 * ((n + 1) / 10) + 2).trim() + '0123456789'.substring((n + 1) % 10, (n + 1) % 10 + 1)).containsIP(cidr(self.substring(self.indexOf('-') + 1) + '/' + '   1 2 3 4 5 6 7 8 9101112'.substring(2 * (n / 10), 2 * (n / 10) + 2).trim() + '0123456789'.substring(n % 10, n % 10 + 1)).masked().ip())))",messageExpression="'is a reversed range; did you mean ' + self.substring(self.indexOf('-') + 1) + '-' + self.substring(0, self.indexOf('-')) + '?'",reason=FieldValueInvalid
type AddressRange string

// AddressPoolStatus says what the pool holds.
type AddressPoolStatus struct {
	// ObservedGeneration is the generation of the spec that this status is about.
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// Capacity is how many addresses the pool has.
	Capacity FamilyCounts `json:"capacity,omitempty,omitzero"`
	// Assigned is how many of them Services have.
	Assigned FamilyCounts `json:"assigned,omitempty,omitzero"`
	// Available is how many can still be assigned. It is 0 while the pool is in
	// conflict with another.
	Available FamilyCounts `json:"available,omitempty,omitzero"`
	// Conditions are Ready and Conflict.
	// +listType=map
	// +listMapKey=type
	// +optional
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// FamilyCounts counts addresses per family. A count that does not fit, as of an
// IPv6 /64, is 9223372036854775807 (the largest int64).
type FamilyCounts struct {
	IPv4 int64 `json:"ipv4"`
	IPv6 int64 `json:"ipv6"`
}

// AddressPoolList is a list of AddressPools.
//
// +kubebuilder:object:root=true
type AddressPoolList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []AddressPool `json:"items"`
}
