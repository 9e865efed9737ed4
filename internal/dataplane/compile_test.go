package dataplane_test

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"

	"fairlead.dev/fairlead/internal/dataplane"
	"fairlead.dev/fairlead/internal/ipfamily"
)

// frontends returns what a Ruleset says in words: where each frontend leads to.
func frontends(r dataplane.Ruleset) map[string][]string {
	out := map[string][]string{}
	for f, target := range r.Frontends.All() {
		slots, _ := r.Slots.Get(dataplane.SlotKey{Family: ipfamily.Of(f.Addr), ID: target.ID})
		var to []string
		for _, s := range slots {
			to = append(to, s.Addr.String())
		}
		slices.Sort(to)
		out[fmt.Sprintf("%d %s/%d/%d", f.Table, f.Addr, f.Protocol, f.Port)] = to
	}
	return out
}

func TestCompile(t *testing.T) {
	node := []netip.Addr{netip.MustParseAddr("192.0.2.1")}
	tcp := []corev1.Protocol{corev1.ProtocolTCP}
	for name, tc := range map[string]struct {
		services []svc
		want     map[string][]string
	}{
		"no Services, no frontends": {want: map[string][]string{}},
		"every address of a Service leads to its endpoints of that family": {
			services: []svc{{name: "a", clusterIPs: []string{"10.0.0.1", "fd00::1"}, lbIPs: []string{"192.0.2.9"}, externals: []string{"2001:db8::1"},
				port: 80, target: 8080, nodePort: 30080, protocols: tcp, endpoints: []string{"10.1.0.1", "10.1.0.2", "fd01::1"}}},
			want: map[string][]string{
				"0 10.0.0.1/6/80":    {"10.1.0.1:8080", "10.1.0.2:8080"},
				"0 fd00::1/6/80":     {"[fd01::1]:8080"},
				"1 192.0.2.9/6/80":   {"10.1.0.1:8080", "10.1.0.2:8080"},
				"1 2001:db8::1/6/80": {"[fd01::1]:8080"},
				"2 0.0.0.0/6/30080":  {"10.1.0.1:8080", "10.1.0.2:8080"},
				"2 ::/6/30080":       {"[fd01::1]:8080"},
			},
		},
		"TCP and UDP of one port are separate": {
			services: []svc{
				{name: "t", clusterIPs: []string{"10.0.0.1"}, externals: []string{"192.0.2.9"}, port: 53, target: 53, protocols: tcp, endpoints: []string{"10.1.0.1"}},
				{name: "u", clusterIPs: []string{"10.0.0.2"}, externals: []string{"192.0.2.9"}, port: 53, target: 54, protocols: []corev1.Protocol{corev1.ProtocolUDP}, endpoints: []string{"10.1.0.2"}},
			},
			want: map[string][]string{
				"0 10.0.0.1/6/53": {"10.1.0.1:53"}, "1 192.0.2.9/6/53": {"10.1.0.1:53"},
				"0 10.0.0.2/17/53": {"10.1.0.2:54"}, "1 192.0.2.9/17/53": {"10.1.0.2:54"},
			},
		},
		"a load balancer IP is stronger than an older Service's external IP": {
			services: []svc{
				{name: "old", age: time.Hour, clusterIPs: []string{"10.0.0.1"}, externals: []string{"192.0.2.9"}, port: 80, target: 1, protocols: tcp, endpoints: []string{"10.1.0.1"}},
				{name: "new", clusterIPs: []string{"10.0.0.2"}, lbIPs: []string{"192.0.2.9"}, port: 80, target: 2, protocols: tcp, endpoints: []string{"10.1.0.2"}},
			},
			want: map[string][]string{"0 10.0.0.1/6/80": {"10.1.0.1:1"}, "0 10.0.0.2/6/80": {"10.1.0.2:2"}, "1 192.0.2.9/6/80": {"10.1.0.2:2"}},
		},
		"of two Services with one external IP the older has it": {
			services: []svc{
				{name: "a", clusterIPs: []string{"10.0.0.1"}, externals: []string{"192.0.2.9"}, port: 80, target: 1, protocols: tcp, endpoints: []string{"10.1.0.1"}},
				{name: "b", age: time.Hour, clusterIPs: []string{"10.0.0.2"}, externals: []string{"192.0.2.9"}, port: 80, target: 2, protocols: tcp, endpoints: []string{"10.1.0.2"}},
			},
			want: map[string][]string{"0 10.0.0.1/6/80": {"10.1.0.1:1"}, "0 10.0.0.2/6/80": {"10.1.0.2:2"}, "1 192.0.2.9/6/80": {"10.1.0.2:2"}},
		},
		"an address of a family that the Service lacks is not its own": {
			services: []svc{{name: "a", clusterIPs: []string{"10.0.0.1"}, externals: []string{"2001:db8::1"}, lbIPs: []string{"2001:db8::2"},
				port: 80, target: 1, protocols: tcp, endpoints: []string{"10.1.0.1"}}},
			want: map[string][]string{"0 10.0.0.1/6/80": {"10.1.0.1:1"}},
		},
		"unready endpoints get nothing, draining ones when nothing is ready": {
			services: []svc{
				{name: "a", clusterIPs: []string{"10.0.0.1"}, port: 80, target: 1, protocols: tcp, endpoints: []string{"10.1.0.1"}, notReady: []string{"10.1.0.2"}, terminating: []string{"10.1.0.3"}},
				{name: "b", clusterIPs: []string{"10.0.0.2"}, port: 80, target: 1, protocols: tcp, notReady: []string{"10.1.0.2"}, terminating: []string{"10.1.0.3"}},
				{name: "c", clusterIPs: []string{"10.0.0.3"}, port: 80, target: 1, protocols: tcp, notReady: []string{"10.1.0.2"}},
			},
			want: map[string][]string{"0 10.0.0.1/6/80": {"10.1.0.1:1"}, "0 10.0.0.2/6/80": {"10.1.0.3:1"}, "0 10.0.0.3/6/80": nil},
		},
	} {
		t.Run(name, func(t *testing.T) {
			got := frontends(dataplane.Compile(dataplane.Program{}, snapshot(node, tc.services...)).Ruleset)
			if diff := cmp.Diff(tc.want, got, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("Compile() mismatch (-want +got):\n%s", diff)
			}
		})
	}
}

// TestOneEndpoint shows what one endpoint more or less costs.
func TestOneEndpoint(t *testing.T) {
	ten := svc{name: "a", clusterIPs: []string{"10.0.0.1"}, port: 80, target: 80, protocols: []corev1.Protocol{corev1.ProtocolTCP}}
	for i := range 10 {
		ten.endpoints = append(ten.endpoints, fmt.Sprintf("10.1.0.%d", 10*i+10))
	}
	nine, moved := ten, ten
	nine.endpoints = slices.Delete(slices.Clone(ten.endpoints), 3, 4)
	moved.endpoints = append([]string{"10.1.0.1"}, nine.endpoints...)
	base := dataplane.Compile(dataplane.Program{}, snapshot(nil, ten))
	for name, tc := range map[string]struct {
		to               svc
		slots, frontends int
	}{
		"the same again": {to: ten},
		"one less: the last takes its slot, the number changes": {to: nine, slots: 2, frontends: 1},
		"one for another: its slot":                             {to: moved, slots: 1},
	} {
		t.Run(name, func(t *testing.T) {
			c := dataplane.Diff(base.Ruleset, dataplane.Compile(base, snapshot(nil, tc.to)).Ruleset)
			slots, frontends := slices.Collect(c.Slots()), slices.Collect(c.Frontends())
			if len(slots) != tc.slots || len(frontends) != tc.frontends {
				t.Errorf("changes %v and %v, want %d slots and %d frontends", slots, frontends, tc.slots, tc.frontends)
			}
		})
	}
}

// TestMoreEndpointsThanHandles: a Service with affinity and more endpoints than can have
// a handle, at once or one after the other, uses those that fit, and says so.
func TestMoreEndpointsThanHandles(t *testing.T) {
	of := func(first, n int) svc {
		s := svc{name: "a", clusterIPs: []string{"10.0.0.1"}, port: 80, target: 80, protocols: []corev1.Protocol{corev1.ProtocolTCP}}.with(affinity(60))
		for i := first; i < first+n; i++ {
			s.endpoints = append(s.endpoints, fmt.Sprintf("10.1.%d.%d", i/250, i%250))
		}
		return s
	}
	for name, tc := range map[string]struct {
		steps     []svc
		endpoints int
		refused   bool
	}{
		"as many as fit": {steps: []svc{of(0, dataplane.MaxEndpoints)}, endpoints: dataplane.MaxEndpoints},
		"more":           {steps: []svc{of(0, dataplane.MaxEndpoints+10)}, endpoints: dataplane.MaxEndpoints, refused: true},
		"all replaced":   {steps: []svc{of(0, 5000), of(5000, 5000), of(0, 5000)}, endpoints: 5000},
		"less again":     {steps: []svc{of(0, dataplane.MaxEndpoints+10), of(5, dataplane.MaxEndpoints)}, endpoints: dataplane.MaxEndpoints},
	} {
		t.Run(name, func(t *testing.T) {
			var program dataplane.Program
			for _, s := range tc.steps {
				compiled := make(chan dataplane.Program, 1)
				go func() { compiled <- dataplane.Compile(program, snapshot(nil, s)) }()
				select {
				case program = <-compiled:
				case <-time.After(testTimeout):
					t.Fatal("Compile does not end")
				}
			}
			handles := map[uint32]bool{}
			for _, slots := range program.Ruleset.Slots.All() {
				for _, s := range slots {
					handles[s.Handle] = true
				}
			}
			if len(handles) != tc.endpoints || handles[0] {
				t.Errorf("%d handles, 0 among them: %t; want %d", len(handles), handles[0], tc.endpoints)
			}
			if refused := program.Refused.Len() > 0; refused != tc.refused {
				t.Errorf("refused: %t, want %t", refused, tc.refused)
			}
		})
	}
}
