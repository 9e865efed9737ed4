// Package bench measures the whole system: a real API server, the real binary, a real
// kernel. Figures are reported, never asserted: they depend on the machine.
package bench_test

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"fairlead.dev/fairlead/test/cluster"
	"fairlead.dev/fairlead/test/netlab"
)

// endpointsPerService is that of the figures in the issues and in upstream's own tests.
const endpointsPerService = 10

// pace is between two changes: long enough that the agent has come to rest.
const pace = 25 * time.Millisecond

// clockTick is what /proc counts CPU time in: USER_HZ, 100 on every Linux platform
// that Go runs on.
const clockTick = 10 * time.Millisecond

func TestMain(m *testing.M) { cluster.Main(m) }

// BenchmarkOneEndpoint is one changed endpoint from the API write to the kernel's
// commit, one at a time, on an agent that is otherwise idle.
func BenchmarkOneEndpoint(b *testing.B) {
	for _, n := range []int{100, 1000} {
		b.Run(fmt.Sprintf("services=%d", n), func(b *testing.B) {
			c := cluster.New(b)
			node := c.AddNode(b, "node1")
			fill(b, c, n)
			commits := watch(b, &node.Host)
			started := time.Now()
			agent := c.Start(b, &node.Host, "node", "--kubeconfig", c.Kubeconfig, "--node-name", "node1")
			// The last Service's endpoints are in the same transaction as the first's.
			commits.await(b, address(n-1, 0))
			b.ReportMetric(float64(time.Since(started).Milliseconds()), "start-ms")
			changeOneByOne(b, c, n, commits, agent)
		})
	}
}

func changeOneByOne(b *testing.B, c *cluster.Cluster, n int, commits *commits, agent *cluster.Process) {
	var took []time.Duration
	before := cpuTime(b, agent)
	tick := time.NewTicker(pace)
	defer tick.Stop()
	for i := 0; b.Loop(); i++ {
		<-tick.C
		s := sliceOf(i % n)
		fresh := netip.AddrFrom4([4]byte{10, 200, byte(i >> 8), byte(i)})
		s.Endpoints[i%endpointsPerService].Addresses = []string{fresh.String()}
		start := time.Now()
		_, err := c.Client.DiscoveryV1().EndpointSlices("default").Update(b.Context(), s, metav1.UpdateOptions{})
		must(b, err)
		took = append(took, commits.await(b, fresh).Sub(start))
	}
	slices.Sort(took)
	b.ReportMetric(ms(took[len(took)/2]), "p50-ms")
	b.ReportMetric(ms(took[len(took)*99/100]), "p99-ms")
	b.ReportMetric(ms(took[len(took)-1]), "worst-ms")
	b.ReportMetric(ms((cpuTime(b, agent)-before)/time.Duration(len(took))), "cpu-ms/op")
	b.ReportMetric(residentMiB(b, agent), "rss-MiB")
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// address is endpoint e of Service i.
func address(i, e int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, byte(128 + e), byte(i / 250), byte(i%250 + 1)})
}

func sliceOf(i int) *discoveryv1.EndpointSlice {
	var addrs []string
	for e := range endpointsPerService {
		addrs = append(addrs, address(i, e).String())
	}
	return cluster.Slice(fmt.Sprint("s", i), addrs)
}

// fill creates n Services with a slice of ten endpoints each.
func fill(b *testing.B, c *cluster.Cluster, n int) {
	b.Helper()
	group, ctx := errgroup.WithContext(b.Context())
	group.SetLimit(16)
	for i := range n {
		group.Go(func() error {
			_, err := c.Client.CoreV1().Services("default").Create(ctx, &corev1.Service{
				ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("s", i)},
				Spec:       corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80}}},
			}, metav1.CreateOptions{})
			if err != nil {
				return err
			}
			_, err = c.Client.DiscoveryV1().EndpointSlices("default").Create(ctx, sliceOf(i), metav1.CreateOptions{})
			return err
		})
	}
	must(b, group.Wait())
}

// commits are the transactions that reached a kernel.
type commits struct{ seen chan commit }

type commit struct {
	at       time.Time
	messages []netlink.Message
}

func watch(b *testing.B, h *netlab.Host) *commits {
	b.Helper()
	w := &commits{seen: make(chan commit, 1024)}
	must(b, h.Transactions(b.Context(), func(messages []netlink.Message) {
		w.seen <- commit{time.Now(), messages}
	}, func(err error) { b.Error(err) }))
	return w
}

// await returns when the transaction that names addr was committed.
func (w *commits) await(b *testing.B, addr netip.Addr) time.Time {
	b.Helper()
	deadline := time.After(cluster.Timeout)
	for {
		select {
		case c := <-w.seen:
			for _, m := range c.messages {
				if bytes.Contains(m.Data, addr.AsSlice()) {
					return c.at
				}
			}
		case <-deadline:
			b.Fatalf("%s never reached the kernel", addr)
		}
	}
}

// cpuTime is what the process has used so far (proc(5), stat, fields 14 and 15).
func cpuTime(b *testing.B, p *cluster.Process) time.Duration {
	b.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.PID()))
	must(b, err)
	_, rest, _ := strings.Cut(string(raw), ") ") // the name may have spaces
	fields := strings.Fields(rest)
	user, err := strconv.Atoi(fields[11])
	must(b, err)
	system, err := strconv.Atoi(fields[12])
	must(b, err)
	return time.Duration(user+system) * clockTick
}

// residentMiB is the memory of the process that is in use.
func residentMiB(b *testing.B, p *cluster.Process) float64 {
	b.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", p.PID()))
	must(b, err)
	pages, err := strconv.Atoi(strings.Fields(string(raw))[1])
	must(b, err)
	return float64(pages*os.Getpagesize()) / (1 << 20)
}

func must(b *testing.B, err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}
