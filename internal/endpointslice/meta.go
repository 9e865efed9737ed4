package endpointslice

import (
	"fmt"
	"hash/fnv"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

const (
	// maxNameLength is that of names the API server generates from generateName
	// (k8s.io/apiserver/pkg/storage/names), so that a slice looks the same whoever
	// made it.
	maxNameLength = 63
	// suffixLength makes two slices of one Service collide with a chance of 1 in 2^32,
	// and then the next suffix is taken.
	suffixLength = 8
)

// reserved labels on a Service say nothing about its slices.
var reserved = []string{discoveryv1.LabelServiceName, discoveryv1.LabelManagedBy, corev1.IsHeadlessService}

// ServicesOf returns the Services that slice may have to do with: the one that it is
// labelled with and the one that owns it, which is one and the same unless somebody
// edited it. It is what a slice has to be indexed by to be found for Compute.
func ServicesOf(slice *discoveryv1.EndpointSlice) []types.NamespacedName {
	var names []types.NamespacedName
	if name := slice.Labels[discoveryv1.LabelServiceName]; name != "" {
		names = append(names, types.NamespacedName{Namespace: slice.Namespace, Name: name})
	}
	if owner := serviceOwner(slice, ""); owner != nil && owner.Name != slice.Labels[discoveryv1.LabelServiceName] {
		names = append(names, types.NamespacedName{Namespace: slice.Namespace, Name: owner.Name})
	}
	return names
}

// serviceOwner returns the Service that owns slice, the one with uid if there are
// several, nil if there is none.
func serviceOwner(slice *discoveryv1.EndpointSlice, uid types.UID) *metav1.OwnerReference {
	var owner *metav1.OwnerReference
	for i := range slice.OwnerReferences {
		ref := &slice.OwnerReferences[i]
		if ref.Kind != "Service" || ref.APIVersion != "v1" {
			continue
		}
		if owner == nil || ref.UID == uid {
			owner = ref
		}
	}
	return owner
}

// claims says whether slice is one that we made for a Service of this name. One that
// lost its owner to an edit is known by its label; one that is controlled by something
// else is not ours.
func (b *builder) claims(slice *discoveryv1.EndpointSlice) bool {
	if slice.Labels[discoveryv1.LabelManagedBy] != b.ManagedBy {
		return false
	}
	if owner := serviceOwner(slice, b.Service.UID); owner != nil {
		return owner.Name == b.Service.Name
	}
	return slice.Labels[discoveryv1.LabelServiceName] == b.Service.Name && metav1.GetControllerOf(slice) == nil
}

// outdated says whether a claimed slice belongs to an older Service of the same name.
// It is not updated, because the garbage collector is about to delete it.
func (b *builder) outdated(slice *discoveryv1.EndpointSlice) bool {
	owner := serviceOwner(slice, b.Service.UID)
	return owner != nil && owner.UID != b.Service.UID
}

// owned returns the claimed slices that a Service owns. Slices without an owner are
// left alone: for a Service without a selector somebody may have made them by hand.
func (b *builder) owned() []*discoveryv1.EndpointSlice {
	return slices.DeleteFunc(slices.Clone(b.claimed), func(slice *discoveryv1.EndpointSlice) bool {
		return serviceOwner(slice, "") == nil
	})
}

// labelsFor returns the labels that every slice of svc has, and no other.
func labelsFor(svc *corev1.Service, managedBy string) map[string]string {
	labels := maps.Clone(svc.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	for _, key := range reserved {
		delete(labels, key)
	}
	labels[discoveryv1.LabelServiceName] = svc.Name
	labels[discoveryv1.LabelManagedBy] = managedBy
	if svc.Spec.ClusterIP == corev1.ClusterIPNone || svc.Spec.ClusterIP == "" {
		labels[corev1.IsHeadlessService] = ""
	}
	return labels
}

func (b *builder) ownerReference() metav1.OwnerReference {
	return *metav1.NewControllerRef(b.Service, corev1.SchemeGroupVersion.WithKind("Service"))
}

// mislabelled says whether a current slice has other labels, or another owner, than it
// should.
func (b *builder) mislabelled(slice *discoveryv1.EndpointSlice) bool {
	want, have := b.ownerReference(), serviceOwner(slice, b.Service.UID)
	return have == nil || !apiequality.Semantic.DeepEqual(*have, want) || !maps.Equal(slice.Labels, b.labels)
}

// object returns d as an object to write: what others added to an existing slice stays,
// but for labels and controllers.
func (b *builder) object(d *draft, family discoveryv1.AddressType) *discoveryv1.EndpointSlice {
	// The API wants lists, not null. The ports are copied because drafts share them,
	// also with what is in the caller's cache, and clients decode into what they send.
	slice := &discoveryv1.EndpointSlice{
		AddressType: family,
		Ports:       make([]discoveryv1.EndpointPort, len(d.ports)),
		Endpoints:   append([]discoveryv1.Endpoint{}, d.endpoints...),
	}
	for i := range d.ports {
		d.ports[i].DeepCopyInto(&slice.Ports[i])
	}
	owner := b.ownerReference()
	if d.old == nil {
		slice.Namespace, slice.Name = b.Service.Namespace, b.newName(family, portKeys(d.ports))
	} else {
		slice.ObjectMeta = *d.old.ObjectMeta.DeepCopy()
	}
	others := slices.DeleteFunc(slice.OwnerReferences, func(ref metav1.OwnerReference) bool {
		return ref.UID == owner.UID || ref.Controller != nil && *ref.Controller
	})
	slice.OwnerReferences = append([]metav1.OwnerReference{owner}, others...)
	slice.Labels = maps.Clone(b.labels)
	b.annotateWeights(slice)
	return slice
}

// newName returns a name that no slice has: the Service's, cut if need be, and a suffix
// that follows from what the slice is for. So two plans that do not know of each other
// create the same name, and the API server lets one of them through.
func (b *builder) newName(family discoveryv1.AddressType, ports []portKey) string {
	base := b.Service.Name + "-"
	base = base[:min(len(base), maxNameLength-suffixLength)]
	for i := 0; ; i++ {
		h := fnv.New32a()
		// Writing to a hash never fails.
		_, _ = fmt.Fprintf(h, "%s %s %d", b.Service.UID, family, i)
		for _, p := range sortedPorts(ports) {
			_, _ = fmt.Fprintf(h, " %q/%s/%d/%t/%q", p.name, p.protocol, p.number, p.hasNumber, p.appProtocol)
		}
		name := fmt.Sprintf("%s%0*x", base, suffixLength, h.Sum32())
		if !b.names[name] {
			b.names[name] = true
			return name
		}
	}
}
