package dataplane_test

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"fairlead.dev/fairlead/api/v1alpha1"
	"fairlead.dev/fairlead/internal/dataplane"
	"fairlead.dev/fairlead/internal/ipfamily"
	"fairlead.dev/fairlead/internal/persistent"
	"fairlead.dev/fairlead/internal/service"
)

// slotsOf compiles a Service with n endpoints of the weights, the first without a weight
// of its own having 1, and returns its slots.
func slotsOf(scheduler service.Scheduler, n int, weights ...uint16) []dataplane.Slot {
	name := types.NamespacedName{Namespace: "default", Name: "web"}
	s := &service.Service{Name: name, ClusterIPs: addrs("10.0.0.1"), Scheduler: scheduler}
	p := service.Port{Protocol: service.TCP, Port: 80}
	for i := range n {
		b := service.Backend{Addr: netip.MustParseAddrPort(fmt.Sprintf("10.1.0.%d:80", i+1)), Weight: 1}
		if i < len(weights) {
			b.Weight = weights[i]
		}
		p.Cluster[ipfamily.IPv4] = append(p.Cluster[ipfamily.IPv4], b)
	}
	s.Ports = []service.Port{p}
	services := persistent.Map[types.NamespacedName, *service.Service]{}.Edit()
	services.Set(name, s)
	r := dataplane.Compile(dataplane.Program{}, &service.Snapshot{Services: services.Map()}).Ruleset
	target, _ := r.Frontends.Get(dataplane.Frontend{Addr: s.ClusterIPs[0], Protocol: service.TCP, Port: 80})
	slots, _ := r.Slots.Get(dataplane.SlotKey{Family: ipfamily.IPv4, ID: target.ID})
	return slots
}

func shares(slots []dataplane.Slot) map[string]int {
	out := map[string]int{}
	for _, s := range slots {
		out[s.Addr.Addr().String()]++
	}
	return out
}

func TestWeights(t *testing.T) {
	for name, tc := range map[string]struct {
		weights []uint16
		want    map[string]int
	}{
		"equal weights are one slot each":         {[]uint16{100, 100}, map[string]int{"10.1.0.1": 1, "10.1.0.2": 1}},
		"slots are in the smallest proportion":    {[]uint16{2, 6}, map[string]int{"10.1.0.1": 1, "10.1.0.2": 3}},
		"weights without a common divisor":        {[]uint16{2, 3}, map[string]int{"10.1.0.1": 2, "10.1.0.2": 3}},
		"an endpoint without a weight counts one": {[]uint16{3}, map[string]int{"10.1.0.1": 3, "10.1.0.2": 1}},
	} {
		t.Run(name, func(t *testing.T) {
			for _, scheduler := range []service.Scheduler{service.Random, service.RoundRobin, service.SourceHash} {
				if got := shares(slotsOf(scheduler, 2, tc.weights...)); fmt.Sprint(got) != fmt.Sprint(tc.want) {
					t.Errorf("scheduler %d: shares %v, want %v", scheduler, got, tc.want)
				}
			}
		})
	}
}

// TestManyWeights: weights that ask for more slots than there are leave no endpoint out,
// and keep their proportion.
func TestManyWeights(t *testing.T) {
	weights := slices.Repeat([]uint16{v1alpha1.MaxWeight}, 200)
	for i := range 100 {
		weights[i] = v1alpha1.MaxWeight/2 - 1
	}
	slots := slotsOf(service.Random, len(weights), weights...)
	got := shares(slots)
	if len(slots) > dataplane.MaxEndpoints || len(got) != len(weights) {
		t.Errorf("%d slots for %d endpoints, want no more than %d for %d", len(slots), len(got), dataplane.MaxEndpoints, len(weights))
	}
	if light, heavy := got["10.1.0.1"], got["10.1.0.200"]; heavy < 2*light-2 || heavy > 2*light+4 {
		t.Errorf("weights 49 and 100 have %d and %d slots", light, heavy)
	}
}

// TestMaglev: shares are even and follow the weights, and an endpoint that goes moves
// hardly any clients but its own.
func TestMaglev(t *testing.T) {
	for _, n := range []int{2, 10, 32, 33} {
		ten, nine := slotsOf(service.Maglev, n), slotsOf(service.Maglev, n-1)
		even := len(ten) / n
		for addr, got := range shares(ten) {
			if got < even-1 || got > even+2 {
				t.Errorf("%d endpoints: %s has %d of %d slots", n, addr, got, len(ten))
			}
		}
		moved := 0
		gone := netip.MustParseAddr(fmt.Sprintf("10.1.0.%d", n))
		for i := range min(len(ten), len(nine)) {
			if ten[i].Addr != nine[i].Addr && ten[i].Addr.Addr() != gone {
				moved++
			}
		}
		if len(ten) == len(nine) && moved > len(ten)/10 {
			t.Errorf("%d endpoints: %d of %d clients moved although their endpoint stayed", n, moved, len(ten))
		}
	}
	heavy := shares(slotsOf(service.Maglev, 2, 3, 1))
	if ratio := float64(heavy["10.1.0.1"]) / float64(heavy["10.1.0.2"]); ratio < 2.8 || ratio > 3.2 {
		t.Errorf("weights 3 and 1 have %v", heavy)
	}
}

// TestIdleClasses: ways to pick that nothing uses any more do not pile up.
func TestIdleClasses(t *testing.T) {
	name := types.NamespacedName{Namespace: "default", Name: "web"}
	var program dataplane.Program
	for n := range 400 {
		s := &service.Service{Name: name, ClusterIPs: addrs("10.0.0.1"), Affinity: time.Hour}
		p := service.Port{Protocol: service.TCP, Port: 80}
		for i := range n {
			p.Cluster[ipfamily.IPv4] = append(p.Cluster[ipfamily.IPv4], service.Backend{
				Addr: netip.MustParseAddrPort(fmt.Sprintf("10.1.%d.%d:80", i/250, i%250+1)), Weight: 1,
			})
		}
		s.Ports = []service.Port{p}
		services := persistent.Map[types.NamespacedName, *service.Service]{}.Edit()
		services.Set(name, s)
		program = dataplane.Compile(program, &service.Snapshot{Services: services.Map()})
		if got := program.Ruleset.Classes.Len(); got > 34 {
			t.Fatalf("%d classes with %d endpoints of one Service", got, n)
		}
	}
}
