package node

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-logr/logr"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/events"
	clocktesting "k8s.io/utils/clock/testing"

	"fairlead.dev/fairlead/internal/dataplane"
	"fairlead.dev/fairlead/internal/service"
)

func addrs(s ...string) (out []netip.Addr) {
	for _, a := range s {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

func nodeWith(ips ...string) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node1"}}
	n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeHostName, Address: "node1"},
		corev1.NodeAddress{Type: corev1.NodeExternalIP, Address: "203.0.113.1"})
	for _, ip := range ips {
		n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: ip})
	}
	return n
}

func TestNodePortAddrs(t *testing.T) {
	local := addrs("192.0.2.1", "10.0.0.1", "2001:db8::1", "10.0.0.2")
	for name, tc := range map[string]struct {
		cidrs []netip.Prefix
		node  *corev1.Node
		want  []netip.Addr
	}{
		"primary is the Node's first internal address of each family": {node: nodeWith("10.0.0.9", "10.0.0.10", "fd00::9"), want: addrs("10.0.0.9", "fd00::9")},
		"no Node: the host's first addresses":                         {want: addrs("192.0.2.1", "2001:db8::1")},
		"a Node without addresses: the host's first addresses":        {node: nodeWith(), want: addrs("192.0.2.1", "2001:db8::1")},
		"CIDRs pick the host's addresses, whatever the Node says": {
			cidrs: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, node: nodeWith("10.0.0.9"), want: addrs("10.0.0.1", "10.0.0.2")},
		"CIDRs that nothing is in": {cidrs: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}, node: nodeWith("10.0.0.9")},
	} {
		t.Run(name, func(t *testing.T) {
			got := nodePortAddrs(tc.cidrs, tc.node, local)
			if diff := cmp.Diff(tc.want, got, cmpopts.EquateComparable(netip.Addr{}), cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("nodePortAddrs() mismatch (-want +got):\n%s", diff)
			}
		})
	}
}

func TestEligible(t *testing.T) {
	tainted, deleted := nodeWith(), nodeWith()
	tainted.Spec.Taints = []corev1.Taint{{Key: "ToBeDeletedByClusterAutoscaler"}}
	deleted.DeletionTimestamp = &metav1.Time{Time: time.Unix(1, 0)}
	for name, tc := range map[string]struct {
		node *corev1.Node
		want bool
	}{"a Node": {nodeWith(), true}, "gone": {nil, false}, "tainted for the autoscaler": {tainted, false}, "being deleted": {deleted, false}} {
		t.Run(name, func(t *testing.T) {
			if got := (&model{node: tc.node}).eligible(); got != tc.want {
				t.Errorf("eligible() = %t, want %t", got, tc.want)
			}
		})
	}
}

func TestHealth(t *testing.T) {
	start := time.Unix(1000, 0)
	for name, tc := range map[string]struct {
		prepare        func(h *health, c *clocktesting.FakePassiveClock)
		healthz, livez int
		lastUpdated    time.Time
	}{
		"before the first write": {func(*health, *clocktesting.FakePassiveClock) {}, 503, 200, time.Time{}},
		"the first write waits for too long": {func(h *health, c *clocktesting.FakePassiveClock) {
			h.queued(start)
			c.SetTime(start.Add(60 * time.Second))
		}, 503, 503, time.Time{}},
		"written": {func(h *health, _ *clocktesting.FakePassiveClock) { h.updated(start) }, 200, 200, start},
		"written, and idle for long": {func(h *health, c *clocktesting.FakePassiveClock) {
			h.updated(start)
			c.SetTime(start.Add(time.Hour))
		}, 200, 200, start},
		"a change waits, not for long yet": {func(h *health, c *clocktesting.FakePassiveClock) {
			h.updated(start)
			h.queued(start)
			c.SetTime(start.Add(59 * time.Second))
		}, 200, 200, start},
		"a change waits for too long": {func(h *health, c *clocktesting.FakePassiveClock) {
			h.updated(start)
			h.queued(start)
			h.queued(start.Add(30 * time.Second)) // does not hide the older one
			c.SetTime(start.Add(60 * time.Second))
		}, 503, 503, start},
		"the Node is going": {func(h *health, _ *clocktesting.FakePassiveClock) {
			h.updated(start)
			h.setEligible(false)
		}, 503, 200, start},
	} {
		t.Run(name, func(t *testing.T) {
			c := clocktesting.NewFakePassiveClock(start)
			h := &health{clock: c, eligible: true}
			tc.prepare(h, c)
			for path, want := range map[string]int{"/healthz": tc.healthz, "/livez": tc.livez} {
				rec := httptest.NewRecorder()
				h.handler().ServeHTTP(rec, httptest.NewRequest(http.MethodGet, path, nil))
				var body struct {
					LastUpdated, CurrentTime time.Time
					NodeEligible             *bool
					Healthy                  bool
					Status                   map[string]struct{ LastUpdated time.Time }
				}
				if err := json.Unmarshal(rec.Body.Bytes(), &body); err != nil {
					t.Fatalf("%s: %v in %s", path, err, rec.Body)
				}
				wantLastUpdated := tc.lastUpdated
				if want == http.StatusOK {
					wantLastUpdated = c.Now() // as kube-proxy says where all is well
				}
				if rec.Code != want || !body.LastUpdated.Equal(wantLastUpdated) || body.CurrentTime != c.Now().UTC() || body.Healthy != (tc.livez == http.StatusOK) ||
					(len(body.Status) > 0) != !tc.lastUpdated.IsZero() || (body.NodeEligible != nil) != (path == "/healthz") {
					t.Errorf("%s: %d %s, want %d", path, rec.Code, rec.Body, want)
				}
				if rec.Header().Get("X-Content-Type-Options") != "nosniff" || rec.Header().Get("Content-Type") != "application/json" {
					t.Errorf("%s: headers %v", path, rec.Header())
				}
			}
		})
	}
}

// recorder is the rules of an agent under test: it keeps what was applied, compiles it
// like the real one, and fails when told to.
type recorder struct {
	mu      sync.Mutex
	program dataplane.Program
	applied []*service.Snapshot
	failing bool
	tries   int
	checks  int
}

func (r *recorder) Apply(_ context.Context, s *service.Snapshot) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.tries++; r.failing {
		return errors.New("the kernel says no")
	}
	r.applied, r.program = append(r.applied, s), dataplane.Compile(r.program, s)
	return nil
}

func (r *recorder) Check(context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.checks++
	return nil
}

// setFailing lets the kernel refuse from now on, or no longer, and returns how often it
// was asked and looked at until now.
func (r *recorder) setFailing(failing bool) (tries, checks int) {
	synctest.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failing = failing
	return r.tries, r.checks
}

func (r *recorder) Last() dataplane.Written    { return dataplane.Written{} }
func (r *recorder) Program() dataplane.Program { return r.program }

// want fails unless there were so many writes, the last with so many Services.
func (r *recorder) want(t *testing.T, writes, services int) {
	t.Helper()
	synctest.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	last := -1
	if len(r.applied) > 0 {
		last = r.applied[len(r.applied)-1].Services.Len()
	}
	if len(r.applied) != writes || last != services {
		t.Fatalf("%d writes, the last with %d Services; want %d and %d", len(r.applied), last, writes, services)
	}
}

// startAgent runs an agent in the bubble of a synctest, where time passes when
// everything waits. One watch of two has delivered already.
func startAgent(t *testing.T) (*agent, *recorder, *feed[*corev1.Service]) {
	r := &recorder{}
	a := newAgent("node1", r, events.NewFakeRecorder(100), logr.Discard())
	a.intake.unsynced = 2
	a.intake.push(true)
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { a.run(ctx) })
	t.Cleanup(func() { cancel(); running.Wait() })
	return a, r, &feed[*corev1.Service]{in: a.intake, kind: services()}
}

func clusterIP(name, ip string) *corev1.Service {
	return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default"},
		Spec: corev1.ServiceSpec{ClusterIP: ip, Ports: []corev1.ServicePort{{Port: 80}}}}
}

// TestNothingBeforeEveryWatchHasDelivered: an empty cache must not remove rules.
func TestNothingBeforeEveryWatchHasDelivered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, r, svcs := startAgent(t)
		must(t, svcs.Add(clusterIP("a", "10.0.0.1")))
		time.Sleep(time.Hour) // of the bubble's time
		r.want(t, 0, -1)
		must(t, svcs.Replace([]any{clusterIP("a", "10.0.0.1"), clusterIP("b", "10.0.0.2")}, ""))
		r.want(t, 1, 2)
		must(t, svcs.Replace([]any{clusterIP("a", "10.0.0.1")}, "")) // a second listing is no second first one
		time.Sleep(batchPeriod)
		r.want(t, 2, 1)
		if _, synced := a.intake.take(); !synced {
			t.Error("no longer synced")
		}
	})
}

// TestPace: a change that finds the agent idle is written at once, what follows within
// the period is written together, and a relisting removes what it does not name.
func TestPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, r, svcs := startAgent(t)
		must(t, svcs.Replace([]any{clusterIP("a", "10.0.0.1")}, ""))
		r.want(t, 1, 1)
		must(t, svcs.Add(clusterIP("b", "10.0.0.2")))
		must(t, svcs.Update(clusterIP("c", "10.0.0.3")))
		r.want(t, 1, 1)
		time.Sleep(batchPeriod)
		r.want(t, 2, 3)
		time.Sleep(batchPeriod)
		must(t, svcs.Replace([]any{clusterIP("b", "10.0.0.2")}, ""))
		r.want(t, 3, 1)
		must(t, svcs.Delete(clusterIP("b", "10.0.0.2")))
		time.Sleep(batchPeriod)
		r.want(t, 4, 0)
	})
}

// TestFailedWritesAreTriedAgain, with the newest state, and less and less often.
func TestFailedWritesAreTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, r, svcs := startAgent(t)
		r.setFailing(true)
		must(t, svcs.Replace([]any{clusterIP("a", "10.0.0.1")}, ""))
		time.Sleep(time.Minute)
		for range 30 { // events must not bring it forward
			must(t, svcs.Add(clusterIP("b", "10.0.0.2")))
			time.Sleep(time.Second)
		}
		if tries, _ := r.setFailing(true); tries < 10 || tries > 40 {
			t.Errorf("%d tries in one and a half minutes", tries)
		}
		time.Sleep(batchPeriod)
		r.setFailing(false)
		time.Sleep(2 * retry.Cap)
		r.want(t, 1, 2)
	})
}

// TestChecks: the rules are looked at again and again.
func TestChecks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, r, _ := startAgent(t)
		time.Sleep(10 * checkPeriod)
		if _, checks := r.setFailing(false); checks != 10 {
			t.Errorf("%d checks in 10 periods", checks)
		}
	})
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
