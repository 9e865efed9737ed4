// Package persistent has a map whose versions are immutable values: changing it gives
// a new map and leaves the old one as it was, and what differs between two versions is
// found in time proportional to what was changed, not to their size. That is what lets
// the node hand whole desired states around and still pay for changes only.
package persistent

import (
	"hash/maphash"
	"iter"
	"maps"
)

// shardCount is how many parts a map is cut into. A change copies one part and the
// table of parts (8 KiB, about a microsecond); at 100,000 entries a part has 100.
const shardCount = 1024

var seed = maphash.MakeSeed()

// shard is held by pointer, so that two versions can tell a shared part at a glance.
type shard[K comparable, V any] struct{ entries map[K]V }

func (s *shard[K, V]) all() map[K]V {
	if s == nil {
		return nil
	}
	return s.entries
}

// Map is an immutable map. The zero value is empty. Copying it is free.
type Map[K comparable, V any] struct {
	shards *[shardCount]*shard[K, V]
	len    int
}

func index[K comparable](k K) uint64 { return maphash.Comparable(seed, k) % shardCount }

// Get returns the value of k.
func (m Map[K, V]) Get(k K) (v V, ok bool) {
	if m.shards == nil {
		return v, false
	}
	v, ok = m.shards[index(k)].all()[k]
	return v, ok
}

// Len returns the number of entries.
func (m Map[K, V]) Len() int { return m.len }

// All iterates over all entries in no order.
func (m Map[K, V]) All() iter.Seq2[K, V] {
	return func(yield func(K, V) bool) {
		if m.shards == nil {
			return
		}
		for _, s := range m.shards {
			for k, v := range s.all() {
				if !yield(k, v) {
					return
				}
			}
		}
	}
}

// Edit starts a new version from m.
func (m Map[K, V]) Edit() *Edit[K, V] {
	return &Edit[K, V]{shards: m.shards, len: m.len}
}

// Edit is a version in the making. It is not safe for concurrent use.
type Edit[K comparable, V any] struct {
	shards *[shardCount]*shard[K, V] // a Map's until the first change
	copied bool
	owned  [shardCount]bool // parts that no Map shares
	len    int
}

// Get returns the value of k.
func (e *Edit[K, V]) Get(k K) (V, bool) {
	return Map[K, V]{shards: e.shards}.Get(k)
}

// Set gives k the value v.
func (e *Edit[K, V]) Set(k K, v V) {
	s := e.own(index(k)).entries
	if _, ok := s[k]; !ok {
		e.len++
	}
	s[k] = v
}

// Delete removes k, if it is there.
func (e *Edit[K, V]) Delete(k K) {
	if _, ok := e.Get(k); ok {
		delete(e.own(index(k)).entries, k)
		e.len--
	}
}

func (e *Edit[K, V]) own(i uint64) *shard[K, V] {
	if !e.copied {
		table := new([shardCount]*shard[K, V])
		if e.shards != nil {
			*table = *e.shards
		}
		e.shards, e.copied = table, true
	}
	if !e.owned[i] {
		e.owned[i] = true
		entries := maps.Clone(e.shards[i].all())
		if entries == nil {
			entries = map[K]V{}
		}
		e.shards[i] = &shard[K, V]{entries: entries}
	}
	return e.shards[i]
}

// Map ends the edit and returns the new version. The edit must not be used again.
func (e *Edit[K, V]) Map() Map[K, V] {
	m := Map[K, V]{shards: e.shards, len: e.len}
	e.shards = nil
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
	return func(yield func(Change[K, V]) bool) {
		if from.shards == to.shards {
			return
		}
		for i := range shardCount {
			var a, b *shard[K, V]
			if from.shards != nil {
				a = from.shards[i]
			}
			if to.shards != nil {
				b = to.shards[i]
			}
			if a != b && !diffShard(a.all(), b.all(), equal, yield) {
				return
			}
		}
	}
}

func diffShard[K comparable, V any](a, b map[K]V, equal func(a, b V) bool, yield func(Change[K, V]) bool) bool {
	for k, old := range a {
		now, ok := b[k]
		if ok && equal(old, now) {
			continue
		}
		if !yield(Change[K, V]{Key: k, Old: old, New: now, HadOld: true, HasNew: ok}) {
			return false
		}
	}
	for k, now := range b {
		if _, ok := a[k]; ok {
			continue
		}
		if !yield(Change[K, V]{Key: k, New: now, HasNew: true}) {
			return false
		}
	}
	return true
}
