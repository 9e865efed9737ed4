// Package v1alpha1 holds the two configuration files of fairlead, of group
// config.fairlead.dev: one for `fairlead controller`, one for `fairlead node`.
//
// +kubebuilder:object:generate=true
package v1alpha1

// APIVersion is what the apiVersion field of both files must say.
const APIVersion = "config.fairlead.dev/v1alpha1"
