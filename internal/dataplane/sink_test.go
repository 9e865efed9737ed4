package dataplane_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/types"

	"fairlead.dev/fairlead/internal/dataplane"
	"fairlead.dev/fairlead/internal/ipfamily"
	"fairlead.dev/fairlead/internal/persistent"
	"fairlead.dev/fairlead/internal/service"
)

// big returns n Services of 10 endpoints.
func big(n int) []svc {
	out := make([]svc, 0, n)
	for i := range n {
		s := svc{name: fmt.Sprint("s", i), port: 80, target: 8080, protocols: nil,
			clusterIPs: []string{fmt.Sprintf("10.96.%d.%d", i/250, i%250+1)}}
		for e := range 10 {
			s.endpoints = append(s.endpoints, fmt.Sprintf("10.%d.%d.%d", 128+e, i/250, i%250+1))
		}
		out = append(out, s)
	}
	return out
}

// TestEveryNameCanBeListed: no chain, set or map has a word of nft's own language for its
// name, which nft refuses to look for.
func TestEveryNameCanBeListed(t *testing.T) {
	w := newWorld(t, 1)
	sink := &nodeSink{t: t, node: w.nodes[0], Sink: dataplane.NewSink(dataplane.Config{Local: dataplane.LocalTraffic{CIDRs: true}, Counters: true})}
	sink.apply(snapshot(nil, svc{name: "web", clusterIPs: []string{"10.96.0.1"}, port: 80, target: 80, endpoints: []string{"10.1.0.1"}}.with(affinity(60))))
	names := regexp.MustCompile(`(?m)^\t(chain|set|map) (\S+) \{$`).FindAllStringSubmatch(sink.nft("list", "table", "ip", "fairlead"), -1)
	if len(names) < 100 {
		t.Fatalf("%d names in the listing", len(names))
	}
	for _, name := range names {
		sink.nft("list", name[1], "ip", "fairlead", name[2])
	}
}

// TestManyEndpoints grows a Service beyond the chains that exist from the start.
func TestManyEndpoints(t *testing.T) {
	w := newWorld(t, 1)
	sink := w.on(t, 0)
	s := svc{name: "many", clusterIPs: []string{"10.96.0.1"}, port: 80, target: 80}
	for i := range 300 {
		s.endpoints = append(s.endpoints, fmt.Sprintf("10.1.%d.%d", i/250, i%250+1))
		if i%60 == 59 {
			sink.apply(snapshot(nil, s))
			if wrote := w.on(t, 0).apply(snapshot(nil, s)); wrote != (dataplane.Written{}) {
				t.Fatalf("with %d endpoints, a new agent wrote %+v", i+1, wrote)
			}
		}
	}
	if out := sink.nft("list", "chain", "ip", "fairlead", "random_300"); !strings.Contains(out, "numgen random mod 300") {
		t.Errorf("no chain for 300 endpoints:\n%s", out)
	}
}

// TestRepair shows that what others do to our tables is noticed and put right, and
// that their own tables are none of our business.
func TestRepair(t *testing.T) {
	for name, tc := range map[string]struct {
		damage string
		want   dataplane.Written
	}{
		"nothing":                        {},
		"another table":                  {damage: "add table ip other"},
		"the tables deleted":             {damage: "delete table ip fairlead; delete table ip6 fairlead", want: dataplane.Written{Elements: 104, Installed: true}},
		"one table deleted":              {damage: "delete table ip6 fairlead", want: dataplane.Written{Elements: 104, Installed: true}},
		"everything flushed":             {damage: "flush ruleset", want: dataplane.Written{Elements: 104, Installed: true}},
		"rules of a chain flushed":       {damage: "flush chain ip fairlead prerouting", want: dataplane.Written{Elements: 104, Installed: true}},
		"a rule added":                   {damage: "insert rule ip fairlead prerouting drop", want: dataplane.Written{Elements: 104, Installed: true}},
		"an endpoint deleted":            {damage: "delete element ip fairlead endpoints { 0:4000 . 0x00000003 }", want: dataplane.Written{Elements: 1}},
		"a foreign element added":        {damage: "add element ip fairlead cluster_ips { 1.1.1.1 }", want: dataplane.Written{Elements: 1}},
		"all frontends flushed":          {damage: "flush map ip fairlead cluster_ports", want: dataplane.Written{Elements: 6}},
		"the dispatch map flushed":       {damage: "flush map ip fairlead dispatch", want: dataplane.Written{Elements: 104, Installed: true}},
		"an endpoint in a slot far away": {damage: "add element ip fairlead endpoints { 0:4000 . 0x0000ffff : 1.2.3.4 . 80 }", want: dataplane.Written{Elements: 104, Installed: true}},
		"a hairpin of two addresses":     {damage: "add element ip fairlead hairpins { 1.1.1.1 . 2.2.2.2 }", want: dataplane.Written{Elements: 104, Installed: true}},
		"an id with a number in it":      {damage: "add element ip fairlead endpoints { 0:4001 . 0x00000063 : 1.2.3.4 . 80 }", want: dataplane.Written{Elements: 104, Installed: true}},
		"a number without its chain":     {damage: "delete element ip fairlead dispatch { 0:3 }", want: dataplane.Written{Elements: 104, Installed: true}},
		"a number with another chain":    {damage: "delete element ip fairlead dispatch { 0:3 }; add element ip fairlead dispatch { 0:3 : goto refuse }", want: dataplane.Written{Elements: 104, Installed: true}},
		"a table put to sleep":           {damage: "add table ip fairlead { flags dormant; }", want: dataplane.Written{Elements: 104, Installed: true}},
		"a map flushed and a rule added": {damage: "flush map ip fairlead endpoints; add chain ip fairlead x", want: dataplane.Written{Elements: 104, Installed: true}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 1)
			sink := w.on(t, 0)
			snap := snapshot([]netip.Addr{netip.MustParseAddr("192.0.2.100")}, big(3)...)
			sink.apply(snap)
			if tc.damage != "" {
				sink.nft(tc.damage)
			}
			if wrote := sink.check(); wrote != tc.want {
				t.Errorf("check wrote %+v, want %+v", wrote, tc.want)
			}
			if wrote := w.on(t, 0).apply(snap); wrote != (dataplane.Written{}) {
				t.Errorf("after the check, a new agent had to write %+v", wrote)
			}
			if wrote := sink.check(); wrote != (dataplane.Written{}) {
				t.Errorf("a second check wrote %+v", wrote)
			}
		})
	}
}

// TestLostNews shows that damage is found also where others wrote so much that the news
// of it did not fit into the socket's buffer.
func TestLostNews(t *testing.T) {
	w := newWorld(t, 1)
	sink := w.on(t, 0)
	snap := snapshot(nil, big(3)...)
	sink.apply(snap)
	file := filepath.Join(t.TempDir(), "flood.nft")
	sink.nft("add table ip other; add set ip other s { type ipv4_addr; }")
	for round := range 20 { // some 2 MB of news; the buffer of a user without rights holds 200 KB
		flood := "add element ip other s { 10.0.0.0"
		for i := range 2_000 {
			flood += fmt.Sprintf(", 10.%d.%d.%d", round+1, i>>8, i&255)
		}
		must(t, os.WriteFile(file, []byte(flood+" }\n"), 0o600))
		sink.nft("-f", file)
	}
	sink.nft("delete element ip fairlead cluster_ips { 10.96.0.1 }")
	if wrote := sink.check(); wrote != (dataplane.Written{Elements: 1}) {
		t.Errorf("check wrote %+v, want the one element", wrote)
	}
	if wrote := sink.check(); wrote != (dataplane.Written{}) {
		t.Errorf("a second check wrote %+v", wrote)
	}
}

// TestForeignRuleBeforeGrowth shows that a rule which somebody adds just before we add a
// chain of our own is not taken for ours.
func TestForeignRuleBeforeGrowth(t *testing.T) {
	w := newWorld(t, 1)
	sink := w.on(t, 0)
	s := svc{name: "many", clusterIPs: []string{"10.96.0.1"}, port: 80, target: 80}
	for i := range 65 {
		s.endpoints = append(s.endpoints, fmt.Sprintf("10.1.0.%d", i+1))
	}
	sink.apply(snapshot(nil, s))
	sink.nft("insert rule ip fairlead prerouting counter")
	s.endpoints = append(s.endpoints, "10.1.1.1")
	sink.apply(snapshot(nil, s))
	if wrote := sink.check(); !wrote.Installed {
		t.Errorf("check wrote %+v, want the tables made anew", wrote)
	}
	if out := sink.nft("list", "chain", "ip", "fairlead", "prerouting"); strings.Contains(out, "counter") {
		t.Errorf("the rule is still there:\n%s", out)
	}
	if wrote := w.on(t, 0).apply(snapshot(nil, s)); wrote != (dataplane.Written{}) {
		t.Errorf("a new agent had to write %+v", wrote)
	}
}

// TestApplyMeetsDamage shows that a write which the kernel refuses, because somebody
// took away what it builds on, is made good at once.
func TestApplyMeetsDamage(t *testing.T) {
	w := newWorld(t, 1)
	sink := w.on(t, 0)
	sink.apply(snapshot(nil, big(3)...))
	sink.nft("delete table ip fairlead")
	if wrote := sink.apply(snapshot(nil, big(2)...)); !wrote.Installed {
		t.Errorf("Apply wrote %+v, want the tables made anew", wrote)
	}
	if wrote := w.on(t, 0).apply(snapshot(nil, big(2)...)); wrote != (dataplane.Written{}) {
		t.Errorf("a new agent wrote %+v", wrote)
	}
}

// TestRefusedService: a Service that the kernel refuses stays as it was, is named, and
// does not keep others from being served; when it changes it is tried again.
func TestRefusedService(t *testing.T) {
	w := newWorld(t, 1)
	sink := w.on(t, 0)
	state := func(services ...*service.Service) *service.Snapshot {
		edit := persistent.Map[types.NamespacedName, *service.Service]{}.Edit()
		for _, s := range services {
			edit.Set(s.Name, s)
		}
		return &service.Snapshot{Services: edit.Map()}
	}
	simple := func(i int, endpoint string) *service.Service {
		s := &service.Service{Name: types.NamespacedName{Namespace: "default", Name: fmt.Sprint("s", i)}, ClusterIPs: addrs(fmt.Sprintf("10.96.0.%d", i+1))}
		p := service.Port{Protocol: service.TCP, Port: 80}
		// An address of the wrong family does not fit into the kernel's map.
		p.Cluster[ipfamily.IPv4] = []service.Backend{{Addr: netip.MustParseAddrPort(endpoint), Weight: 1}}
		s.Ports = []service.Port{p}
		return s
	}
	leads := func(i int, endpoint string) {
		t.Helper()
		if out := sink.nft("list", "map", "ip", "fairlead", "endpoints"); strings.Contains(out, endpoint) != (i >= 0) {
			t.Errorf("endpoints have %s:\n%s", endpoint, out)
		}
	}
	refused := func() (names []string) {
		for name, err := range sink.Program().Refused.All() {
			if names = append(names, name.Name); err == nil {
				t.Errorf("%s is refused without a reason", name)
			}
		}
		slices.Sort(names)
		return names
	}
	good := []*service.Service{simple(0, "10.1.0.1:80"), simple(1, "10.1.0.2:80"), simple(2, "10.1.0.3:80")}
	sink.apply(state(good...))
	bad := simple(1, "[fd00::1]:80")
	sink.apply(state(simple(0, "10.1.0.9:80"), bad, good[2], simple(3, "[fd00::2]:80"), simple(4, "10.1.0.5:80")))
	if got := refused(); !slices.Equal(got, []string{"s1", "s3"}) {
		t.Fatalf("refused: %v, want s1 and s3", got)
	}
	leads(0, "10.1.0.9 . 80")
	leads(1, "10.1.0.2 . 80") // what it was before
	leads(4, "10.1.0.5 . 80")
	if wrote := sink.check(); wrote != (dataplane.Written{}) {
		t.Errorf("a check wrote %+v", wrote)
	}
	if wrote := sink.apply(state(simple(0, "10.1.0.8:80"), bad, good[2], simple(4, "10.1.0.5:80"))); wrote.Elements == 0 || wrote.Installed {
		t.Errorf("the next change wrote %+v", wrote)
	}
	if got := refused(); !slices.Equal(got, []string{"s1"}) {
		t.Errorf("refused: %v, want s1 still, and s3 gone with its Service", got)
	}
	sink.apply(state(simple(0, "10.1.0.8:80"), simple(1, "10.1.0.7:80")))
	if got := refused(); len(got) > 0 {
		t.Errorf("refused: %v, want none", got)
	}
	leads(1, "10.1.0.7 . 80")

	fresh := w.on(t, 0) // a start with a bad one among many
	fresh.apply(state(simple(0, "10.1.0.8:80"), bad))
	if fresh.Program().Refused.Len() != 1 {
		t.Errorf("a new agent refuses %d", fresh.Program().Refused.Len())
	}
	leads(0, "10.1.0.8 . 80")
}

// TestKernelWithoutTheRules: where the kernel takes the tables not even without Services,
// the error says so, at once and whatever the number of Services, and names none of them.
func TestKernelWithoutTheRules(t *testing.T) {
	w := newWorld(t, 1)
	// It compares up to 16 bytes of a name.
	sink := w.on(t, 0, dataplane.Config{Local: dataplane.LocalTraffic{InterfacePrefix: "longer-than-any-name"}})
	all := snapshot(nil, big(300)...)
	var err error
	start := time.Now()
	must(t, w.nodes[0].Do(func() error { err = sink.Apply(t.Context(), all); return nil }))
	if !errors.Is(err, dataplane.ErrKernel) {
		t.Errorf("after %s Apply() = %v, want ErrKernel", time.Since(start), err)
	}
	if n := sink.Program().Refused.Len(); n > 0 {
		t.Errorf("%d Services are refused", n)
	}
}

// TestOtherConfiguration shows that rules made for another configuration are replaced.
func TestOtherConfiguration(t *testing.T) {
	w := newWorld(t, 1)
	w.on(t, 0).apply(snapshot(nil, big(1)...))
	other := &nodeSink{t: t, node: w.nodes[0], Sink: dataplane.NewSink(dataplane.Config{})}
	if wrote := other.apply(snapshot(nil, big(1)...)); !wrote.Installed {
		t.Errorf("wrote %+v, want the tables made anew", wrote)
	}
	if out := other.nft("list", "chain", "ip", "fairlead", "cluster"); strings.Contains(out, "saddr") {
		t.Errorf("the pods' ranges are still there:\n%s", out)
	}
}

// TestOverlappingRanges: a range that another takes the place of, which overlaps with it,
// is an edit of two elements like others.
func TestOverlappingRanges(t *testing.T) {
	w := newWorld(t, 1)
	sink := w.on(t, 0)
	at := func(ranges ...string) *service.Snapshot {
		fenced := svc{name: "a", clusterIPs: []string{"10.96.0.1"}, lbIPs: []string{"192.0.2.9"}, port: 80, target: 80}.with(sourceRanges(ranges...))
		return surroundings{node: "node1", podCIDRs: prefixes(ranges...), serviceCIDRs: prefixes(ranges...)}.of(fenced)
	}
	sink.apply(at("10.0.0.0/16"))
	for _, ranges := range [][]string{{"10.0.0.0/17"}, {"10.0.0.0/16"}, {"10.0.0.0/8", "192.168.0.0/16"}, {"10.0.128.0/17", "192.168.0.0/17"}, {"0.0.0.0/1"}, {"10.0.0.0/16"}} {
		if wrote := sink.apply(at(ranges...)); wrote.Installed || wrote.Elements == 0 {
			t.Errorf("for %v it wrote %+v", ranges, wrote)
		}
		if wrote := w.on(t, 0).apply(at(ranges...)); wrote != (dataplane.Written{}) {
			t.Errorf("a new agent with %v wrote %+v", ranges, wrote)
		}
	}
}

// TestCancelled shows that an agent that is told to stop writes nothing more.
func TestCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	w := newWorld(t, 1)
	sink := w.on(t, 0)
	if err := sink.Apply(ctx, snapshot(nil)); !errors.Is(err, context.Canceled) {
		t.Errorf("Apply: %v", err)
	}
	if out := sink.nft("list", "tables"); out != "" {
		t.Errorf("there is %s", out)
	}
}

// TestLoadInParts loads more than the socket buffer of an unprivileged process takes in
// one transaction.
func TestLoadInParts(t *testing.T) {
	w := newWorld(t, 1)
	sink, snap := w.on(t, 0), snapshot(nil, big(1000)...)
	if wrote := sink.apply(snap); wrote.Elements < 30_000 {
		t.Errorf("wrote %+v", wrote)
	}
	if wrote := w.on(t, 0).apply(snap); wrote != (dataplane.Written{}) {
		t.Errorf("a new agent wrote %+v", wrote)
	}
}

// TestForeignWritesDuringLoad: what others write while a large load is under way, when
// the sink does not listen, is found as well.
func TestForeignWritesDuringLoad(t *testing.T) {
	w := newWorld(t, 1)
	sink, all := w.on(t, 0), big(1000)
	sink.apply(snapshot(nil, all[:1]...))
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
				_, err := w.nodes[0].Output(t.Context(), "nft", fmt.Sprintf("add element ip fairlead cluster_ips { 192.0.2.%d }", i%250+1))
				if err != nil && t.Context().Err() == nil {
					t.Error(err)
					return
				}
			}
		}
	}()
	for i := range 5 {
		sink.apply(snapshot(nil, all[:1+999*(i%2)]...))
	}
	close(stop)
	<-done
	want := snapshot(nil, all...)
	sink.apply(want)
	sink.check()
	if wrote := w.on(t, 0).apply(want); wrote != (dataplane.Written{}) {
		t.Errorf("a new agent wrote %+v", wrote)
	}
}

func TestNoPermission(t *testing.T) {
	w := newWorld(t, 1)
	err := w.nodes[0].Do(func() error { return withoutCapabilities(dataplane.NewSink(dataplane.Config{}).Probe) })
	if !errors.Is(err, dataplane.ErrPermission) || !strings.Contains(err.Error(), "CAP_NET_ADMIN") {
		t.Errorf("Probe() = %v, want ErrPermission", err)
	}
}

// BenchmarkReadBack is a check after somebody else wrote, with all elements, beside
// making everything anew.
func BenchmarkReadBack(b *testing.B) {
	for _, n := range []int{100, 1_000, 4_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			w := newWorld(b, 1)
			sink, snap := w.on(b, 0), snapshot(nil, big(n)...)
			sink.apply(snap)
			for b.Loop() {
				b.StopTimer()
				sink.nft("add element ip fairlead cluster_ips { 192.0.2.1 }; delete element ip fairlead cluster_ips { 192.0.2.1 }")
				b.StartTimer()
				sink.check()
			}
			start := time.Now()
			sink.nft("delete table ip fairlead")
			sink.check()
			b.ReportMetric(float64(time.Since(start).Milliseconds()), "anew-ms")
		})
	}
}

// BenchmarkOneEndpoint is one endpoint that changes, from Snapshot to commit.
func BenchmarkOneEndpoint(b *testing.B) {
	for _, n := range []int{100, 1_000, 10_000, 50_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			w := newWorld(b, 1)
			sink := w.on(b, 0)
			st := service.NewStore("node1")
			services := big(n)
			for _, s := range services {
				s.add(st)
			}
			sink.apply(st.Snapshot())
			for i := 0; b.Loop(); i++ {
				s := services[i%n]
				s.endpoints[i/n%10] = fmt.Sprintf("10.200.%d.%d", i/250%250, i%250+1)
				s.add(st)
				sink.apply(st.Snapshot())
			}
		})
	}
}

// withoutCapabilities runs fn without CAP_NET_ADMIN on the calling thread, to which
// capabilities belong; a world's Do has it locked.
func withoutCapabilities(fn func() error) error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return err
	}
	saved := data
	data[0].Effective &^= 1 << unix.CAP_NET_ADMIN
	if err := unix.Capset(&header, &data[0]); err != nil {
		return err
	}
	err := fn()
	return errors.Join(err, unix.Capset(&header, &saved[0]))
}
