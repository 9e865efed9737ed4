package service_test

import (
	"fmt"
	"maps"
	"net/netip"
	"runtime"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
	"pgregory.net/rapid"

	"fairlead.dev/fairlead/internal/ipfamily"
	"fairlead.dev/fairlead/internal/service"
)

// TestOrderDoesNotMatter: what a node knows follows from the last state of each object
// and of the node, not from the way there: neither from the order of events, nor from
// what objects said before, nor from Snapshots taken in between.
func TestOrderDoesNotMatter(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		events := map[string]func(*service.Store){}
		for range rapid.IntRange(1, 15).Draw(t, "objects") {
			key, event := drawEvent(t)
			events[key] = event
		}
		keys := make([]string, 0, len(events))
		for key := range events {
			keys = append(keys, key)
		}
		slices.Sort(keys)
		direct, winding := service.NewStore("node1"), service.NewStore("node1")
		for _, key := range keys {
			events[key](direct)
		}
		for range rapid.IntRange(0, 15).Draw(t, "earlier events") {
			key, event := drawEvent(t)
			if _, ok := events[key]; ok { // something else of the same object, overwritten later
				event(winding)
			}
			if rapid.Bool().Draw(t, "snapshot") {
				winding.Snapshot()
			}
		}
		for _, key := range rapid.Permutation(keys).Draw(t, "order") {
			events[key](winding)
		}
		want, got := contents(direct.Snapshot()), contents(winding.Snapshot())
		if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{}, netip.Prefix{})); diff != "" {
			t.Fatalf("the order of events shows (-direct +winding):\n%s", diff)
		}
		checkSets(t, got)
	})
}

// drawEvent returns something that can happen, and to what.
func drawEvent(t *rapid.T) (object string, event func(*service.Store)) {
	switch rapid.IntRange(0, 3).Draw(t, "kind") {
	case 0:
		s := webService(nil)
		s.Name = rapid.SampledFrom([]string{"web", "other"}).Draw(t, "Service")
		if rapid.Bool().Draw(t, "local") {
			bothLocal(s)
		}
		if rapid.IntRange(0, 4).Draw(t, "no rules") == 0 {
			s.Spec.Type = corev1.ServiceTypeExternalName
		}
		return "Service " + s.Name, func(st *service.Store) { st.SetService(s) }
	case 1, 2:
		s := drawSlice(t)
		if rapid.IntRange(0, 4).Draw(t, "gone") == 0 {
			return "slice " + s.Name, func(st *service.Store) {
				st.DeleteSlice(types.NamespacedName{Namespace: s.Namespace, Name: s.Name})
			}
		}
		return "slice " + s.Name, func(st *service.Store) { st.SetSlice(s) }
	default:
		zone := rapid.SampledFrom([]string{"", "a", "b"}).Draw(t, "zone")
		return "zone", func(st *service.Store) { st.SetZone(zone) }
	}
}

func drawSlice(t *rapid.T) *discoveryv1.EndpointSlice {
	s := webSlice(fmt.Sprint("slice-", rapid.IntRange(0, 3).Draw(t, "slice")))
	s.Labels[discoveryv1.LabelServiceName] = rapid.SampledFrom([]string{"web", "web", "other"}).Draw(t, "of")
	if rapid.Bool().Draw(t, "weighted") {
		s.Annotations = map[string]string{"fairlead.dev/weights": fmt.Sprintf(`{"10.1.0.1":%d}`, rapid.IntRange(0, 3).Draw(t, "weight"))}
	}
	for range rapid.IntRange(0, 4).Draw(t, "endpoints") {
		words := rapid.SampledFrom([]string{"10.1.0.", "fd00::"}).Draw(t, "family") + fmt.Sprint(rapid.IntRange(1, 4).Draw(t, "address"))
		words += rapid.SampledFrom([]string{"", "", " unready", " draining", " gone"}).Draw(t, "condition")
		words += rapid.SampledFrom([]string{"", " here", " nowhere"}).Draw(t, "node")
		words += rapid.SampledFrom([]string{"", " node=node1", " node=node2"}).Draw(t, "node hint")
		words += rapid.SampledFrom([]string{"", " zone=a", " zone=b", " zone=b zone=a"}).Draw(t, "zone hint")
		s.Endpoints = append(s.Endpoints, at(words))
	}
	return s
}

func contents(s *service.Snapshot) map[types.NamespacedName]*service.Service {
	return maps.Collect(s.Services.All())
}

// checkSets looks at what holds for the endpoints of every Service: they are in order,
// each once, and what is left to end is not what gets new connections.
func checkSets(t *rapid.T, services map[types.NamespacedName]*service.Service) {
	for name, s := range services {
		for _, p := range s.Ports {
			for _, f := range ipfamily.All {
				cluster, local := addrPorts(p.Cluster[f]), addrPorts(p.Local[f])
				for set, addrs := range map[string][]netip.AddrPort{"Cluster": cluster, "Local": local, "Serving": p.Serving[f]} {
					for i, addr := range addrs {
						if ipfamily.Of(addr.Addr()) != f || i > 0 && addrs[i-1].Compare(addr) >= 0 {
							t.Fatalf("%s: %s of %s out of order, or of another family: %v", name, set, f, addrs)
						}
					}
				}
				for _, addr := range p.Serving[f] {
					if slices.Contains(cluster, addr) || slices.Contains(local, addr) {
						t.Fatalf("%s: %s is left to end and gets new connections", name, addr)
					}
				}
			}
		}
	}
}

func addrPorts(backends []service.Backend) []netip.AddrPort {
	var out []netip.AddrPort
	for _, b := range backends {
		out = append(out, b.Addr)
	}
	return out
}

// BenchmarkStore measures one changed endpoint among Services of 10 endpoints, and what
// the store and its Snapshot hold in memory.
func BenchmarkStore(b *testing.B) {
	for _, n := range []int{1000, 50_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			st := service.NewStore("node1")
			for i := range n {
				st.SetService(webService(func(s *corev1.Service) {
					s.Name, s.Spec.ClusterIPs = fmt.Sprint("service-", i), []string{fmt.Sprintf("10.0.%d.%d", i/256, i%256)}
				}))
				st.SetSlice(tenEndpoints(i, false))
			}
			st.Snapshot()
			runtime.GC()
			var stats runtime.MemStats
			runtime.ReadMemStats(&stats)
			b.ResetTimer()
			for i := range b.N {
				st.SetSlice(tenEndpoints(i%n, i/n%2 == 0))
				st.Snapshot()
			}
			b.ReportMetric(float64(stats.HeapInuse)/float64(n), "heap-B/service")
			runtime.KeepAlive(st)
		})
	}
}

func tenEndpoints(of int, oneDrains bool) *discoveryv1.EndpointSlice {
	s := webSlice(fmt.Sprint("slice-", of))
	s.Labels[discoveryv1.LabelServiceName] = fmt.Sprint("service-", of)
	for i := range 10 {
		s.Endpoints = append(s.Endpoints, endpoint(fmt.Sprintf("10.%d.%d.%d", 1+of/65536, of/256%256, (of+i)%256), yes, yes, no))
	}
	if oneDrains {
		s.Endpoints[0] = draining(s.Endpoints[0].Addresses[0])
	}
	return s
}
