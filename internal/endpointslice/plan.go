// Package endpointslice decides what the EndpointSlices of a Service should be. It is
// pure: objects in, a plan out; no clients, no clocks, no I/O. Where fairlead's own
// promises are silent it does what k8s.io/endpointslice of Kubernetes 1.36 does.
package endpointslice

import (
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// Input is the part of the world that the slices of one Service depend on. Compute
// changes nothing in it.
type Input struct {
	Service *corev1.Service
	// Pods are those of the Service's namespace; the ones that its selector does not
	// match are ignored. Order does not matter.
	Pods []*corev1.Pod
	// Nodes are the Nodes there are, by name. At least those of the pods have to be
	// in it: a pod on a Node that is not is left out.
	Nodes map[string]*corev1.Node
	// Slices are all that may have to do with the Service: those for which ServicesOf
	// names it, whoever manages them. Order does not matter.
	Slices []*discoveryv1.EndpointSlice
}

// Options are what the operator decides.
type Options struct {
	// ManagedBy is the value of the label endpointslice.kubernetes.io/managed-by of
	// our slices. Slices with another one are never touched.
	ManagedBy string
	// MaxEndpointsPerSlice is 1 to 1000, the limit of the API. Less is read as 1.
	MaxEndpointsPerSlice int
}

// Plan is what turns the slices that are there into those that should be. Carried out
// in the order of its fields, no endpoint is missing in between. Objects in Update
// carry the resourceVersion that the plan was made from; those in Delete are the ones of
// the input, not to be changed.
type Plan struct {
	Create, Update, Delete []*discoveryv1.EndpointSlice
}

// Empty says whether everything is as it should be.
func (p Plan) Empty() bool { return len(p.Create)+len(p.Update)+len(p.Delete) == 0 }

// Fills says whether svc is one whose slices are computed from pods: it has a selector,
// which for an ExternalName Service means nothing.
func Fills(svc *corev1.Service) bool {
	return svc.Spec.Type != corev1.ServiceTypeExternalName && len(svc.Spec.Selector) > 0
}

// Compute returns the plan for in.Service. Equal input, in whatever order, gives an
// equal plan; the plan for the outcome of a plan is empty.
func Compute(in Input, opts Options) Plan {
	b := newBuilder(in, opts)
	if !Fills(in.Service) {
		return Plan{Delete: b.owned()}
	}
	families := addressTypes(in.Service)
	for _, slice := range b.claimed {
		if b.outdated(slice) || !slices.Contains(families, slice.AddressType) {
			b.plan.Delete = append(b.plan.Delete, slice)
		} else {
			b.current = append(b.current, slice)
		}
	}
	for _, family := range families {
		b.family(family)
	}
	if in.Service.DeletionTimestamp != nil {
		// What we create now would race with the garbage collector, which deletes
		// the slices of a Service that goes (k8s.io/endpointslice, finalize).
		b.plan.Create = nil
	}
	b.stampTrigger()
	return b.plan
}

// builder holds what all families of one plan share.
type builder struct {
	Input
	Options

	pods    []*corev1.Pod                // matching and counting, by name
	claimed []*discoveryv1.EndpointSlice // ours, by name, of this Service or an older one
	current []*discoveryv1.EndpointSlice // claimed, and worth keeping
	names   map[string]bool              // taken by any slice, ours or not
	weights map[string]any               // those of pods that ask for one, by pod name
	labels  map[string]string
	plan    Plan
}

func newBuilder(in Input, opts Options) *builder {
	opts.MaxEndpointsPerSlice = max(1, opts.MaxEndpointsPerSlice)
	b := &builder{Input: in, Options: opts, names: map[string]bool{}, labels: labelsFor(in.Service, opts.ManagedBy)}
	for _, slice := range in.Slices {
		b.names[slice.Name] = true
		// A slice on its way out cannot be counted on, nor saved.
		if b.claims(slice) && slice.DeletionTimestamp == nil {
			b.claimed = append(b.claimed, slice)
		}
	}
	slices.SortFunc(b.claimed, byName)
	for _, pod := range in.Pods {
		if counts(pod) && matches(in.Service.Spec.Selector, pod.Labels) {
			b.pods = append(b.pods, pod)
		}
	}
	b.weights = weightsOf(b.pods)
	slices.SortFunc(b.pods, func(p, q *corev1.Pod) int { return strings.Compare(p.Name, q.Name) })
	return b
}

func byName(s, t *discoveryv1.EndpointSlice) int { return strings.Compare(s.Name, t.Name) }

// family plans the slices of one address family.
func (b *builder) family(family discoveryv1.AddressType) {
	var kept, fresh []*draft
	var spare []*discoveryv1.EndpointSlice
	for _, g := range b.groups(family) {
		drafts, empty := pack(g, b.MaxEndpointsPerSlice, b.mislabelled)
		spare = append(spare, empty...)
		for _, d := range drafts {
			if d.old != nil {
				kept = append(kept, d)
			} else {
				fresh = append(fresh, d)
			}
		}
	}
	if len(kept)+len(fresh) == 0 {
		// One empty slice tells consumers that the Service is known and has nobody.
		if i := slices.IndexFunc(spare, b.isPlaceholder); i >= 0 {
			kept, spare = append(kept, &draft{old: spare[i]}), slices.Delete(spare, i, i+1)
		} else {
			fresh = append(fresh, &draft{changed: true})
		}
	}
	for len(fresh) > 0 && len(spare) > 0 { // one update in the place of a create and a delete
		fresh[0].old = spare[0]
		kept, fresh, spare = append(kept, fresh[0]), fresh[1:], spare[1:]
	}
	for _, d := range kept {
		if d.changed || b.misweighted(d) {
			b.plan.Update = append(b.plan.Update, b.object(d, family))
		}
	}
	for _, d := range fresh {
		b.plan.Create = append(b.plan.Create, b.object(d, family))
	}
	b.plan.Delete = append(b.plan.Delete, spare...)
}

func (b *builder) isPlaceholder(slice *discoveryv1.EndpointSlice) bool {
	return len(slice.Endpoints) == 0 && len(slice.Ports) == 0 && !b.mislabelled(slice)
}

// groups returns the endpoints of one family by the ports they serve, together with
// the current slices that have these ports. Groups of slices alone have no endpoints.
func (b *builder) groups(family discoveryv1.AddressType) []*group {
	var sets portSets
	var order []*group
	byPorts := map[int]*group{}
	at := func(ports []portKey) *group {
		id := sets.id(ports)
		if byPorts[id] == nil {
			byPorts[id] = &group{ports: endpointPorts(ports)}
			order = append(order, byPorts[id])
		}
		return byPorts[id]
	}
	for _, pod := range b.pods {
		if endpoint, ok := b.endpoint(pod, family); ok {
			g := at(portsOf(b.Service, pod))
			g.want = append(g.want, endpoint)
		}
	}
	for _, slice := range b.current {
		if slice.AddressType == family {
			g := at(portKeys(slice.Ports))
			g.have = append(g.have, slice)
		}
	}
	return order
}

// addressTypes returns the families of svc, spec.ipFamilies in its order. A Service that
// was stored before there was dual stack may have none: then it is the family of the
// cluster IP, and both families for a headless one.
func addressTypes(svc *corev1.Service) []discoveryv1.AddressType {
	var types []discoveryv1.AddressType
	for _, family := range svc.Spec.IPFamilies {
		switch family {
		case corev1.IPv4Protocol:
			types = append(types, discoveryv1.AddressTypeIPv4)
		case corev1.IPv6Protocol:
			types = append(types, discoveryv1.AddressTypeIPv6)
		default: // the API server lets no other one in
		}
	}
	if len(types) > 0 {
		return types
	}
	if ip, err := netip.ParseAddr(svc.Spec.ClusterIP); err == nil {
		return []discoveryv1.AddressType{addressType(ip)}
	}
	return []discoveryv1.AddressType{discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6}
}

func addressType(ip netip.Addr) discoveryv1.AddressType {
	if ip.Is4() {
		return discoveryv1.AddressTypeIPv4
	}
	return discoveryv1.AddressTypeIPv6
}
