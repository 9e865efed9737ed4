package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// AddressPool is a set of addresses that LoadBalancer Services get theirs from.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,categories=fairlead
type AddressPool struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   AddressPoolSpec   `json:"spec"`
	Status AddressPoolStatus `json:"status,omitempty"`
}

// AddressPoolSpec says which addresses, and for whom.
type AddressPoolSpec struct {
	// Addresses are CIDRs or from-to ranges, IPv4 and IPv6: 192.0.2.0/26,
	// 192.0.2.100-192.0.2.120, 2001:db8::/112.
	Addresses []string `json:"addresses"`
	// AutoAssign says whether Services that ask for no pool get addresses from here.
	// +kubebuilder:default=true
	AutoAssign *bool `json:"autoAssign,omitempty"`
}

// AddressPoolStatus says what the pool holds.
type AddressPoolStatus struct {
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// AddressPoolList is a list of AddressPools.
//
// +kubebuilder:object:root=true
type AddressPoolList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []AddressPool `json:"items"`
}
