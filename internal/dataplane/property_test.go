package dataplane_test

import (
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"k8s.io/apimachinery/pkg/types"
	"pgregory.net/rapid"

	"fairlead.dev/fairlead/internal/dataplane"
	"fairlead.dev/fairlead/internal/ipfamily"
	"fairlead.dev/fairlead/internal/persistent"
	"fairlead.dev/fairlead/internal/service"
)

func prefixes(s ...string) (out []netip.Prefix) {
	for _, p := range s {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

func addrs(s ...string) (out []netip.Addr) {
	for _, a := range s {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

// drawBackends returns some of five endpoints of each family.
func drawBackends(t *rapid.T, label string) (out service.Backends) {
	for j := range 5 {
		if !rapid.Bool().Draw(t, label) {
			continue
		}
		weight := rapid.SampledFrom([]uint16{1, 1, 2, 6}).Draw(t, "weight")
		for f, a := range addrs(fmt.Sprintf("10.1.0.%d", j+1), fmt.Sprintf("fd01::%d", j+1)) {
			out[f] = append(out[f], service.Backend{Addr: netip.AddrPortFrom(a, 8080), Local: j < 3, Weight: weight})
		}
	}
	return out
}

// drawService returns a Service that overlaps with others in addresses, endpoints and
// node ports.
func drawService(t *rapid.T, i int) *service.Service {
	s := &service.Service{
		Name:            types.NamespacedName{Namespace: "default", Name: fmt.Sprint("s", i)},
		Created:         time.Unix(int64(rapid.IntRange(0, 2).Draw(t, "created")), 0),
		ClusterIPs:      addrs(fmt.Sprintf("10.0.0.%d", i+1), fmt.Sprintf("fd00::%d", i+1)),
		ExternalIPs:     rapid.SampledFrom([][]netip.Addr{nil, addrs("192.0.2.1"), addrs("192.0.2.1", "2001:db8::1")}).Draw(t, "externalIPs"),
		LoadBalancerIPs: rapid.SampledFrom([][]netip.Addr{nil, addrs("192.0.2.1"), addrs("192.0.2.2", "2001:db8::2")}).Draw(t, "loadBalancerIPs"),
		InternalLocal:   rapid.Bool().Draw(t, "internalLocal"), ExternalLocal: rapid.Bool().Draw(t, "externalLocal"),
		Affinity:     rapid.SampledFrom([]time.Duration{0, 0, time.Second, 3 * time.Hour}).Draw(t, "affinity"),
		SourceRanges: rapid.SampledFrom([][]netip.Prefix{nil, nil, prefixes("10.0.0.0/8", "10.1.0.0/16", "192.0.2.0/24"), prefixes("0.0.0.0/0"), prefixes("2001:db8::/32")}).Draw(t, "sourceRanges"),
		Scheduler:    rapid.SampledFrom([]service.Scheduler{service.Random, service.Random, service.Random, service.Random, service.RoundRobin, service.RoundRobin, service.SourceHash, service.SourceHash, service.Maglev}).Draw(t, "scheduler"),
	}
	for _, protocol := range []service.Protocol{service.TCP, service.UDP} {
		s.Ports = append(s.Ports, service.Port{
			Protocol: protocol, Port: uint16(rapid.IntRange(80, 81).Draw(t, "port")),
			NodePort: rapid.SampledFrom([]uint16{0, 30000, 30001}).Draw(t, "nodePort"),
			Cluster:  drawBackends(t, "cluster"), Local: drawBackends(t, "local"),
		})
	}
	return s
}

// drawSnapshot returns the state after prev, of which some Services stay as they are.
func drawSnapshot(t *rapid.T, prev *service.Snapshot) *service.Snapshot {
	edit := prev.Services.Edit()
	for i := range 6 {
		switch name := (types.NamespacedName{Namespace: "default", Name: fmt.Sprint("s", i)}); rapid.IntRange(0, 2).Draw(t, "change") {
		case 0:
			edit.Set(name, drawService(t, i))
		case 1:
			edit.Delete(name)
		}
	}
	return &service.Snapshot{
		Services:      edit.Map(),
		NodePortAddrs: rapid.SampledFrom([][]netip.Addr{addrs("192.0.2.100"), addrs("192.0.2.101", "2001:db8::64")}).Draw(t, "nodePortAddrs"),
		NodeAddrs:     rapid.SampledFrom([][]netip.Addr{nil, addrs("192.0.2.100"), addrs("198.51.100.1", "2001:db8::64")}).Draw(t, "nodeAddrs"),
		PodCIDRs:      rapid.SampledFrom([][]netip.Prefix{nil, podCIDRs, prefixes("10.244.0.0/16", "10.244.1.0/24")}).Draw(t, "podCIDRs"),
		ServiceCIDRs:  rapid.SampledFrom([][]netip.Prefix{nil, prefixes("10.0.0.0/24", "10.0.1.0/24", "fd00::/112"), prefixes("255.0.0.0/8")}).Draw(t, "serviceCIDRs"),
	}
}

// meaning is what a Ruleset says, without the ids, slots and numbers that it says it with.
func meaning(r dataplane.Ruleset) map[string][]string {
	out := map[string][]string{}
	for f, target := range r.Frontends.All() {
		key := fmt.Sprintf("%d %s/%d/%d", f.Table, f.Addr, f.Protocol, f.Port)
		slots, _ := r.Slots.Get(dataplane.SlotKey{Family: ipfamily.Of(f.Addr), ID: target.ID})
		class, ok := r.Classes.Get(target.Class)
		if !ok {
			class.Slots = target.Class // by itself, for those that every table has
		}
		class.Owner = min(class.Owner, 1)
		to := []string{fmt.Sprintf("%+v", class)}
		if class.Scheduler == service.SourceHash { // whose order says which client goes where
			to[0] += fmt.Sprint(endpoints(slots))
		}
		out[key] = append(to, slices.Sorted(slices.Values(endpoints(slots)))...)
	}
	for f, fence := range r.Fences.All() {
		out["fence "+f.Addr.String()+fmt.Sprint(f.Protocol, f.Port)] = []string{fmt.Sprint(fence)}
	}
	for m := range r.Members.All() {
		out[fmt.Sprint("member ", m)] = nil
	}
	return out
}

func endpoints(slots []dataplane.Slot) (out []string) {
	for _, s := range slots {
		out = append(out, s.Addr.String())
	}
	return out
}

// applyModel applies changes to plain maps, and fails on what a kernel would refuse.
func applyModel(t *rapid.T, have map[any]any, c dataplane.Changes) map[any]any {
	out := maps.Clone(have)
	change := func(key, old, now any, hadOld, hasNew bool) {
		if was, ok := out[key]; ok != hadOld || ok && !reflect.DeepEqual(was, old) {
			t.Fatalf("change of %v expects %v, there is %v", key, old, was)
		}
		if delete(out, key); hasNew {
			out[key] = now
		}
	}
	for ch := range c.Frontends() {
		change(ch.Key, ch.Old, ch.New, ch.HadOld, ch.HasNew)
	}
	for ch := range c.Fences() {
		change([2]any{"fence", ch.Key}, ch.Old, ch.New, ch.HadOld, ch.HasNew)
	}
	for ch := range c.Members() {
		change(ch.Key, struct{}{}, struct{}{}, ch.HadOld, ch.HasNew)
	}
	for _, ch := range c.Classes() {
		change(ch.Key, ch.Old, ch.New, ch.HadOld, ch.HasNew)
	}
	for ch := range c.Slots() {
		change([2]any{ch.Key, ch.Slot}, ch.Old, ch.New, ch.Old.Addr.IsValid(), ch.New.Addr.IsValid())
	}
	for ch := range c.Handles() {
		change([3]any{"handle", ch.Key, ch.Handle}, ch.Old, ch.New, ch.Old.IsValid(), ch.New.IsValid())
	}
	return out
}

var values = cmpopts.EquateComparable(netip.AddrPort{}, netip.Addr{}, netip.Prefix{}, dataplane.Target{}, dataplane.Frontend{},
	dataplane.Member{}, dataplane.Slot{}, dataplane.Class{})

// TestDiffLeadsFromOneToTheOther: for random a, b, applying Diff(a, b) to a gives b;
// compiling b from a says the same as compiling it from nothing; and what did not
// change is not written.
func TestDiffLeadsFromOneToTheOther(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var program dataplane.Program
		snap := &service.Snapshot{}
		have := map[any]any{}
		for range rapid.IntRange(1, 4).Draw(t, "steps") {
			snap = drawSnapshot(t, snap)
			next := dataplane.Compile(program, snap)
			have = applyModel(t, have, dataplane.Diff(program.Ruleset, next.Ruleset))
			if want := applyModel(t, map[any]any{}, dataplane.Diff(dataplane.Ruleset{}, next.Ruleset)); !reflect.DeepEqual(want, have) {
				t.Fatalf("applied differs from compiled (-want +got):\n%s", cmp.Diff(want, have, values))
			}
			fresh := dataplane.Compile(dataplane.Program{}, snap)
			if diff := cmp.Diff(meaning(fresh.Ruleset), meaning(next.Ruleset)); diff != "" {
				t.Fatalf("compiled from the last differs from compiled anew (-anew +from last):\n%s", diff)
			}
			if again := dataplane.Diff(next.Ruleset, dataplane.Compile(next, snap).Ruleset); len(applyModel(t, map[any]any{}, again)) != 0 {
				t.Fatalf("nothing changed, but this would be written: %v", applyModel(t, map[any]any{}, again))
			}
			program = next
		}
	})
}

// TestKernelHoldsWhatWasCompiled: after any sequence of Snapshots, an agent that starts
// anew finds nothing to write, and nft can list the rules.
func TestKernelHoldsWhatWasCompiled(t *testing.T) {
	w := newWorld(t, 1)
	sink := w.on(t, 0)
	snap := &service.Snapshot{Services: persistent.Map[types.NamespacedName, *service.Service]{}}
	rapid.Check(t, func(rt *rapid.T) {
		snap = drawSnapshot(rt, snap)
		sink.apply(snap)
		if wrote := sink.check(); wrote != (dataplane.Written{}) {
			rt.Fatalf("check after apply wrote %+v", wrote)
		}
		if wrote := w.on(t, 0).apply(snap); wrote != (dataplane.Written{}) {
			rt.Fatalf("a new agent wrote %+v", wrote)
		}
	})
	if out := sink.nft("list", "ruleset"); !strings.Contains(out, "table ip6 fairlead") {
		t.Errorf("nft does not list the rules:\n%s", out)
	}
}
