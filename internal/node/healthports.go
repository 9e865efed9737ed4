package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"k8s.io/utils/clock"

	"fairlead.dev/fairlead/internal/ipfamily"
	"fairlead.dev/fairlead/internal/persistent"
	"fairlead.dev/fairlead/internal/service"
)

const (
	// listenPeriod is the least time between two tries of what could not be listened
	// on, however often other Services change meanwhile.
	listenPeriod = 100 * time.Millisecond

	// headerTimeout is for how long a client may take to ask.
	headerTimeout = 5 * time.Second
)

// healthPorts is the Sink of the health check node ports: what load balancers ask which
// nodes have endpoints of a Service with externalTrafficPolicy Local. It listens in the
// network namespace of the process.
type healthPorts struct {
	node    string
	healthy func() bool // whether rules are written
	events  events.EventRecorder
	metrics *metrics
	clock   clock.PassiveClock
	logger  logr.Logger

	services persistent.Map[types.NamespacedName, *service.Service] // of the last Apply
	addrs    []netip.Addr
	ports    map[types.NamespacedName]*healthPort
	failing  map[types.NamespacedName]*healthPort // those of ports that do not listen everywhere
	tryAt    time.Time                            // not before then are those tried again
	open     int                                  // listening sockets
	running  sync.WaitGroup
}

// healthPort is the health check node port of one Service.
type healthPort struct {
	svc     atomic.Pointer[service.Service] // the newest, for those who answer
	servers map[netip.Addr]*portServer
	// told are the reasons why it could not listen that were told since it last listened
	// everywhere, reason those of the last try.
	told   map[string]bool
	reason string
}

// portServer serves a port on one address.
type portServer struct {
	*http.Server
	listener net.Listener
}

// Close frees the port before it returns, also where serving has not begun.
func (s *portServer) Close() error { return errors.Join(s.Server.Close(), s.listener.Close()) }

// Apply serves the ports of s, and says in an error that some cannot be listened on;
// everything else is served.
func (h *healthPorts) Apply(ctx context.Context, s *service.Snapshot) error {
	if h.ports == nil {
		h.ports, h.failing = map[types.NamespacedName]*healthPort{}, map[types.NamespacedName]*healthPort{}
	}
	opening := h.take(s.Services)
	retry := !h.clock.Now().Before(h.tryAt)
	if !slices.Equal(h.addrs, s.NodePortAddrs) {
		h.addrs = slices.Clone(s.NodePortAddrs)
		for name, port := range h.ports {
			h.closeAll(port, func(a netip.Addr) bool { return !slices.Contains(h.addrs, a) })
			opening[name] = port
		}
	}
	if retry {
		maps.Copy(opening, h.failing)
	}
	for name, port := range opening {
		h.listen(ctx, name, port)
	}
	h.metrics.healthPorts.Set(float64(h.open))
	h.metrics.healthPortsFailing.Set(float64(len(h.failing)))
	if len(h.failing) == 0 {
		return nil
	}
	if retry {
		h.tryAt = h.clock.Now().Add(listenPeriod)
	}
	return h.failure()
}

// take brings the ports to those of services, and returns those that are to be opened.
// What is in the way of another is closed first.
func (h *healthPorts) take(services persistent.Map[types.NamespacedName, *service.Service]) map[types.NamespacedName]*healthPort {
	opening := map[types.NamespacedName]*healthPort{}
	for ch := range persistent.Diff(h.services, services, func(a, b *service.Service) bool { return a == b }) {
		old := h.ports[ch.Key]
		switch {
		case old == nil && (!ch.HasNew || ch.New.HealthCheckNodePort == 0):
		case old != nil && ch.HasNew && old.svc.Load().HealthCheckNodePort == ch.New.HealthCheckNodePort:
			old.svc.Store(ch.New)
		default:
			if old != nil {
				h.closeAll(old, func(netip.Addr) bool { return true })
				delete(h.ports, ch.Key)
				delete(h.failing, ch.Key)
				h.tryAt = time.Time{} // somebody may have waited for the port
			}
			if ch.HasNew && ch.New.HealthCheckNodePort != 0 {
				port := &healthPort{servers: map[netip.Addr]*portServer{}, told: map[string]bool{}}
				port.svc.Store(ch.New)
				h.ports[ch.Key], opening[ch.Key] = port, port
			}
		}
	}
	h.services = services
	return opening
}

// listen opens what is not open of port, and tells once why where it cannot.
func (h *healthPorts) listen(ctx context.Context, name types.NamespacedName, port *healthPort) {
	var reasons, news []string
	for _, addr := range h.addrs {
		if port.servers[addr] != nil {
			continue
		}
		at := netip.AddrPortFrom(addr, port.svc.Load().HealthCheckNodePort).String()
		listener, err := new(net.ListenConfig).Listen(ctx, "tcp", at)
		if err == nil {
			h.serve(port, addr, listener)
			continue
		}
		reasons = append(reasons, err.Error())
		if !port.told[err.Error()] {
			port.told[err.Error()] = true
			news = append(news, err.Error())
		}
	}
	if len(port.servers) == len(h.addrs) {
		delete(h.failing, name)
		clear(port.told)
		return
	}
	h.failing[name], port.reason = port, strings.Join(reasons, "; ")
	if len(news) > 0 {
		svc := port.svc.Load()
		record(h.events, svc, eventHealthCheckFailed(h.node, svc, strings.Join(news, "; ")))
	}
}

func (h *healthPorts) serve(port *healthPort, addr netip.Addr, listener net.Listener) {
	family := ipfamily.Of(addr)
	server := &http.Server{ReadHeaderTimeout: headerTimeout, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		answerHealth(w, port.svc.Load(), family, h.healthy())
	})}
	port.servers[addr] = &portServer{server, listener}
	h.open++
	h.running.Go(func() {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			h.logger.Error(err, "Serving a health check port ended", "address", listener.Addr().String())
		}
	})
}

// closeAll closes those servers of port whose address gone says is gone.
func (h *healthPorts) closeAll(port *healthPort, gone func(netip.Addr) bool) {
	for addr, server := range port.servers {
		if gone(addr) {
			_ = server.Close() // no error of a listener keeps it open
			delete(port.servers, addr)
			h.open--
		}
	}
}

// close ends everything.
func (h *healthPorts) close() {
	for _, port := range h.ports {
		h.closeAll(port, func(netip.Addr) bool { return true })
	}
	h.running.Wait()
}

// failure says what cannot be listened on, with the first reason by name.
func (h *healthPorts) failure() error {
	names := slices.SortedFunc(maps.Keys(h.failing), func(a, b types.NamespacedName) int { return cmp.Compare(a.String(), b.String()) })
	err := fmt.Errorf("listening on the health check node port of Service %s: %s", names[0], h.failing[names[0]].reason)
	if more := len(names) - 1; more > 0 {
		err = fmt.Errorf("%w, and on those of %d more", err, more)
	}
	return err
}

// serviceHealth is the body of an answer, that of kube-proxy (pkg/proxy/healthcheck).
type serviceHealth struct {
	Service             serviceName `json:"service"`
	LocalEndpoints      int         `json:"localEndpoints"`
	ServiceProxyHealthy bool        `json:"serviceProxyHealthy"`
}

type serviceName struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
}

func answerHealth(w http.ResponseWriter, svc *service.Service, family ipfamily.Family, healthy bool) {
	count := svc.ReadyLocal[family]
	status := http.StatusServiceUnavailable
	if count > 0 && healthy {
		status = http.StatusOK
	}
	w.Header().Set("X-Load-Balancing-Endpoint-Weight", strconv.Itoa(count))
	answerJSON(w, status, serviceHealth{serviceName{svc.Name.Namespace, svc.Name.Name}, count, healthy})
}
