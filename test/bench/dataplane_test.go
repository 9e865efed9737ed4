package bench_test

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"fairlead.dev/fairlead/test/cluster"
	"fairlead.dev/fairlead/test/netlab"
)

const (
	// sizesVar says how many Services of how many endpoints, "1000x10 10000x10".
	sizesVar = "SIZES"
	// peersVar says which peers take part, by name, separated by commas.
	peersVar = "PEERS"

	defaultSizes = "1000x10"

	// rounds is how often each peer has its turn, in alternating order, so that what
	// else the machine does meets both.
	rounds = 2

	// pace is between a commit and the next change: long enough that an agent which
	// does not take seconds has come to rest.
	pace = 25 * time.Millisecond

	// A peer makes up to maxChanges changes one by one, and no new ones after changeTime.
	maxChanges = 500
	changeTime = 20 * time.Second

	// bound is how long anything may take before a figure is given up.
	bound = 3 * time.Minute

	burst = 500

	// tooLong is what nft says of a transaction larger than its socket's buffer.
	tooLong = "Message too long"
)

// BenchmarkDataplane measures fairlead and kube-proxy in turn, each on a node of its own
// of one cluster, and prints a table.
func BenchmarkDataplane(b *testing.B) {
	for name := range strings.FieldsSeq(cmp.Or(os.Getenv(sizesVar), defaultSizes)) {
		b.Run("services="+name, func(b *testing.B) {
			var s size
			if _, err := fmt.Sscanf(name, "%dx%d", &s.services, &s.endpoints); err != nil {
				b.Fatalf("%s: %q is no size such as 1000x10: %v", sizesVar, name, err)
			}
			if s.services < burst {
				b.Fatalf("%s: %s has fewer Services than a burst, %d", sizesVar, name, burst)
			}
			checkChildren(b)
			for b.Loop() {
				measure(b, s)
			}
		})
	}
}

func measure(b *testing.B, s size) {
	f := newField(b, s)
	taking := f.peers()
	results := make([]*result, len(taking))
	for i, p := range taking {
		results[i] = &result{name: p.name}
	}
	for round := range rounds {
		for i := range taking {
			if round%2 == 1 {
				i = len(taking) - 1 - i
			}
			f.turn(b, taking[i], results[i])
		}
	}
	f.traffic(b, taking, results)
	b.Logf("\n%s", table(s, f.filled, results))
}

// field is a cluster full of Services, with a client and two servers on each node.
type field struct {
	*cluster.Cluster
	size
	client kubernetes.Interface
	sites  []*site
	filled time.Duration
	change int // the number of the last change
}

// site is a node with pods and the Services that lead to them.
type site struct {
	node    *netlab.Node
	client  *netlab.Host
	servers []*netlab.Host
	// first and last are the Services that were made before and after all others.
	first, last netip.AddrPort
}

func newField(b testing.TB, s size) *field {
	b.Helper()
	c := cluster.New(b)
	f := &field{Cluster: c, size: s, client: api(b, c)}
	for i := range 2 {
		f.sites = append(f.sites, newSite(b, c, fmt.Sprint("node", i+1)))
	}
	for _, site := range f.sites {
		site.first = site.addService(b, f.client, "first-")
	}
	start := time.Now()
	s.fill(b, f.client)
	f.filled = time.Since(start)
	for _, site := range f.sites {
		site.last = site.addService(b, f.client, "last-")
	}
	return f
}

func newSite(b testing.TB, c *cluster.Cluster, name string) *site {
	b.Helper()
	s := &site{node: c.AddNode(b, name)}
	for _, pod := range []string{"client", "a", "b"} {
		h, err := s.node.AddPod(name + "-" + pod)
		must(b, err)
		if pod == "client" {
			s.client = h
			continue
		}
		s.servers = append(s.servers, h)
		startLoad(b, h, "serve", netip.AddrPortFrom(h.IPv4, 8080), 0) // until the lab is closed
	}
	return s
}

// addService adds a Service of a TCP and a UDP port that leads to the first server.
func (s *site) addService(b testing.TB, client kubernetes.Interface, prefix string) netip.AddrPort {
	b.Helper()
	svc, err := client.CoreV1().Services("default").Create(b.Context(), &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: prefix + s.node.Name},
		Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{
			{Name: "tcp", Protocol: corev1.ProtocolTCP, Port: 80}, {Name: "udp", Protocol: corev1.ProtocolUDP, Port: 80},
		}},
	}, metav1.CreateOptions{})
	must(b, err)
	_, err = client.DiscoveryV1().EndpointSlices("default").Create(b.Context(), s.slice(prefix, 0), metav1.CreateOptions{})
	must(b, err)
	return netip.AddrPortFrom(netip.MustParseAddr(svc.Spec.ClusterIP), 80)
}

// slice is that of the Service of that prefix when it leads to one of the servers.
func (s *site) slice(prefix string, server int) *discoveryv1.EndpointSlice {
	slice := cluster.Slice(prefix+s.node.Name, []string{s.servers[server].IPv4.String()})
	slice.Ports = []discoveryv1.EndpointPort{
		{Name: new("tcp"), Port: new(int32(8080)), Protocol: new(corev1.ProtocolTCP)},
		{Name: new("udp"), Port: new(int32(8080)), Protocol: new(corev1.ProtocolUDP)},
	}
	return slice
}

func (f *field) peers() []peer {
	names := os.Getenv(peersVar)
	return slices.DeleteFunc(slices.Clone(peers), func(p peer) bool {
		return names != "" && !slices.Contains(strings.Split(names, ","), p.name)
	})
}

// turn lets one peer do everything once, on a node without rules.
func (f *field) turn(b testing.TB, p peer, r *result) {
	b.Helper()
	site := f.sites[p.node]
	cluster.NFT(b, &site.node.Host, "flush", "ruleset")
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()

	started := time.Now()
	process := p.start(b, f.Cluster, site.node)
	memory := follow(ctx, process.PID())
	if !f.coldStart(b, process, p, site, r, started) {
		process.Stop(syscall.SIGKILL)
		return
	}
	settle(b, process)
	r.settled = append(r.settled, mib(resident(process.PID())))
	commits := watch(ctx, b, &site.node.Host)
	f.oneByOne(b, process, commits, r)
	f.burst(b, process, commits, r)
	f.churn(b, site, r)
	settle(b, process)
	r.peak = append(r.peak, mib(max(memory.peak.Load(), highWater(b, process))))
	process.Stop(syscall.SIGTERM)
}

// coldStart waits until both the first and the last Service answer.
func (f *field) coldStart(b testing.TB, process *cluster.Process, p peer, site *site, r *result, started time.Time) bool {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), bound)
	defer cancel()
	synced := make(chan time.Time, 1)
	go func() {
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for ctx.Err() == nil && strings.Count(process.Output.String(), p.synced) < p.syncs {
			<-tick.C
		}
		synced <- time.Now()
	}()
	for _, vip := range []netip.AddrPort{site.first, site.last} {
		for !answers(ctx, site.client, vip) {
			if !process.Running() {
				b.Fatalf("%s ended", p.name)
			}
			if strings.Contains(process.Output.String(), tooLong) {
				b.Logf("%s: nft may not have a buffer for its transaction: run as root with NETLAB_USERNS=off", p.name)
				return false
			}
			if ctx.Err() != nil {
				b.Logf("%s: no rules after %s; it said:\n%s", p.name, bound, process.Output)
				return false
			}
		}
	}
	r.start = append(r.start, time.Since(started))
	r.startAfterSync = append(r.startAfterSync, time.Since(<-synced))
	return true
}

// answers asks in short, since a packet that no rule takes up goes unanswered.
func answers(ctx context.Context, from *netlab.Host, vip netip.AddrPort) bool {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	conn, err := from.DialContext(ctx, "tcp", vip.String())
	return err == nil && conn.Close() == nil
}

// oneByOne changes one endpoint at a time.
func (f *field) oneByOne(b testing.TB, process *cluster.Process, commits *commits, r *result) {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), bound)
	defer cancel()
	before, began, count := cpuTime(b, process), time.Now(), 0
	for ; count < maxChanges && (count == 0 || time.Since(began) < changeTime); count++ {
		time.Sleep(pace)
		start := time.Now()
		addr, err := f.changeOne(ctx)
		must(b, err)
		at, _, err := commits.await(ctx, addr)
		if err != nil {
			b.Logf("%s: %v", r.name, err)
			return
		}
		r.changes = append(r.changes, at.Sub(start))
	}
	settle(b, process) // what comes after a commit is part of the change
	r.cpu += cpuTime(b, process) - before
	r.cpuChanges += count
}

// changeOne changes an endpoint of the Service whose turn it is.
func (f *field) changeOne(ctx context.Context) (netip.Addr, error) {
	f.change++
	return f.write(ctx, f.change)
}

func (f *field) write(ctx context.Context, change int) (netip.Addr, error) {
	slice, addr := f.changed(change%f.services, change)
	_, err := f.client.DiscoveryV1().EndpointSlices("default").Update(ctx, slice, metav1.UpdateOptions{})
	return addr, err
}
