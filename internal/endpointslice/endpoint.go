package endpointslice

import (
	"maps"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"fairlead.dev/fairlead/api/v1alpha1"
)

// podKey says whose endpoint it is. A pod has one endpoint per family, and there is one
// pod of a name at a time, so a pod that comes back under its name (StatefulSet) is
// updated where it was. The zero podKey is no pod's.
type podKey struct{ namespace, name string }

func keyOf(e *discoveryv1.Endpoint) podKey {
	if e.TargetRef == nil || e.TargetRef.Kind != "Pod" {
		return podKey{}
	}
	return podKey{e.TargetRef.Namespace, e.TargetRef.Name}
}

// counts says whether pod can be an endpoint at all.
func counts(pod *corev1.Pod) bool {
	return len(pod.Status.PodIPs) > 0 && !terminal(pod)
}

func terminal(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodFailed || pod.Status.Phase == corev1.PodSucceeded
}

// readyCondition returns the Ready condition of pod, a false one if it has none.
func readyCondition(pod *corev1.Pod) corev1.PodCondition {
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c
		}
	}
	return corev1.PodCondition{Type: corev1.PodReady, Status: corev1.ConditionFalse}
}

func serving(pod *corev1.Pod) bool { return readyCondition(pod).Status == corev1.ConditionTrue }

// PodChanged says whether an update of a pod can change a slice: it compares all that
// this package reads and that can change in the life of a pod.
func PodChanged(was, is *corev1.Pod) bool {
	return was.UID != is.UID ||
		(was.DeletionTimestamp == nil) != (is.DeletionTimestamp == nil) ||
		terminal(was) != terminal(is) ||
		serving(was) != serving(is) ||
		was.Spec.NodeName != is.Spec.NodeName ||
		!slices.Equal(was.Status.PodIPs, is.Status.PodIPs) ||
		was.Annotations[v1alpha1.AnnotationWeights] != is.Annotations[v1alpha1.AnnotationWeights] ||
		!maps.Equal(was.Labels, is.Labels)
}

// NodeChanged says whether an update of a Node can change a slice.
func NodeChanged(was, is *corev1.Node) bool {
	return was.Labels[corev1.LabelTopologyZone] != is.Labels[corev1.LabelTopologyZone]
}

// endpoint returns pod as an endpoint of one family, and false if it has no address of
// that family or is on a Node that is unknown. A Service that publishes what is not
// ready gets the pod in that case too, without a zone.
func (b *builder) endpoint(pod *corev1.Pod, family discoveryv1.AddressType) (discoveryv1.Endpoint, bool) {
	address, ok := addressOf(pod, family)
	node := b.Nodes[pod.Spec.NodeName]
	if !ok || node == nil && !b.Service.Spec.PublishNotReadyAddresses {
		return discoveryv1.Endpoint{}, false
	}
	serves, terminates := serving(pod), pod.DeletionTimestamp != nil
	e := discoveryv1.Endpoint{
		Addresses: []string{address},
		Conditions: discoveryv1.EndpointConditions{
			Ready:       new(b.Service.Spec.PublishNotReadyAddresses || serves && !terminates),
			Serving:     &serves,
			Terminating: &terminates,
		},
		TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID},
		NodeName:  pointer(pod.Spec.NodeName),
	}
	if node != nil {
		e.Zone = pointer(node.Labels[corev1.LabelTopologyZone])
	}
	if pod.Spec.Subdomain == b.Service.Name {
		e.Hostname = pointer(pod.Spec.Hostname)
	}
	e.Hints = hints(b.Service, &e)
	return e, true
}

// pointer returns nil for the empty string, which the API takes for an invalid value.
func pointer(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

// addressOf returns the first address of pod in family, in canonical form. The API
// allows one of each.
func addressOf(pod *corev1.Pod, family discoveryv1.AddressType) (string, bool) {
	for _, podIP := range pod.Status.PodIPs {
		ip, err := netip.ParseAddr(podIP.IP)
		if err == nil && addressType(ip.Unmap()) == family {
			return ip.Unmap().WithZone("").String(), true
		}
	}
	return "", false
}

// hints returns where e should be preferred (KEP-4444, KEP-3015), nil for nowhere in
// particular. Only ready endpoints get any: others are used when nothing better is left,
// and then from everywhere.
func hints(svc *corev1.Service, e *discoveryv1.Endpoint) *discoveryv1.EndpointHints {
	if !*e.Conditions.Ready || topologyAuto(svc) {
		return nil
	}
	var h discoveryv1.EndpointHints
	switch deref(svc.Spec.TrafficDistribution, "") {
	case corev1.ServiceTrafficDistributionPreferSameNode:
		if e.NodeName != nil {
			h.ForNodes = []discoveryv1.ForNode{{Name: *e.NodeName}}
		}
	case corev1.ServiceTrafficDistributionPreferClose, corev1.ServiceTrafficDistributionPreferSameZone:
	default:
		return nil
	}
	if e.Zone != nil {
		h.ForZones = []discoveryv1.ForZone{{Name: *e.Zone}}
	}
	if h.ForNodes == nil && h.ForZones == nil {
		return nil
	}
	return &h
}

// topologyAuto says whether an annotation asks for hints by CPU (KEP-2433), which wins
// over spec.trafficDistribution. That allocation is still to come: until then there are
// no hints, as upstream does where its preconditions are not met. As upstream, the older
// of the two annotations has the last word.
func topologyAuto(svc *corev1.Service) bool {
	mode, ok := svc.Annotations[corev1.DeprecatedAnnotationTopologyAwareHints]
	if !ok {
		mode = svc.Annotations[corev1.AnnotationTopologyMode]
	}
	return mode == "Auto" || mode == "auto"
}

// equalEndpoints compares all but the resourceVersion of the target: it would change
// with every heartbeat of the pod, and nobody reads it.
func equalEndpoints(a, b *discoveryv1.Endpoint) bool {
	return slices.Equal(a.Addresses, b.Addresses) &&
		same(a.Conditions.Ready, b.Conditions.Ready) &&
		same(a.Conditions.Serving, b.Conditions.Serving) &&
		same(a.Conditions.Terminating, b.Conditions.Terminating) &&
		same(a.Hostname, b.Hostname) &&
		same(a.NodeName, b.NodeName) &&
		same(a.Zone, b.Zone) &&
		len(a.DeprecatedTopology) == len(b.DeprecatedTopology) &&
		equalTargets(a.TargetRef, b.TargetRef) &&
		equalHints(a.Hints, b.Hints)
}

func equalTargets(a, b *corev1.ObjectReference) bool {
	if a == nil || b == nil {
		return a == b
	}
	x := *a
	x.ResourceVersion = b.ResourceVersion
	return x == *b
}

func equalHints(a, b *discoveryv1.EndpointHints) bool {
	x, y := deref(a, discoveryv1.EndpointHints{}), deref(b, discoveryv1.EndpointHints{})
	return slices.Equal(x.ForZones, y.ForZones) && slices.Equal(x.ForNodes, y.ForNodes)
}

// deref returns what p points to, otherwise for nil.
func deref[T any](p *T, otherwise T) T {
	if p == nil {
		return otherwise
	}
	return *p
}

// same says whether a and b point to equal values, or both to none.
func same[T comparable](a, b *T) bool {
	if a == nil || b == nil {
		return a == b
	}
	return *a == *b
}
