package controllers

import (
	"sync"
	"time"

	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/resourceversion"
)

// sliceMemory bounds how long the cache may be said to lag: a watch that is cut off is
// back within client-go's backoff of at most 30 s (reflector.go). Believing the cache
// too early costs one refused write, because names and versions are checked by the API
// server; too late, a repair.
const sliceMemory = 30 * time.Second

// sliceWrites remembers the slices that are newer than the cache, so that a plan can be
// made right after a write. The zero value is empty and ready. It is safe for
// concurrent use.
type sliceWrites struct {
	mu      sync.Mutex
	entries map[types.NamespacedName]sliceWrite
	// seen is the newest resourceVersion that the watch delivered, by namespace: one
	// watch is in order, but a cache may have one for each namespace.
	seen map[string]string
}

// sliceWrite is the newest known state of a slice.
type sliceWrite struct {
	service types.NamespacedName
	slice   *discoveryv1.EndpointSlice
	deleted bool
	// foreign is what another writer wrote: the cache may have it, and not be able to
	// find it by its Service.
	foreign bool
	since   time.Time
}

// wrote remembers slice as returned by a create or an update for service.
func (w *sliceWrites) wrote(service types.NamespacedName, slice *discoveryv1.EndpointSlice, now time.Time) {
	w.put(sliceWrite{service: service, slice: slice, since: now})
}

// found remembers slice as read from the API server.
func (w *sliceWrites) found(service types.NamespacedName, slice *discoveryv1.EndpointSlice, now time.Time) {
	w.put(sliceWrite{service: service, slice: slice, foreign: true, since: now})
}

// gone remembers that the slice with this UID does not exist any more.
func (w *sliceWrites) gone(service types.NamespacedName, slice *discoveryv1.EndpointSlice, now time.Time) {
	w.put(sliceWrite{service: service, slice: slice, deleted: true, since: now})
}

func (w *sliceWrites) put(entry sliceWrite) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.entries == nil {
		w.entries = map[types.NamespacedName]sliceWrite{}
	}
	w.entries[nameOf(entry.slice)] = entry
}

func nameOf(slice *discoveryv1.EndpointSlice) types.NamespacedName {
	return types.NamespacedName{Namespace: slice.Namespace, Name: slice.Name}
}

// observe takes note of an event of the watch and says whether it tells nothing new,
// because it is the echo of one of our writes.
func (w *sliceWrites) observe(slice *discoveryv1.EndpointSlice, deleted bool) (echo bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.seen == nil {
		w.seen = map[string]string{}
	}
	if newer(slice.ResourceVersion, w.seen[slice.Namespace]) {
		w.seen[slice.Namespace] = slice.ResourceVersion
	}
	entry, ok := w.entries[nameOf(slice)]
	if !ok || entry.slice.UID != slice.UID {
		return false
	}
	if !deleted && (entry.deleted || newer(entry.slice.ResourceVersion, slice.ResourceVersion)) {
		return true // older than what we know
	}
	delete(w.entries, nameOf(slice))
	return deleted == entry.deleted && !entry.foreign &&
		(deleted || entry.slice.ResourceVersion == slice.ResourceVersion)
}

// overlay returns cached, the slices of service in the cache, with those replaced, added
// or left out that are known better.
func (w *sliceWrites) overlay(service types.NamespacedName, cached []*discoveryv1.EndpointSlice, now time.Time) []*discoveryv1.EndpointSlice {
	w.mu.Lock()
	defer w.mu.Unlock()
	known := map[string]sliceWrite{}
	for name, entry := range w.entries {
		switch {
		case w.expired(entry, now):
			delete(w.entries, name)
		case entry.service == service:
			known[name.Name] = entry
		}
	}
	if len(known) == 0 {
		return cached
	}
	merged := make([]*discoveryv1.EndpointSlice, 0, len(cached)+len(known))
	for _, slice := range cached {
		entry, ok := known[slice.Name]
		if !ok || entry.outdatedBy(slice) {
			merged = append(merged, slice)
			delete(known, slice.Name)
		}
	}
	for _, entry := range known {
		if !entry.deleted {
			merged = append(merged, entry.slice)
		}
	}
	return merged
}

// outdatedBy says whether a slice of the same name in the cache is the newer one.
func (entry sliceWrite) outdatedBy(slice *discoveryv1.EndpointSlice) bool {
	if entry.deleted && entry.slice.UID == slice.UID {
		return false
	}
	return newer(slice.ResourceVersion, entry.slice.ResourceVersion)
}

// expired says whether the cache is to be believed rather than entry: it has caught up,
// or entry is so old that its event must have been lost.
func (w *sliceWrites) expired(entry sliceWrite, now time.Time) bool {
	if now.Sub(entry.since) > sliceMemory {
		return true
	}
	seen := w.seen[entry.slice.Namespace]
	// The version of a deletion is not known, and a foreign slice may be in the cache
	// without being found there.
	return !entry.deleted && !entry.foreign && seen != "" && !newer(entry.slice.ResourceVersion, seen)
}

// forget drops all that is known about the slices of service.
func (w *sliceWrites) forget(service types.NamespacedName) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for name, entry := range w.entries {
		if entry.service == service {
			delete(w.entries, name)
		}
	}
}

// newer says whether resourceVersion a is later than b. Everything is later than none.
// Versions that have no order (KEP-5504 rules them out) are never newer, which leaves
// the cache as it is.
func newer(a, b string) bool {
	if b == "" {
		return a != ""
	}
	order, err := resourceversion.CompareResourceVersion(a, b)
	return err == nil && order > 0
}
