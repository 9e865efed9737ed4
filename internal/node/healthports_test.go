package node

import (
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	clocktesting "k8s.io/utils/clock/testing"

	"fairlead.dev/fairlead/internal/ipfamily"
	"fairlead.dev/fairlead/internal/persistent"
	"fairlead.dev/fairlead/internal/service"
)

// portWorld is the Sink of the health check ports with what it stands on.
type portWorld struct {
	*healthPorts
	t        *testing.T
	clock    *clocktesting.FakePassiveClock
	recorder *events.FakeRecorder
	healthy  bool
	services persistent.Map[types.NamespacedName, *service.Service]
	addrs    []netip.Addr
}

func newPortWorld(t *testing.T) *portWorld {
	lo, err := netlink.LinkByName("lo")
	must(t, err)
	must(t, netlink.LinkSetUp(lo))
	w := &portWorld{t: t, healthy: true, clock: clocktesting.NewFakePassiveClock(time.Unix(1000, 0)),
		recorder: events.NewFakeRecorder(100), addrs: addrs("127.0.0.1", "127.0.0.2")}
	w.healthPorts = &healthPorts{node: "node1", healthy: func() bool { return w.healthy }, events: w.recorder,
		metrics: newMetrics(), clock: w.clock, logger: logr.Discard()}
	t.Cleanup(w.close)
	return w
}

// set gives a Service a port, 0 for none, and so many ready endpoints of IPv4.
func (w *portWorld) set(name string, port uint16, ready int) {
	edit := w.services.Edit()
	key := types.NamespacedName{Namespace: "default", Name: name}
	svc := &service.Service{Name: key, HealthCheckNodePort: port}
	svc.ReadyLocal[ipfamily.IPv4] = ready
	edit.Set(key, svc)
	w.services = edit.Map()
}

func (w *portWorld) apply() error {
	return w.Apply(w.t.Context(), &service.Snapshot{Services: w.services, NodePortAddrs: w.addrs})
}

// answer is what a load balancer sees.
type answered struct {
	status int
	weight string
	body   serviceHealth
}

func (w *portWorld) ask(addr string, port uint16) (answered, error) {
	w.t.Helper()
	transport := &http.Transport{DisableKeepAlives: true}
	resp, err := (&http.Client{Transport: transport, Timeout: 10 * time.Second}).Get("http://" + net.JoinHostPort(addr, strconv.Itoa(int(port))) + "/any/path")
	if err != nil {
		return answered{}, err
	}
	defer func() { must(w.t, resp.Body.Close()) }()
	raw, err := io.ReadAll(resp.Body)
	must(w.t, err)
	out := answered{status: resp.StatusCode, weight: resp.Header.Get("X-Load-Balancing-Endpoint-Weight")}
	must(w.t, json.Unmarshal(raw, &out.body))
	if resp.Header.Get("Content-Type") != "application/json" || resp.Header.Get("X-Content-Type-Options") != "nosniff" {
		w.t.Errorf("headers %v", resp.Header)
	}
	return out, nil
}

func (w *portWorld) want(addr string, port uint16, status int, name string, count int) {
	w.t.Helper()
	got, err := w.ask(addr, port)
	must(w.t, err)
	want := answered{status, strconv.Itoa(count), serviceHealth{serviceName{"default", name}, count, w.healthy}}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(answered{})); diff != "" {
		w.t.Errorf("%s:%d mismatch (-want +got):\n%s", addr, port, diff)
	}
}

func (w *portWorld) wantClosed(addr string, port uint16) {
	w.t.Helper()
	if got, err := w.ask(addr, port); err == nil {
		w.t.Errorf("%s:%d still answers: %v", addr, port, got)
	}
}

// wantEvents fails unless exactly these were sent since the last call, by what they hold.
func (w *portWorld) wantEvents(want ...string) {
	w.t.Helper()
	for _, text := range want {
		select {
		case got := <-w.recorder.Events:
			if !strings.Contains(got, text) {
				w.t.Errorf("event %q, want %q in it", got, text)
			}
		default:
			w.t.Errorf("no event with %q", text)
		}
	}
	select {
	case got := <-w.recorder.Events:
		w.t.Errorf("unwanted event %q", got)
	default:
	}
}

// freePort returns a port that nobody listens on.
func freePort(t *testing.T) uint16 {
	l := listen(t, "127.0.0.1:0")
	must(t, l.Close())
	return netip.MustParseAddrPort(l.Addr().String()).Port()
}

func listen(t *testing.T, at string) net.Listener {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", at)
	must(t, err)
	return l
}

// TestHealthPortAnswers what kube-proxy's would, on every address.
func TestHealthPortAnswers(t *testing.T) {
	w := newPortWorld(t)
	port := freePort(t)
	w.set("web", port, 2)
	w.set("other", 0, 2)
	must(t, w.apply())
	w.want("127.0.0.1", port, 200, "web", 2)
	w.want("127.0.0.2", port, 200, "web", 2)
	w.set("web", port, 0)
	must(t, w.apply())
	w.want("127.0.0.1", port, 503, "web", 0)
	w.set("web", port, 1)
	must(t, w.apply())
	w.healthy = false
	w.want("127.0.0.1", port, 503, "web", 1)
	w.healthy = true
	w.want("127.0.0.1", port, 200, "web", 1)
	w.wantEvents()
}

// TestHealthPortTellsOfItsFamily: a node can have endpoints of one family only.
func TestHealthPortTellsOfItsFamily(t *testing.T) {
	w := newPortWorld(t)
	w.addrs = addrs("127.0.0.1", "::1")
	port := freePort(t)
	w.set("web", port, 3)
	must(t, w.apply())
	w.want("127.0.0.1", port, 200, "web", 3)
	w.want("::1", port, 503, "web", 0)
}

// TestHealthPortsMove: ports that change hands, addresses that come and go.
func TestHealthPortsMove(t *testing.T) {
	w := newPortWorld(t)
	one, two := freePort(t), freePort(t)
	w.set("a", one, 1)
	w.set("b", two, 2)
	must(t, w.apply())
	for range 20 { // in whatever order the changes are seen
		one, two = two, one
		w.set("a", one, 1)
		w.set("b", two, 2)
		must(t, w.apply())
		w.want("127.0.0.1", one, 200, "a", 1)
		w.want("127.0.0.1", two, 200, "b", 2)
	}
	w.addrs = addrs("127.0.0.1", "127.0.0.3")
	must(t, w.apply())
	w.want("127.0.0.3", one, 200, "a", 1)
	w.wantClosed("127.0.0.2", one)
	w.set("b", 0, 2)
	must(t, w.apply())
	w.wantClosed("127.0.0.1", two)
	w.services = persistent.Map[types.NamespacedName, *service.Service]{}
	must(t, w.apply())
	w.wantClosed("127.0.0.1", one)
	if w.open != 0 {
		t.Errorf("%d listeners are left", w.open)
	}
	w.wantEvents()
}

// TestHealthPortTaken: what can be served is, the rest is told of once and had as soon
// as it is free.
func TestHealthPortTaken(t *testing.T) {
	w := newPortWorld(t)
	port, fine := freePort(t), freePort(t)
	taken := listen(t, net.JoinHostPort("127.0.0.2", strconv.Itoa(int(port))))
	w.set("web", port, 1)
	w.set("fine", fine, 1)
	for range 5 {
		if err := w.apply(); err == nil || !strings.Contains(err.Error(), "default/web") || !strings.Contains(err.Error(), "address already in use") {
			t.Fatalf("error %v", err)
		}
		w.clock.SetTime(w.clock.Now().Add(time.Second))
		w.set("web", port, 1) // a change is no reason to tell again
	}
	w.wantEvents("Warning FailedToStartServiceHealthcheck node node1 failed to start healthcheck \"default/web\" on port " +
		strconv.Itoa(int(port)) + ": listen tcp 127.0.0.2:" + strconv.Itoa(int(port)) + ": bind: address already in use")
	w.want("127.0.0.1", port, 200, "web", 1)
	w.want("127.0.0.2", fine, 200, "fine", 1)

	must(t, taken.Close())
	w.clock.SetTime(w.clock.Now().Add(time.Second))
	must(t, w.apply())
	w.want("127.0.0.2", port, 200, "web", 1)
	w.wantEvents()

	w.addrs = addrs("127.0.0.1", "192.0.2.1") // an address that this host has not
	if err := w.apply(); err == nil {
		t.Fatal("no error")
	}
	w.wantEvents("192.0.2.1", "192.0.2.1")
	w.set("web", 0, 1)
	w.set("fine", 0, 1)
	must(t, w.apply()) // nothing fails any more
}
