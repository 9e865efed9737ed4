// Package parity gives fairlead and kube-proxy the same Services and compares what
// clients see. Each runs on a node of its own in one cluster; every Service is made twice,
// with the same endpoints as seen from either node.
package parity_test

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"fairlead.dev/fairlead/internal/ipfamily"
	"fairlead.dev/fairlead/test/cluster"
)

const (
	// seedVar chooses other Services than those of every day, as a number.
	seedVar = "PARITY_SEED"
	// roundsVar asks for more rounds.
	roundsVar = "PARITY_ROUNDS"

	defaultSeed, defaultRounds = "1", "2"

	servicesPerRound = 8
	// askers is how many answers that differ are asked for again at a time.
	askers = 32
	// unpaced is for kube-proxy's minSyncPeriod, where 0 means the default.
	unpaced = time.Millisecond
)

func TestMain(m *testing.M) { cluster.Main(m) }

// difference is something in which fairlead is meant to differ.
type difference struct {
	reason  string
	applies func(q question, ours, theirs answers) bool
}

var differences = []difference{
	{"a family without a source range is closed when the other has one; kube-proxy leaves it open", func(q question, _, _ answers) bool {
		has := [len(ipfamily.All)]bool{}
		for _, r := range q.spec.service.LoadBalancerSourceRanges {
			has[ipfamily.Of(netip.MustParsePrefix(r).Addr())] = true
		}
		return q.kind == loadBalancerIP && !has[q.family] && has[1-q.family]
	}},
	{"an endpoint that names no node may be the pod that asks, which is then masqueraded; kube-proxy takes it for a remote one", func(q question, _, theirs answers) bool {
		return q.client == "endpoint" && slices.Contains(theirs, "silence") &&
			slices.ContainsFunc(q.spec.endpoints, func(e endpoint) bool { return e.noNode && e.host == "local-1" })
	}},
}

// world is a cluster with both sides.
type world struct {
	*cluster.Cluster
	sides [2]*side
	ports [2]map[*spec][]int32 // the node ports of each side's Services
	last  int                  // number of the last Service
}

func newWorld(t *testing.T) *world {
	c := cluster.New(t)
	w := &world{Cluster: c, last: 9}
	elsewhere := c.AddNode(t, "elsewhere")
	serve(t, &elsewhere.Host, "remote-node")
	w.sides[0] = newSide(t, c, 0, "fairlead", elsewhere)
	w.sides[1] = newSide(t, c, 1, "kube-proxy", elsewhere)
	for _, name := range []string{"remote-1", "remote-2"} {
		pod := addPod(t, elsewhere, name)
		serve(t, pod, name)
		for i, s := range w.sides {
			s.hosts[name] = pod
			w.ports[i] = map[*spec][]int32{}
		}
	}
	for node, zone := range map[string]string{"elsewhere": "z2", "fairlead": "z1", "kube-proxy": "z1"} {
		obj, err := c.Client.CoreV1().Nodes().Get(t.Context(), node, metav1.GetOptions{})
		must(t, err)
		metav1.SetMetaDataLabel(&obj.ObjectMeta, corev1.LabelTopologyZone, zone)
		_, err = c.Client.CoreV1().Nodes().Update(t.Context(), obj, metav1.UpdateOptions{})
		must(t, err)
	}
	config := cluster.Write(t, "node.yaml", fmt.Sprintf("apiVersion: config.fairlead.dev/v1alpha1\nkind: NodeConfiguration\n"+
		"localTraffic: {clusterCIDRs: [%s]}\n", strings.Join(cluster.PodCIDRs, ", ")))
	w.sides[0].process = c.Start(t, &w.sides[0].node.Host, "node", "--kubeconfig", c.Kubeconfig, "--node-name", "fairlead", "--config", config)
	w.sides[1].process = c.StartKubeProxy(t, w.sides[1].node, unpaced)
	return w
}

// create makes a Service with its slices on both sides.
func (w *world) create(t *testing.T, s *spec) {
	t.Helper()
	for i, side := range w.sides {
		services := w.Client.CoreV1().Services("default")
		svc, err := services.Create(t.Context(), s.object(side), metav1.CreateOptions{})
		must(t, err)
		var ports []int32
		for _, p := range svc.Spec.Ports {
			ports = append(ports, p.NodePort)
		}
		w.ports[i][s] = ports
		if svc.Status.LoadBalancer = s.status(side); len(svc.Status.LoadBalancer.Ingress) > 0 {
			_, err = services.UpdateStatus(t.Context(), svc, metav1.UpdateOptions{})
			must(t, err)
		}
		for _, slice := range s.slices(side) {
			_, err = w.Client.DiscoveryV1().EndpointSlices("default").Create(t.Context(), slice, metav1.CreateOptions{})
			must(t, err)
		}
	}
}

// update writes the slices of a Service anew.
func (w *world) update(t *testing.T, s *spec) {
	t.Helper()
	for _, side := range w.sides {
		for _, slice := range s.slices(side) {
			_, err := w.Client.DiscoveryV1().EndpointSlices("default").Update(t.Context(), slice, metav1.UpdateOptions{})
			must(t, err)
		}
	}
}

// remove deletes a Service of both sides.
func (w *world) remove(t *testing.T, s *spec) {
	t.Helper()
	for _, side := range w.sides {
		must(t, w.Client.CoreV1().Services("default").Delete(t.Context(), s.name(side), metav1.DeleteOptions{}))
		for _, slice := range s.slices(side) {
			must(t, w.Client.DiscoveryV1().EndpointSlices("default").Delete(t.Context(), slice.Name, metav1.DeleteOptions{}))
		}
	}
}

func (w *world) next() int { w.last++; return w.last }

// settle waits until both sides have the rules of all that was written before: those of a
// Service written after it.
func (w *world) settle(t *testing.T) {
	t.Helper()
	marker := &spec{number: w.next(), endpoints: []endpoint{{host: "remote-1"}}, service: newService()}
	w.create(t, marker)
	for i, side := range w.sides {
		for _, q := range marker.questions() {
			if q.client == "node" && q.kind == clusterIP {
				cluster.Eventually(t, func() error {
					if got := side.try(q, q.at(side, w.ports[i][marker]), silence); !strings.HasPrefix(got, "remote-1:") {
						return fmt.Errorf("%s: %s", side.name, got)
					}
					return nil
				})
			}
		}
	}
}

// TestParity compares what clients see.
func TestParity(t *testing.T) {
	seed, err := strconv.ParseUint(cmp.Or(os.Getenv(seedVar), defaultSeed), 10, 64)
	must(t, err)
	rounds, err := strconv.Atoi(cmp.Or(os.Getenv(roundsVar), defaultRounds))
	must(t, err)
	r := rand.New(rand.NewPCG(seed, 0))
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("seed: %s=%d", seedVar, seed)
		}
	})
	w := newWorld(t)
	for range rounds {
		var specs []*spec
		told := map[*spec]string{}
		for range servicesPerRound {
			s, names := generate(r, w.next())
			w.create(t, s)
			specs = append(specs, s)
			told[s] = strings.Join(names, ", ")
		}
		w.settle(t)
		w.compare(t, specs, told)
		for _, s := range specs {
			again, names := generate(r, s.number)
			s.endpoints = again.endpoints
			s.settleAffinity()
			told[s] += "; then " + strings.Join(names, ", ")
			w.update(t, s)
		}
		w.settle(t)
		w.compare(t, specs, told)
		for _, s := range specs {
			w.remove(t, s)
		}
	}
}

// compare asks both sides all questions about the Services.
func (w *world) compare(t *testing.T, specs []*spec, told map[*spec]string) {
	t.Helper()
	var questions []question
	for _, s := range specs {
		questions = append(questions, s.questions()...)
	}
	var got [2][]answers
	var group errgroup.Group
	for i, side := range w.sides {
		group.Go(func() error { got[i] = side.askAll(questions, w.ports[i]); return nil })
	}
	must(t, group.Wait())
	counts := map[string]int{}
	group.SetLimit(askers)
	for i, q := range questions {
		for _, a := range got[1][i] {
			counts[class(a)]++
		}
		if same(q, got[0][i], got[1][i]) {
			continue
		}
		group.Go(func() error {
			if ours, theirs := w.again(q); !same(q, ours, theirs) {
				t.Errorf("%s: fairlead gave %q, kube-proxy %q\n%s", q, ours, theirs, told[q.spec])
			}
			return nil
		})
	}
	must(t, group.Wait())
	t.Logf("%d questions, kube-proxy's answers: %v", len(questions), counts)
}

// same says whether the answers are equal, or differ as they are meant to.
func same(q question, ours, theirs answers) bool {
	return slices.Equal(ours, theirs) ||
		slices.ContainsFunc(differences, func(d difference) bool { return d.applies(q, ours, theirs) })
}

// class is an answer without the name of the backend.
func class(answer string) string {
	if _, source, found := strings.Cut(answer, " sees "); found {
		return "sees " + source
	}
	return answer
}

// again asks both sides with more patience and often enough that each backend is seen: of
// 4, one is missed by 60 tries once in 30 million times.
func (w *world) again(q question) (ours, theirs answers) {
	for range 3 {
		ours = w.sides[0].ask(q, q.at(w.sides[0], w.ports[0][q.spec]), 60, time.Second)
		theirs = w.sides[1].ask(q, q.at(w.sides[1], w.ports[1][q.spec]), 60, time.Second)
		if same(q, ours, theirs) {
			break
		}
	}
	return ours, theirs
}
