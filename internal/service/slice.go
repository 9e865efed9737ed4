package service

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"fairlead.dev/fairlead/api/v1alpha1"
)

// Slice is a decoded EndpointSlice: what a node has to know of it. It is immutable, and
// does not hold on to the object it came from.
type Slice struct {
	name types.NamespacedName
	// service is the Service it belongs to, empty for a slice that holds nothing for
	// node rules: FQDNs, those of headless Services, and those of no Service.
	service   string
	targets   []target
	endpoints []endpoint
	// zones are the zones that each endpoint is hinted for, joined by commas; nil where
	// none is.
	zones  []string
	faults []string
}

// target is the number that a port of the Service has in the endpoints of a slice.
type target struct {
	name     string
	protocol Protocol
	port     uint16
}

// endpoint is one address of a slice. There are many: it has no pointers, for the
// garbage collector's sake, and nothing that is not needed.
type endpoint struct {
	addr   [16]byte // IPv4 as IPv4-mapped
	traits traits
	weight uint8
}

// traits are what is true of an endpoint, with its conditions resolved: a nil ready is
// ready, a nil serving is serving, a nil terminating is not terminating (the API's own
// defaults, k8s.io/api/discovery/v1).
type traits uint8

const (
	ready traits = 1 << iota
	serving
	terminating
	here          // it says that it is on this node
	nowhere       // it does not say where it is
	nodeHints     // it is hinted for nodes
	nodeHintsHere // and for this one
)

func (e *endpoint) is(all traits) bool { return e.traits&all == all }

// set adds t if yes.
func (t *traits) set(add traits, yes bool) {
	if yes {
		*t |= add
	}
}

// DecodeSlice decodes s for the Store of node, for Store.PutSlice. It may run in any
// goroutine.
func DecodeSlice(s *discoveryv1.EndpointSlice, node string) *Slice {
	out := &Slice{name: types.NamespacedName{Namespace: intern(s.Namespace), Name: s.Name}}
	service := s.Labels[discoveryv1.LabelServiceName]
	if _, headless := s.Labels[corev1.IsHeadlessService]; headless || s.AddressType == discoveryv1.AddressTypeFQDN {
		return out
	}
	out.service = service
	for i, p := range s.Ports {
		protocol, ok := decodeProtocol(deref(p.Protocol, corev1.ProtocolTCP))
		path := field.NewPath("ports").Index(i)
		switch port := deref(p.Port, 0); {
		case port == 0: // all ports, or none: not for Services
		case !ok:
			out.fault(path.Child("protocol"), *p.Protocol, "must be TCP, UDP or SCTP")
		case !validPort(port):
			out.fault(path.Child("port"), port, mustBePort)
		default:
			out.targets = append(out.targets, target{intern(deref(p.Name, "")), protocol, uint16(port)})
		}
	}
	out.decodeEndpoints(s.Endpoints, node, out.decodeWeights(s.Annotations))
	return out
}

func (s *Slice) decodeEndpoints(in []discoveryv1.Endpoint, node string, weights map[netip.Addr]uint8) {
	s.endpoints = make([]endpoint, 0, len(in))
	for i := range in {
		e := &in[i]
		if len(e.Addresses) == 0 {
			continue
		}
		// More than one address has no meaning and only the first counts (API docs).
		addr, ok := parseAddr(e.Addresses[0])
		if !ok {
			s.fault(field.NewPath("endpoints").Index(i).Child("addresses").Index(0), e.Addresses[0], "must be an IP address")
			continue
		}
		out := endpoint{addr: addr.As16(), weight: max(1, weights[addr])}
		out.traits.set(ready, deref(e.Conditions.Ready, true))
		out.traits.set(serving, deref(e.Conditions.Serving, true))
		out.traits.set(terminating, deref(e.Conditions.Terminating, false))
		out.traits.set(here, e.NodeName != nil && *e.NodeName == node)
		out.traits.set(nowhere, e.NodeName == nil)
		if e.Hints != nil {
			out.traits.set(nodeHints, len(e.Hints.ForNodes) > 0)
			out.traits.set(nodeHintsHere, slices.Contains(e.Hints.ForNodes, discoveryv1.ForNode{Name: node}))
			if len(e.Hints.ForZones) > 0 {
				s.setZones(len(in), e.Hints.ForZones)
			}
		}
		s.endpoints = append(s.endpoints, out)
	}
}

// setZones notes the zones of the endpoint that is about to be appended, of at most n.
func (s *Slice) setZones(n int, zones []discoveryv1.ForZone) {
	if s.zones == nil {
		s.zones = make([]string, n)
	}
	names := make([]string, 0, len(zones))
	for _, z := range zones {
		names = append(names, z.Name)
	}
	s.zones[len(s.endpoints)] = intern(strings.Join(names, ","))
}

// decodeWeights returns the weights that an annotation gives to addresses.
func (s *Slice) decodeWeights(annotations map[string]string) map[netip.Addr]uint8 {
	text, ok := annotations[v1alpha1.AnnotationWeights]
	if !ok {
		return nil
	}
	path := field.NewPath("metadata", "annotations").Key(v1alpha1.AnnotationWeights)
	var in map[string]json.RawMessage
	if err := json.Unmarshal([]byte(text), &in); err != nil {
		s.fault(path, text, `must be a JSON object of weights by address, such as {"10.244.1.2":3}`)
		return nil
	}
	out := make(map[netip.Addr]uint8, len(in))
	for _, key := range slices.Sorted(maps.Keys(in)) {
		addr, isAddr := parseAddr(key)
		weight, err := strconv.Atoi(string(in[key]))
		switch {
		case !isAddr:
			s.fault(path, key, "must have IP addresses as its keys")
		case err != nil || weight < 1 || weight > v1alpha1.MaxWeight:
			s.fault(path.Key(key), string(in[key]), fmt.Sprintf("must be a whole number between 1 and %d", v1alpha1.MaxWeight))
		default:
			out[addr] = uint8(weight)
		}
	}
	return out
}

func (s *Slice) fault(path *field.Path, value any, must string) {
	s.faults = append(s.faults, fmt.Sprintf("EndpointSlice %s: %s", s.name.Name, field.Invalid(path, value, must).Error()))
}

// equal says whether s and o make the same rules.
func (s *Slice) equal(o *Slice) bool {
	return s.service == o.service && slices.Equal(s.targets, o.targets) && slices.Equal(s.endpoints, o.endpoints) &&
		slices.Equal(s.zones, o.zones) && slices.Equal(s.faults, o.faults)
}
