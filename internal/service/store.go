package service

import (
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"

	"fairlead.dev/fairlead/internal/persistent"
)

// Store turns a stream of API objects into Snapshots. An event costs what its own
// Service holds, whatever the number of Services. It is not safe for concurrent use.
type Store struct {
	node     string
	specs    map[types.NamespacedName]*spec
	slices   map[types.NamespacedName]map[string]*slice // by Service, then by slice name
	owners   map[types.NamespacedName]types.NamespacedName
	dirty    map[types.NamespacedName]struct{}
	services persistent.Map[types.NamespacedName, *Service]
	nodePort []netip.Addr
	pending  bool
}

// NewStore returns an empty store of the node of that name.
func NewStore(node string) *Store {
	return &Store{
		node:   node,
		specs:  map[types.NamespacedName]*spec{},
		slices: map[types.NamespacedName]map[string]*slice{},
		owners: map[types.NamespacedName]types.NamespacedName{},
		dirty:  map[types.NamespacedName]struct{}{},
	}
}

// SetService takes in a Service that was added or changed. s is not kept.
func (st *Store) SetService(s *corev1.Service) {
	name := types.NamespacedName{Namespace: s.Namespace, Name: s.Name}
	if decoded := decodeService(s); decoded != nil {
		st.specs[name] = decoded
	} else {
		delete(st.specs, name)
	}
	st.touch(name)
}

// DeleteService takes out a Service.
func (st *Store) DeleteService(name types.NamespacedName) {
	delete(st.specs, name)
	st.touch(name)
}

// ServiceNames returns the names of all Services the store holds rules for.
func (st *Store) ServiceNames() []types.NamespacedName { return keys(st.specs) }

// SetSlice takes in an EndpointSlice that was added or changed. s is not kept.
func (st *Store) SetSlice(s *discoveryv1.EndpointSlice) {
	name := types.NamespacedName{Namespace: s.Namespace, Name: s.Name}
	st.DeleteSlice(name) // its label may name another Service now
	decoded := decodeSlice(s, st.node)
	if decoded == nil {
		return
	}
	if st.slices[decoded.service] == nil {
		st.slices[decoded.service] = map[string]*slice{}
	}
	st.slices[decoded.service][s.Name] = decoded
	st.owners[name] = decoded.service
	st.touch(decoded.service)
}

// DeleteSlice takes out an EndpointSlice.
func (st *Store) DeleteSlice(name types.NamespacedName) {
	owner, ok := st.owners[name]
	if !ok {
		return
	}
	delete(st.owners, name)
	delete(st.slices[owner], name.Name)
	if len(st.slices[owner]) == 0 {
		delete(st.slices, owner)
	}
	st.touch(owner)
}

// SliceNames returns the names of all EndpointSlices the store holds.
func (st *Store) SliceNames() []types.NamespacedName { return keys(st.owners) }

// SetNodePortAddrs says which addresses of this node serve node ports.
func (st *Store) SetNodePortAddrs(addrs []netip.Addr) {
	addrs = slices.Clone(addrs)
	slices.SortFunc(addrs, netip.Addr.Compare)
	addrs = slices.Compact(addrs)
	if !slices.Equal(addrs, st.nodePort) {
		st.nodePort, st.pending = addrs, true
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
			edit.Set(name, build(name, s, st.slices[name]))
		} else {
			edit.Delete(name)
		}
	}
	clear(st.dirty)
	st.pending = false
	st.services = edit.Map()
	return &Snapshot{Services: st.services, NodePortAddrs: st.nodePort}
}

func (st *Store) touch(name types.NamespacedName) { st.dirty[name] = struct{}{} }

func keys[V any](m map[types.NamespacedName]V) []types.NamespacedName {
	out := make([]types.NamespacedName, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	return out
}
