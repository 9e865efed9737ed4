// Package persistent has a map whose versions are immutable values: changing it gives
// a new map and leaves the old one as it was, and what differs between two versions is
// found in time proportional to what was changed, not to their size. That is what lets
// the node hand whole desired states around and still pay for changes only.
//
// It is a hash array mapped trie (Bagwell, Ideal Hash Trees, 2001) with small leaves, of
// which an edit copies what it touches once.
package persistent

import (
	"hash/maphash"
	"iter"
	"slices"
)

const (
	// fanBits is how many bits of the hash pick a child: 32 children are 256 bytes,
	// and three levels hold half a million entries.
	fanBits = 5

	// leafSize is how many entries a leaf holds before it becomes an inner node. A look
	// compares half of them on average, a change copies them.
	leafSize = 12

	// hashBits are all that there are; leaves below do not split.
	hashBits = 64
)

var seed = maphash.MakeSeed()

type entry[K comparable, V any] struct {
	key   K
	value V
}

// node is an inner node where children is set, else a leaf.
type node[K comparable, V any] struct {
	owner    *byte // the edit that may still change it
	children *[1 << fanBits]*node[K, V]
	entries  []entry[K, V]
}

// Map is an immutable map. The zero value is empty. Copying it is free.
type Map[K comparable, V any] struct {
	root *node[K, V]
	len  int
}

func hash[K comparable](k K) uint64 { return maphash.Comparable(seed, k) }

func child(h uint64, shift uint) uint64 { return h >> shift & (1<<fanBits - 1) }

// Get returns the value of k.
func (m Map[K, V]) Get(k K) (v V, ok bool) {
	if m.root == nil {
		return v, false
	}
	return m.root.get(k, hash(k), 0)
}

func (n *node[K, V]) get(k K, h uint64, shift uint) (v V, ok bool) {
	for ; n != nil; shift += fanBits {
		if n.children == nil {
			if i := n.find(k); i >= 0 {
				return n.entries[i].value, true
			}
			return v, false
		}
		n = n.children[child(h, shift)]
	}
	return v, false
}

func (n *node[K, V]) find(k K) int {
	for i := range n.entries {
		if n.entries[i].key == k {
			return i
		}
	}
	return -1
}

// Len returns the number of entries.
func (m Map[K, V]) Len() int { return m.len }

// All iterates over all entries in no order.
func (m Map[K, V]) All() iter.Seq2[K, V] {
	return func(yield func(K, V) bool) { m.root.all(yield) }
}

func (n *node[K, V]) all(yield func(K, V) bool) bool {
	if n == nil {
		return true
	}
	for i := range n.entries {
		if !yield(n.entries[i].key, n.entries[i].value) {
			return false
		}
	}
	if n.children == nil {
		return true
	}
	for _, c := range n.children {
		if !c.all(yield) {
			return false
		}
	}
	return true
}

// Edit starts a new version from m.
func (m Map[K, V]) Edit() *Edit[K, V] {
	return &Edit[K, V]{root: m.root, len: m.len, owner: new(byte)}
}

// Edit is a version in the making. It is not safe for concurrent use.
type Edit[K comparable, V any] struct {
	root  *node[K, V]
	len   int
	owner *byte // marks the nodes that no Map shares
}

// Get returns the value of k.
func (e *Edit[K, V]) Get(k K) (V, bool) { return Map[K, V]{root: e.root}.Get(k) }

// Len returns the number of entries.
func (e *Edit[K, V]) Len() int { return e.len }

// Set gives k the value v.
func (e *Edit[K, V]) Set(k K, v V) { e.root = e.set(e.root, entry[K, V]{k, v}, hash(k), 0) }

func (e *Edit[K, V]) set(n *node[K, V], add entry[K, V], h uint64, shift uint) *node[K, V] {
	if n == nil {
		e.len++
		return &node[K, V]{owner: e.owner, entries: []entry[K, V]{add}}
	}
	n = e.own(n)
	if n.children != nil {
		at := &n.children[child(h, shift)]
		*at = e.set(*at, add, h, shift+fanBits)
		return n
	}
	if i := n.find(add.key); i >= 0 {
		n.entries[i].value = add.value
		return n
	}
	if len(n.entries) < leafSize || shift >= hashBits {
		e.len++
		n.entries = append(n.entries, add)
		return n
	}
	inner := &node[K, V]{owner: e.owner, children: new([1 << fanBits]*node[K, V])}
	for _, old := range n.entries {
		e.set(inner, old, hash(old.key), shift)
	}
	e.len -= len(n.entries) // they are not new
	return e.set(inner, add, h, shift)
}

// Delete removes k, if it is there.
func (e *Edit[K, V]) Delete(k K) {
	if _, ok := e.Get(k); ok {
		e.root = e.delete(e.root, k, hash(k), 0)
		e.len--
	}
}

// delete removes k, which is there. It returns nil for a leaf that has no more.
func (e *Edit[K, V]) delete(n *node[K, V], k K, h uint64, shift uint) *node[K, V] {
	n = e.own(n)
	if n.children != nil {
		at := &n.children[child(h, shift)]
		*at = e.delete(*at, k, h, shift+fanBits)
		return n
	}
	if len(n.entries) == 1 {
		return nil
	}
	i := n.find(k)
	n.entries = slices.Delete(n.entries, i, i+1)
	return n
}

// own returns n, or a copy of it where a Map has it.
func (e *Edit[K, V]) own(n *node[K, V]) *node[K, V] {
	if n.owner == e.owner {
		return n
	}
	out := &node[K, V]{owner: e.owner, entries: slices.Clone(n.entries)}
	if n.children != nil {
		children := *n.children
		out.children = &children
	}
	return out
}

// Map ends the edit and returns the new version. The edit must not be used again.
func (e *Edit[K, V]) Map() Map[K, V] {
	m := Map[K, V]{root: e.root, len: e.len}
	e.root, e.owner = nil, nil
	if m.len == 0 {
		m.root = nil // inner nodes without leaves
	}
	return m
}

// Change is one entry in which two maps differ. Old is meaningful where HadOld says
// so, New where HasNew says so.
type Change[K comparable, V any] struct {
	Key            K
	Old, New       V
	HadOld, HasNew bool
}

// Diff iterates over the entries in which from and to differ, in no order. It looks
// only at the parts that were touched between the two, so it is cheap where one was
// made from the other by an Edit.
func Diff[K comparable, V any](from, to Map[K, V], equal func(a, b V) bool) iter.Seq[Change[K, V]] {
	return func(yield func(Change[K, V]) bool) { diff(from.root, to.root, 0, equal, yield) }
}

func diff[K comparable, V any](a, b *node[K, V], shift uint, equal func(a, b V) bool, yield func(Change[K, V]) bool) bool {
	if a == b {
		return true
	}
	if a != nil && b != nil && a.children != nil && b.children != nil {
		for i := range a.children {
			if !diff(a.children[i], b.children[i], shift+fanBits, equal, yield) {
				return false
			}
		}
		return true
	}
	return diffEntries(a, b, shift, equal, yield)
}

// diffEntries compares two nodes of which at least one is a leaf, or not there.
func diffEntries[K comparable, V any](a, b *node[K, V], shift uint, equal func(a, b V) bool, yield func(Change[K, V]) bool) bool {
	return a.all(func(k K, old V) bool {
		now, ok := b.get(k, hash(k), shift)
		return ok && equal(old, now) || yield(Change[K, V]{Key: k, Old: old, New: now, HadOld: true, HasNew: ok})
	}) && b.all(func(k K, now V) bool {
		_, ok := a.get(k, hash(k), shift)
		return ok || yield(Change[K, V]{Key: k, New: now, HasNew: true})
	})
}
