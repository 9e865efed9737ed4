package dataplane_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/types"

	"fairlead.dev/fairlead/internal/dataplane"
	"fairlead.dev/fairlead/internal/ipfamily"
	"fairlead.dev/fairlead/internal/service"
	"fairlead.dev/fairlead/test/netlab"
)

// explainWorld has Services of all policies on node1, with one endpoint there and two
// on node2.
type explainWorld struct {
	*world
	sink      *nodeSink
	endpoints map[string]*netlab.Host // by what they answer
	clients   map[dataplane.Sender]*netlab.Host
	installed dataplane.Installed
}

func newExplainWorld(t *testing.T) *explainWorld {
	w := newWorld(t, 2)
	e := &explainWorld{world: w, sink: w.on(t, 0), endpoints: map[string]*netlab.Host{
		"here": w.pod(t, 0, "here"), "there-1": w.pod(t, 1, "there-1"), "there-2": w.pod(t, 1, "there-2"),
	}}
	client, err := w.nodes[0].AddPod("client-pod")
	must(t, err)
	e.clients = map[dataplane.Sender]*netlab.Host{dataplane.Pods: client, dataplane.ThisNode: &w.nodes[0].Host, dataplane.Elsewhere: w.client}
	for _, prefix := range vipPrefixes {
		must(t, w.client.AddRoute(prefix, addrOf(&w.nodes[0].Host, ipfamily.Of(prefix.Addr()))))
	}
	snap := &service.Snapshot{PodCIDRs: podCIDRs, ServiceCIDRs: prefixes("10.96.0.0/16", "fd00:10:96::/112")}
	snap.NodePortAddrs = []netip.Addr{w.nodes[0].IPv4, w.nodes[0].IPv6}
	snap.NodeAddrs = snap.NodePortAddrs
	edit := snap.Services.Edit()
	for i, change := range []func(*service.Service){
		func(*service.Service) {},
		func(s *service.Service) { s.ExternalLocal, s.InternalLocal = true, true },
		func(s *service.Service) {
			s.ExternalLocal = true
			s.SourceRanges = []netip.Prefix{single(w.client.IPv4), single(w.client.IPv6)}
		},
		func(s *service.Service) {
			s.SourceRanges = append(slices.Clone(podCIDRs), single(w.nodes[0].IPv4), single(w.nodes[0].IPv6))
		},
		func(s *service.Service) {
			s.Ports[0].Cluster, s.Ports[0].Local = service.Backends{}, service.Backends{}
		},
		func(s *service.Service) { s.ExternalLocal, s.Ports[0].Local = true, service.Backends{} },
		func(s *service.Service) { s.Affinity, s.Scheduler = time.Hour, service.RoundRobin },
		func(s *service.Service) { s.Scheduler = service.Maglev },
	} {
		svc := e.service(i + 1)
		change(svc)
		edit.Set(svc.Name, svc)
	}
	snap.Services = edit.Map()
	e.sink.apply(snap)
	e.installed = w.inspect(t)
	return e
}

func single(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

func (w *explainWorld) service(i int) *service.Service {
	s := &service.Service{
		Name:            types.NamespacedName{Namespace: "default", Name: fmt.Sprint("s", i)},
		ClusterIPs:      addrs(fmt.Sprintf("10.96.0.%d", i), fmt.Sprintf("fd00:10:96::%d", i)),
		LoadBalancerIPs: addrs(fmt.Sprintf("198.51.100.%d", i), fmt.Sprintf("2001:db8::%d", i)),
		Ports:           []service.Port{{Protocol: service.TCP, Port: 80, NodePort: uint16(30080 + i)}},
	}
	for _, name := range []string{"here", "there-1", "there-2"} {
		for _, f := range ipfamily.All {
			b := service.Backend{Addr: netip.AddrPortFrom(addrOf(w.endpoints[name], f), 8080), Local: name == "here", Weight: 1}
			s.Ports[0].Cluster[f] = append(s.Ports[0].Cluster[f], b)
			if b.Local {
				s.Ports[0].Local[f] = append(s.Ports[0].Local[f], b)
			}
		}
	}
	return s
}

// TestExplanationsAreTrue sends packets from each kind of client to each frontend, and
// to what is none, and holds what becomes of them against what is said.
func TestExplanationsAreTrue(t *testing.T) {
	w := newExplainWorld(t)
	all := w.installed.All()
	if n := 8 * 3 * len(ipfamily.All); len(all) != n {
		t.Fatalf("%d frontends, want %d:\n%s", len(all), n, dataplane.Table(all))
	}
	for _, other := range []string{"10.96.0.1:81", "[fd00:10:96::1]:81", "10.96.0.99:80", "[fd00:10:96::99]:80"} {
		all = append(all, w.installed.Explain(netip.MustParseAddrPort(other), service.TCP))
	}
	for _, e := range all {
		t.Run(e.Title(), func(t *testing.T) {
			for sender, client := range w.clients {
				if p, ok := pathFrom(e, sender); !ok {
					t.Errorf("nothing is said of sender %d", sender)
				} else if err := w.holds(t, client, e, p); err != nil {
					t.Errorf("sender %d: %v, but:\n%s", sender, err, e.Text(nil))
				}
			}
		})
	}
}

// pathFrom returns what is said of the sender.
func pathFrom(e dataplane.Explanation, s dataplane.Sender) (dataplane.Path, bool) {
	for _, p := range e.Paths {
		if p.From == s || p.From == dataplane.Everyone || (p.From == dataplane.Others && s != dataplane.ThisNode) {
			return p, true
		}
	}
	return dataplane.Path{}, false
}

// holds finds out whether p is true of the client.
func (w *explainWorld) holds(t *testing.T, client *netlab.Host, e dataplane.Explanation, p dataplane.Path) error {
	f := ipfamily.Of(e.At.Addr())
	shut := p.Fenced && !slices.ContainsFunc(p.Ranges, func(r netip.Prefix) bool { return r.Contains(addrOf(client, f)) })
	switch {
	case p.Fate == dataplane.Dropped, shut:
		ctx, cancel := context.WithTimeout(t.Context(), silence)
		defer cancel()
		if name, _, err := client.HTTP(ctx, e.At); !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, syscall.EPERM) {
			return fmt.Errorf("got %q, %w, want silence", name, err)
		}
		return nil
	case p.Fate == dataplane.Refused:
		ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
		defer cancel()
		if name, _, err := client.HTTP(ctx, e.At); !errors.Is(err, syscall.ECONNREFUSED) {
			return fmt.Errorf("got %q, %w, want a refusal", name, err)
		}
		return nil
	default:
		return w.reaches(t, client, e, p)
	}
}

// reaches finds out whether the client gets to all endpoints that p leads to and to no
// other, with its source kept or not.
func (w *explainWorld) reaches(t *testing.T, client *netlab.Host, e dataplane.Explanation, p dataplane.Path) error {
	f := ipfamily.Of(e.At.Addr())
	want := map[string]bool{}
	for _, s := range e.Sets {
		for _, ep := range s.Endpoints {
			for name, host := range w.endpoints {
				if s.ID == p.ID && addrOf(host, f) == ep.Addr.Addr() {
					want[name] = true
				}
			}
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	seen, first := map[string]bool{}, ""
	// A client with affinity or a hash is at one of them; the others are asked until all
	// have answered.
	sticky := p.Class.Affinity > 0 || p.Class.Scheduler == service.SourceHash
	for i := 0; i < enough && (i < 5 || !sticky && len(seen) < len(want)); i++ {
		name, source, err := client.HTTP(ctx, e.At)
		if err != nil {
			return err
		}
		if seen[name] = true; !want[name] {
			return fmt.Errorf("%s answered", name)
		}
		if first == "" {
			first = name
		}
		if sticky && name != first {
			return fmt.Errorf("%s answered and then %s", first, name)
		}
		if kept := source.Addr() == addrOf(client, f); client != &w.nodes[0].Host && kept == p.Masqueraded {
			return fmt.Errorf("%s saw source %s", name, source)
		}
	}
	if !sticky && len(seen) < len(want) {
		return fmt.Errorf("only %v of %v answered", seen, want)
	}
	return nil
}

// TestExplanationsNameWhatNFTShows: what is said of elements and chains is there for
// whoever looks with nft.
func TestExplanationsNameWhatNFTShows(t *testing.T) {
	w := newExplainWorld(t)
	shown := map[string]string{}
	for f, table := range map[ipfamily.Family]string{ipfamily.IPv4: "ip", ipfamily.IPv6: "ip6"} {
		shown[f.String()] = strings.Join(strings.Fields(w.sink.nft("list", "table", table, "fairlead")), " ")
	}
	all := w.installed.All()
	for _, other := range []string{"10.96.0.1:81", "[fd00:10:96::1]:81", "10.96.0.99:80", "[fd00:10:96::99]:80"} {
		all = append(all, w.installed.Explain(netip.MustParseAddrPort(other), 0))
	}
	for _, e := range all {
		text := shown[ipfamily.Of(e.At.Addr()).String()]
		if len(e.Elements) == 0 {
			t.Errorf("%s: no elements", e.Title())
		}
		for _, el := range e.Elements {
			_, set, found := strings.Cut(text, el.Set+" {")
			set, _, _ = strings.Cut(set, "}")
			if !found || !strings.Contains(set, " "+el.Text) {
				t.Errorf("%s: %s has no %s:\n%s", e.Title(), el.Set, el.Text, set)
			}
		}
		for _, p := range e.Paths {
			for chain := range strings.FieldsSeq(strings.ReplaceAll(strings.Join(p.Chains, " "), " or ", " ")) {
				if !strings.Contains(text, "chain "+chain+" {") {
					t.Errorf("%s: no chain %s", e.Title(), chain)
				}
			}
		}
	}
}

// TestMissingElements: what somebody took away is said, not papered over.
func TestMissingElements(t *testing.T) {
	w := newWorld(t, 1)
	s := w.on(t, 0)
	s.apply(snapshot(nil, svc{name: "a", clusterIPs: []string{"10.96.0.1"}, port: 80, target: 80, endpoints: []string{"10.1.0.1", "10.1.0.2"}}))
	at := netip.MustParseAddrPort("10.96.0.1:80")
	before := w.inspect(t)
	protocols := before.Protocols(at)
	if diff := cmp.Diff([]service.Protocol{service.TCP, service.UDP}, protocols); diff != "" {
		t.Errorf("protocols (-want +got):\n%s", diff)
	}
	set := before.Explain(at, service.TCP).Elements[1]
	key, _, _ := strings.Cut(set.Text, " :")
	s.nft("delete element ip fairlead endpoints { " + strings.Replace(key, "0x00000000", "0x00000001", 1) + " }")
	if got := w.inspect(t).Explain(at, service.TCP).Text(nil); !strings.Contains(got, "1 of 2 slots are missing") {
		t.Errorf("a slot that is gone is not told of:\n%s", got)
	}
}
