package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sync/errgroup"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"fairlead.dev/fairlead/internal/dataplane"
	"fairlead.dev/fairlead/internal/service"
	"fairlead.dev/fairlead/test/cluster"
)

// faultWorld is a nodeWorld with traffic that goes on whatever happens.
type faultWorld struct {
	*nodeWorld
	t       *testing.T // the agent lives as long as this
	traffic traffic
	agent   *cluster.Process
	extra   []netip.Addr // of the node, where node ports are served too
	looking sync.Mutex   // at the rules: others do not write meanwhile
}

func newFaultWorld(t *testing.T) *faultWorld {
	w := &faultWorld{nodeWorld: newNodeWorld(t), t: t}
	server, err := w.node.AddPod("stream-1")
	must(t, err)
	streamServer(t, server)
	inside, err := w.node.AddPod("client-1")
	must(t, err)
	ip, nodePort := w.AddService(t, "stream", server.IPv4.String())
	w.start()
	w.answers(t)
	w.becomesRight(t, time.Now().Add(cluster.Timeout))
	w.traffic.streams = []*stream{
		newStream(t, "from a pod to the ClusterIP", inside, netip.AddrPortFrom(netip.MustParseAddr(ip), 80)),
		newStream(t, "from outside to the node port", w.client, netip.AddrPortFrom(w.node.IPv4, uint16(nodePort))),
	}
	w.traffic.probes = []*probe{
		{name: "the node to the ClusterIP", from: &w.node.Host, to: w.vip},
		{name: "outside to the node port", from: w.client, to: w.byNodePort},
	}
	for _, p := range w.traffic.probes {
		p.start(t)
	}
	return w
}

// start starts the agent.
func (w *faultWorld) start() { w.agent = w.run(w.t, "--node-name", "node1") }

// desired is what the API says now, as the node models it.
func (w *faultWorld) desired(ctx context.Context) (*service.Snapshot, error) {
	store := service.NewStore("node1")
	services, err := w.Client.CoreV1().Services("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	for i := range services.Items {
		store.SetService(&services.Items[i])
	}
	slices, err := w.Client.DiscoveryV1().EndpointSlices("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	for i := range slices.Items {
		store.SetSlice(&slices.Items[i])
	}
	ranges, err := w.Client.NetworkingV1().ServiceCIDRs().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	var cidrs []netip.Prefix
	for _, r := range ranges.Items {
		for _, cidr := range r.Spec.CIDRs {
			cidrs = append(cidrs, netip.MustParsePrefix(cidr))
		}
	}
	store.SetServiceCIDRs(cidrs)
	addrs := append([]netip.Addr{w.node.IPv4, w.node.IPv6}, w.extra...)
	store.SetNodePortAddrs(addrs)
	store.SetNodeAddrs(addrs)
	return store.Snapshot(), nil
}

// right returns nil where the kernel has what the API says and nothing else, so that an
// agent that started now would have nothing to write.
func (w *faultWorld) right(ctx context.Context) error {
	snapshot, err := w.desired(ctx)
	if err != nil {
		return err
	}
	w.looking.Lock()
	defer w.looking.Unlock()
	var have dataplane.Installed
	if err := w.node.Do(func() (err error) { have, err = dataplane.Inspect(); return err }); err != nil {
		return err
	}
	want := dataplane.Compile(dataplane.Adopt(have.Ruleset, snapshot), snapshot)
	if wrong := different(dataplane.Diff(have.Ruleset, want.Ruleset)); len(wrong) > 0 || !have.Ours {
		return fmt.Errorf("rules are ours: %t, wrong: %.1000s", have.Ours, strings.Join(wrong, "\n"))
	}
	return nil
}

// different says in words what the changes are.
func different(c dataplane.Changes) []string {
	return slices.Concat(words(c.Frontends()), words(c.Fences()), words(c.Members()), words(slices.Values(c.Classes())), words(c.Slots()), words(c.Handles()))
}

func words[T any](all iter.Seq[T]) (out []string) {
	for one := range all {
		out = append(out, fmt.Sprintf("%+v", one))
	}
	return out
}

// becomesRight waits until the kernel has what the API says, and fails where that is
// later than the deadline.
func (w *faultWorld) becomesRight(t *testing.T, deadline time.Time) {
	t.Helper()
	ctx, cancel := timeout()
	defer cancel()
	var asked time.Time
	cluster.Eventually(t, func() error {
		asked = time.Now()
		return w.right(ctx)
	})
	if late := asked.Sub(deadline); late > 0 {
		t.Errorf("right again %s too late", late)
	}
}

// TestFaults: whatever befalls the rules, the agent or its API server, no connection that
// stands breaks, and the state is right 2 s after the cause has gone.
func TestFaults(t *testing.T) {
	w := newFaultWorld(t)
	t.Run("damage by hand", w.damage)
	t.Run("others write all the time", w.foreignWrites)
	t.Run("news of others that do not fit", w.lostNews)
	t.Run("killed during writes", w.kills)
	t.Run("addresses of the node that come at once", w.manyAddresses)
	t.Run("API server gone, and a watch that expires", w.noAPIServer)
}

// damage is what people and programs do to our tables.
func (w *faultWorld) damage(t *testing.T) {
	both := func(format string) string { return fmt.Sprintf(format+"; "+format, "ip", "ip6") }
	for _, tc := range []struct {
		name, damage string
		away         time.Duration // for how long new connections may fail
	}{
		{name: "the tables deleted", damage: "delete table ip fairlead; delete table ip6 fairlead", away: repairTime},
		{name: "everything flushed", damage: "flush ruleset", away: repairTime},
		{name: "a chain flushed", damage: "flush chain ip fairlead prerouting", away: repairTime},
		{name: "a rule that drops", damage: "insert rule ip fairlead prerouting drop", away: repairTime},
		{name: "a rule that does nothing", damage: "insert rule ip fairlead prerouting counter"},
		{name: "all endpoints deleted", damage: "flush map ip fairlead endpoints", away: repairTime},
		{name: "a Service deleted", damage: "delete element ip fairlead cluster_ips { " + w.vip.Addr().String() + " }", away: repairTime},
		{name: "an address added", damage: "add element ip fairlead cluster_ips { 1.1.1.1 }"},
		{name: "tables put to sleep", damage: both("add table %s fairlead { flags dormant; }"), away: repairTime},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w.traffic.during(t, tc.away, func() {
				start := time.Now()
				cluster.NFT(t, &w.node.Host, tc.damage)
				w.becomesRight(t, start.Add(repairTime))
			})
		})
	}
}

// foreignWrites is another program that changes tables of its own without a pause, while
// Services change.
func (w *faultWorld) foreignWrites(t *testing.T) {
	repairs := w.repairs()
	w.traffic.during(t, 0, func() {
		ctx, cancel := context.WithCancel(t.Context())
		var others errgroup.Group
		others.Go(func() error {
			for i := 0; ctx.Err() == nil; i++ {
				w.looking.Lock()
				out, err := w.node.Output(context.WithoutCancel(ctx), "nft", fmt.Sprintf("add table ip other; add chain ip other c%d; "+
					"add set ip other s { type ipv4_addr; }; add element ip other s { 10.0.%d.%d }; delete table ip other", i%10, i/250%250, i%250))
				w.looking.Unlock()
				if err != nil {
					return fmt.Errorf("%w: %s", err, out)
				}
			}
			return nil
		})
		for i := range 40 {
			w.scale(t, "stream", i%2) // new connections to it would not all be answered
			start := time.Now()
			w.becomesRight(t, start.Add(repairTime))
		}
		cancel()
		must(t, others.Wait())
	})
	if now := w.repairs(); now != repairs {
		t.Errorf("%d repairs where nobody touched our tables", now-repairs)
	}
}

// scale gives the Service so many endpoints beside its first one, where nobody is.
func (w *faultWorld) scale(t *testing.T, name string, more int) {
	t.Helper()
	slices := w.Client.DiscoveryV1().EndpointSlices("default")
	s, err := slices.Get(t.Context(), name+"-1", metav1.GetOptions{})
	must(t, err)
	s.Endpoints = s.Endpoints[:1]
	for i := range more {
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{fmt.Sprintf("10.200.0.%d", i+1)}})
	}
	_, err = slices.Update(t.Context(), s, metav1.UpdateOptions{})
	must(t, err)
}

// repairs is how often the agent said that others changed the rules.
func (w *faultWorld) repairs() int {
	return strings.Count(w.agent.Output.String(), "Somebody else changed the rules")
}

// lostNews is more news of others than the socket of the agent holds, with damage among
// it that nobody hears of.
func (w *faultWorld) lostNews(t *testing.T) {
	cluster.NFT(t, &w.node.Host, "add table ip other; add set ip other s { type ipv4_addr; }")
	var floods []string // each as large as a transaction can be here
	for part := range 10 {
		flood := &strings.Builder{}
		fmt.Fprintf(flood, "add element ip other s { 10.%d.255.255", part)
		for i := range 2_500 {
			fmt.Fprintf(flood, ", 10.%d.%d.%d", part, i/250, i%250)
		}
		floods = append(floods, cluster.Write(t, "flood.nft", flood.String()+" }\n"))
	}
	w.traffic.during(t, cluster.Timeout, func() {
		must(t, w.agent.Signal(syscall.SIGSTOP)) // so that it cannot keep up
		for range 3 {                            // 10 MB of news; the kernel grants up to 8
			for _, flood := range floods {
				cluster.NFT(t, &w.node.Host, "-f", flood)
			}
			cluster.NFT(t, &w.node.Host, "flush set ip other s")
		}
		cluster.NFT(t, &w.node.Host, "delete element ip fairlead cluster_ips { "+w.vip.Addr().String()+" }")
		lost := w.drops(t, netlinkNetfilter)
		must(t, w.agent.Signal(syscall.SIGCONT))
		w.becomesRight(t, time.Now().Add(repairTime))
		if lost == 0 {
			t.Error("no news were lost: this tests nothing")
		}
	})
	cluster.NFT(t, &w.node.Host, "delete table ip other")
}

// The protocols of netlink (linux/netlink.h), as /proc/net/netlink has them.
const (
	netlinkRoute     = "0"
	netlinkNetfilter = "12"
)

// drops is how many messages of the protocol did not fit into sockets on the node.
func (w *faultWorld) drops(t *testing.T, protocol string) (n int) {
	t.Helper()
	out, err := w.node.Output(t.Context(), "cat", "/proc/net/netlink")
	must(t, err)
	for _, line := range strings.Split(strings.TrimSpace(string(out)), "\n")[1:] {
		var drops int
		// sk Eth Pid Groups Rmem Wmem Dump Locks Drops Inode
		if f := strings.Fields(line); f[1] == protocol {
			_, err := fmt.Sscan(f[8], &drops)
			must(t, err)
			n += drops
		}
	}
	return n
}

// kills kills the agent again and again while 1,000 Services come and go: on a commit
// that is one of several for what it found at its start, and at any other time.
func (w *faultWorld) kills(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	var commits, killAt atomic.Int64
	var victim atomic.Pointer[cluster.Process]
	victim.Store(w.agent)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	must(t, w.node.Transactions(ctx, func([]netlink.Message) {
		if n := commits.Add(1); n == killAt.Load() {
			_ = victim.Load().Signal(syscall.SIGKILL) // it may have ended by itself: the round has
		}
	}, func(error) {}))

	w.traffic.during(t, 0, func() {
		for _, load := range []func(context.Context) error{w.add1000, w.delete1000} {
			w.agent.Stop(syscall.SIGKILL)
			var loading errgroup.Group
			loading.Go(func() error { return load(t.Context()) })
			loaded := make(chan struct{})
			go func() { defer close(loaded); _ = loading.Wait() }() // asked for its error below
			for round := 0; ; round++ {
				killAt.Store(0)
				if round%2 == 0 {
					killAt.Store(commits.Load() + 1 + random.Int64N(4))
				}
				w.start()
				victim.Store(w.agent)
				select {
				case <-loaded:
				case <-w.agent.Ended():
				case <-time.After(time.Duration(400+random.IntN(800)) * time.Millisecond):
				}
				w.agent.Stop(syscall.SIGKILL)
				select {
				case <-loaded:
					t.Logf("killed %d times", round+1)
				default:
					continue
				}
				break
			}
			must(t, loading.Wait())
			killAt.Store(0)
			w.start()
			w.becomesRight(t, time.Now().Add(cluster.Timeout))
		}
	})
}

const many = 1000

// add1000 creates 1,000 Services.
func (w *faultWorld) add1000(ctx context.Context) error {
	return each(many, func(i int) error {
		_, err := w.TryAddService(ctx, fmt.Sprint("many-", i), fmt.Sprintf("10.201.%d.%d", i/250, i%250+1), fmt.Sprintf("10.202.%d.%d", i/250, i%250+1))
		return err
	})
}

func (w *faultWorld) delete1000(ctx context.Context) error {
	return each(many, func(i int) error {
		name := fmt.Sprint("many-", i)
		return errors.Join(w.Client.CoreV1().Services("default").Delete(ctx, name, metav1.DeleteOptions{}),
			w.Client.DiscoveryV1().EndpointSlices("default").Delete(ctx, name+"-1", metav1.DeleteOptions{}))
	})
}

// each does n things, some at a time.
func each(n int, do func(i int) error) error {
	var group errgroup.Group
	group.SetLimit(8)
	for i := range n {
		group.Go(func() error { return do(i) })
	}
	return group.Wait()
}

// manyAddresses are more addresses of the node at once than the agent has room for the
// news of.
func (w *faultWorld) manyAddresses(t *testing.T) {
	w.agent.Stop(syscall.SIGKILL)
	config := cluster.Write(t, "node.yaml", nodeConfig+"nodePortAddresses: [172.18.0.0/24, 172.20.0.0/16, 'fd00:172:18::/64']\n")
	var all []netip.Addr
	var add, del strings.Builder
	for i := range 4_000 {
		addr := netip.AddrFrom4([4]byte{172, 20, byte(i / 250), byte(i%250 + 1)})
		all = append(all, addr)
		fmt.Fprintf(&add, "address add %s/32 dev lo\n", addr)
		fmt.Fprintf(&del, "address del %s/32 dev lo\n", addr)
	}
	ip := func(batch string) {
		t.Helper()
		out, err := w.node.Output(t.Context(), "ip", "-batch", cluster.Write(t, "addresses", batch))
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	w.traffic.during(t, 0, func() {
		w.agent = w.run(t, "--node-name", "node1", "--config", config)
		w.agent.Says("Caches have synced")
		must(t, w.agent.Signal(syscall.SIGSTOP)) // so that it cannot keep up
		ip(add.String())
		if w.drops(t, netlinkRoute) == 0 {
			t.Error("no news were lost: this tests nothing")
		}
		must(t, w.agent.Signal(syscall.SIGCONT))
		w.extra = all
		w.becomesRight(t, time.Now().Add(repairTime))
		must(t, w.agent.Signal(syscall.SIGSTOP))
		ip(del.String())
		must(t, w.agent.Signal(syscall.SIGCONT))
		w.extra = nil
		w.becomesRight(t, time.Now().Add(repairTime))
		w.agent.Stop(syscall.SIGKILL)
		w.start()
		w.becomesRight(t, time.Now().Add(cluster.Timeout))
	})
}
