package service

import (
	"net/netip"
	"reflect"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"

	"fairlead.dev/fairlead/internal/persistent"
)

// Store turns a stream of API objects into Snapshots. An event costs what its own
// Service holds, whatever the number of Services, and nothing when the object says what
// it said before. It is not safe for concurrent use.
type Store struct {
	node     string
	zone     string
	specs    map[types.NamespacedName]*Service
	slices   map[types.NamespacedName][]*Slice // by Service, in order of name
	owners   map[types.NamespacedName]string   // the Service of a slice
	dirty    map[types.NamespacedName]struct{}
	services persistent.Map[types.NamespacedName, *Service]

	nodePort, nodeAddrs    []netip.Addr
	podCIDRs, serviceCIDRs []netip.Prefix
	pending                bool
}

// NewStore returns an empty store of the node of that name.
func NewStore(node string) *Store {
	return &Store{
		node:   node,
		specs:  map[types.NamespacedName]*Service{},
		slices: map[types.NamespacedName][]*Slice{},
		owners: map[types.NamespacedName]string{},
		dirty:  map[types.NamespacedName]struct{}{},
	}
}

// SetService takes in a Service that was added or changed. s is not kept.
func (st *Store) SetService(s *corev1.Service) { st.PutService(DecodeService(s)) }

// PutService is SetService for one that is decoded already.
func (st *Store) PutService(s *Spec) {
	old, ok := st.specs[s.name]
	switch {
	case s.service == nil:
		st.DeleteService(s.name)
	case !ok || !same(old, s.service):
		st.specs[s.name] = s.service
		st.touch(s.name)
	}
}

// same says whether a and b make the same rules: most updates of a Service are of its
// status or of what others annotate, which changes the version alone.
func same(a, b *Service) bool {
	c := *b
	c.ResourceVersion = a.ResourceVersion
	return reflect.DeepEqual(a, &c)
}

// DeleteService takes out a Service.
func (st *Store) DeleteService(name types.NamespacedName) {
	if _, ok := st.specs[name]; ok {
		delete(st.specs, name)
		st.touch(name)
	}
}

// ServiceNames returns the names of all Services the store holds rules for.
func (st *Store) ServiceNames() []types.NamespacedName { return keys(st.specs) }

// SetSlice takes in an EndpointSlice that was added or changed. s is not kept.
func (st *Store) SetSlice(s *discoveryv1.EndpointSlice) { st.PutSlice(DecodeSlice(s, st.node)) }

// PutSlice is SetSlice for one that is decoded already, for the node of the store.
func (st *Store) PutSlice(s *Slice) {
	if st.owners[s.name] != s.service {
		st.DeleteSlice(s.name) // its label names another Service now, or none
	}
	if s.service == "" {
		return
	}
	owner := types.NamespacedName{Namespace: s.name.Namespace, Name: s.service}
	all := st.slices[owner]
	i, found := find(all, s.name.Name)
	switch {
	case !found:
		st.slices[owner] = slices.Insert(all, i, s)
		st.owners[s.name] = s.service
	case all[i].equal(s):
		return
	default:
		all[i] = s
	}
	st.touch(owner)
}

// DeleteSlice takes out an EndpointSlice.
func (st *Store) DeleteSlice(name types.NamespacedName) {
	service, ok := st.owners[name]
	if !ok {
		return
	}
	owner := types.NamespacedName{Namespace: name.Namespace, Name: service}
	delete(st.owners, name)
	i, _ := find(st.slices[owner], name.Name)
	if st.slices[owner] = slices.Delete(st.slices[owner], i, i+1); len(st.slices[owner]) == 0 {
		delete(st.slices, owner)
	}
	st.touch(owner)
}

// find returns where the slice of that name is in all, or would be.
func find(all []*Slice, name string) (int, bool) {
	return slices.BinarySearchFunc(all, name, func(s *Slice, name string) int { return strings.Compare(s.name.Name, name) })
}

// SliceNames returns the names of all EndpointSlices the store holds.
func (st *Store) SliceNames() []types.NamespacedName { return keys(st.owners) }

// SetZone says which zone this node is in, empty for none that is known. Services whose
// endpoints are hinted for zones are judged anew.
func (st *Store) SetZone(zone string) {
	if zone == st.zone {
		return
	}
	st.zone = zone
	for owner, all := range st.slices {
		if slices.ContainsFunc(all, func(s *Slice) bool { return s.zones != nil }) {
			st.touch(owner)
		}
	}
}

// SetNodePortAddrs says which addresses of this node serve node ports.
func (st *Store) SetNodePortAddrs(addrs []netip.Addr) {
	setSorted(st, &st.nodePort, addrs, netip.Addr.Compare)
}

// SetNodeAddrs says which addresses this node has that other hosts can reach.
func (st *Store) SetNodeAddrs(addrs []netip.Addr) {
	setSorted(st, &st.nodeAddrs, addrs, netip.Addr.Compare)
}

// SetPodCIDRs says which ranges pods are told by.
func (st *Store) SetPodCIDRs(cidrs []netip.Prefix) {
	setSorted(st, &st.podCIDRs, cidrs, comparePrefixes)
}

// SetServiceCIDRs says which ranges ClusterIPs come from.
func (st *Store) SetServiceCIDRs(cidrs []netip.Prefix) {
	setSorted(st, &st.serviceCIDRs, cidrs, comparePrefixes)
}

// setSorted makes *field a sorted copy of values, each once. Snapshots that share the old
// one keep it.
func setSorted[T comparable](st *Store, field *[]T, values []T, compare func(a, b T) int) {
	values = slices.Clone(values)
	slices.SortFunc(values, compare)
	values = slices.Compact(values)
	if !slices.Equal(values, *field) {
		*field, st.pending = values, true
	}
}

// Pending says whether the next Snapshot differs from the last one in what was
// written to the store since.
func (st *Store) Pending() bool { return st.pending || len(st.dirty) > 0 }

// Snapshot returns the present state. Services that did not change are the same
// pointers as in the snapshot before.
func (st *Store) Snapshot() *Snapshot {
	edit := st.services.Edit()
	for name := range st.dirty {
		if s, ok := st.specs[name]; ok {
			edit.Set(name, build(s, st.slices[name], st.zone))
		} else {
			edit.Delete(name)
		}
	}
	clear(st.dirty)
	st.pending = false
	st.services = edit.Map()
	return &Snapshot{Services: st.services, NodePortAddrs: st.nodePort, NodeAddrs: st.nodeAddrs,
		PodCIDRs: st.podCIDRs, ServiceCIDRs: st.serviceCIDRs}
}

// touch marks a Service to be built anew. Slices without a Service that has rules make no
// difference.
func (st *Store) touch(name types.NamespacedName) {
	_, wanted := st.specs[name]
	if _, built := st.services.Get(name); wanted || built {
		st.dirty[name] = struct{}{}
	}
}

func keys[V any](m map[types.NamespacedName]V) []types.NamespacedName {
	out := make([]types.NamespacedName, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	return out
}
