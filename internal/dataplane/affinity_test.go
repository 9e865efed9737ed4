package dataplane_test

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"

	"fairlead.dev/fairlead/api/v1alpha1"
	"fairlead.dev/fairlead/internal/dataplane"
	"fairlead.dev/fairlead/internal/ipfamily"
	"fairlead.dev/fairlead/test/netlab"
)

// affinity keeps a client with its endpoint for that many seconds.
func affinity(seconds int32) func(*corev1.Service) {
	return func(s *corev1.Service) {
		s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
		s.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: &seconds}}
	}
}

func scheduler(name string) func(*corev1.Service) {
	return func(s *corev1.Service) { s.Annotations = map[string]string{v1alpha1.AnnotationScheduler: name} }
}

// inTurn makes clients without an endpoint get the next one in turn, so that no two
// that follow each other get the same by chance.
var inTurn = scheduler(v1alpha1.SchedulerRoundRobin)

// answers returns who answers a client.
func (s *scene) answers(t testing.TB, ask request, client *netlab.Host, f ipfamily.Family, kind string, i int) string {
	t.Helper()
	name, _, _ := strings.Cut(s.outcome(ask, client, s.vip(f, client, kind, i), testTimeout), " ")
	if !strings.HasPrefix(name, "web-") {
		t.Fatalf("%s to %s of s%d: %s", client.Name, kind, i, name)
	}
	return name
}

// webs are endpoints, the first three on node1.
func (s *scene) webs(t testing.TB, n int) (out []*netlab.Host) {
	for i := range n {
		out = append(out, s.world.pod(t, min(i/3, len(s.nodes)-1), fmt.Sprint("web-", i+1)))
	}
	return out
}

// without returns the endpoints without those of the names.
func without(hosts []*netlab.Host, names ...string) []*netlab.Host {
	return slices.DeleteFunc(slices.Clone(hosts), func(h *netlab.Host) bool { return slices.Contains(names, h.Name) })
}

// TestAffinity shows that every client has an endpoint of its own, the same at all
// addresses of the Service, that others which come and go make no difference, nor a new
// agent, and that another takes over when it goes itself.
func TestAffinity(t *testing.T) {
	s := newScene(t, 2, byCIDRs)
	webs := s.webs(t, 4)
	clients := []*netlab.Host{s.pod, &s.nodes[0].Host, s.client}
	long := func(endpoints []*netlab.Host) svc { return numbered(1, endpoints...).with(affinity(3600), inTurn) }
	each(t, "", func(t *testing.T, ask request, f ipfamily.Family, _ string) {
		s.apply() // forgets the endpoints, and so the clients'
		s.apply(long(webs))
		own := map[*netlab.Host]string{}
		for _, c := range clients {
			own[c] = s.answers(t, ask, c, f, clusterIP, 1)
		}
		if own[clients[0]] == own[clients[1]] || own[clients[1]] == own[clients[2]] || own[clients[0]] == own[clients[2]] {
			t.Errorf("the clients' endpoints are %v, want three", own)
		}
		stays := func(when string) {
			t.Helper()
			for _, c := range clients {
				for _, kind := range vipKinds {
					if c == clients[1] && kind == nodePort {
						continue // with its own address it is another client
					}
					for range 4 {
						if got := s.answers(t, ask, c, f, kind, 1); got != own[c] {
							t.Errorf("%s at the %s, %s: %s, want %s", c.Name, kind, when, got, own[c])
						}
					}
				}
			}
		}
		stays("at first")
		var free string // nobody's endpoint
		for _, w := range webs {
			if w.Name != own[clients[0]] && w.Name != own[clients[1]] && w.Name != own[clients[2]] {
				free = w.Name
			}
		}
		s.apply(long(without(webs, free)))
		stays("another gone")
		s.apply(long(webs))
		stays("another back")
		s.sinks[0] = s.on(s.t, 0)
		s.apply(long(webs))
		stays("with a new agent")
		s.sinks[0] = s.on(s.t, 0)
		s.apply(long(without(webs, free)))
		stays("another gone while no agent ran")
		s.apply(long(webs))

		lost := own[s.pod]
		s.apply(long(without(webs, lost)))
		own[s.pod] = s.answers(t, ask, s.pod, f, clusterIP, 1)
		if own[s.pod] == lost {
			t.Errorf("%s answers when it is no endpoint any more", lost)
		}
		stays("after fail-over")
		s.apply(long(webs))
		stays("the lost one back")

		s.apply(numbered(1, webs...).with(inTurn))
		if a, b := s.answers(t, ask, s.pod, f, clusterIP, 1), s.answers(t, ask, s.pod, f, clusterIP, 1); a == b {
			t.Errorf("%s answers twice without affinity", a)
		}
	})
}

// TestAffinityLocal shows that a client has one endpoint also where an address leads to
// those on this node only: one of these, once it was asked.
func TestAffinityLocal(t *testing.T) {
	s := newScene(t, 2, byCIDRs)
	far := s.world.pod(t, 1, "web-0")
	webs := append(s.webs(t, 2), far)
	each(t, "", func(t *testing.T, ask request, f ipfamily.Family, _ string) {
		s.apply()
		s.apply(numbered(1, far).with(affinity(3600), externalLocal, inTurn))
		if got := s.answers(t, ask, s.client, f, clusterIP, 1); got != "web-0" {
			t.Fatalf("%s answers, want the only one", got)
		}
		s.apply(numbered(1, webs...).with(affinity(3600), externalLocal, inTurn))
		if got := s.answers(t, ask, s.client, f, clusterIP, 1); got != "web-0" {
			t.Errorf("%s answers, want the client to stay", got)
		}
		local := s.answers(t, ask, s.client, f, loadBalancerIP, 1)
		if local == "web-0" {
			t.Errorf("an endpoint elsewhere answers under policy Local")
		}
		for _, kind := range []string{loadBalancerIP, clusterIP, externalIP, clusterIP, nodePort} {
			if got := s.answers(t, ask, s.client, f, kind, 1); got != local {
				t.Errorf("%s answers at the %s, want %s", got, kind, local)
			}
		}
	})
}

// TestAffinityTimeout shows that each new connection starts the time again, and that the
// client is free when it is over.
func TestAffinityTimeout(t *testing.T) {
	s := newScene(t, 1, byCIDRs)
	webs := s.webs(t, 3)
	s.apply(numbered(1, webs...).with(affinity(2), inTurn))
	round := func() map[string]string {
		out := map[string]string{}
		for _, p := range protocols {
			for _, f := range ipfamily.All {
				out[fmt.Sprint(p.name, " ", f)] = s.answers(t, p.ask, s.pod, f, clusterIP, 1)
			}
		}
		return out
	}
	first := round()
	s.await(t, func() bool { return slices.Max(s.left(t)) < time.Second })
	if diff := cmp.Diff(first, round()); diff != "" {
		t.Errorf("other endpoints within the time (-first +second):\n%s", diff)
	}
	if left := s.left(t); len(left) != len(first) || slices.Min(left) < time.Second {
		t.Errorf("%v are left after new connections, want nearly 2 s each", left)
	}
	s.await(t, func() bool { return len(s.left(t)) == 0 })
	for what, name := range round() {
		if name == first[what] {
			t.Errorf("%s: %s still answers when the time is over", what, name)
		}
	}
}

var expires = regexp.MustCompile(`expires (\S+)`)

// left returns for how long each client of a Service port is remembered still.
func (s *scene) left(t testing.TB) (out []time.Duration) {
	t.Helper()
	for _, table := range []string{"ip", "ip6"} {
		for _, match := range expires.FindAllStringSubmatch(s.sinks[0].nft("list", "map", table, dataplane.TableName, "affinity"), -1) {
			left, err := time.ParseDuration(match[1])
			must(t, err)
			out = append(out, left)
		}
	}
	return out
}

// await waits until the condition holds.
func (s *scene) await(t testing.TB, condition func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(testTimeout)
	for !condition() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("the condition did not come true")
		}
	}
}
