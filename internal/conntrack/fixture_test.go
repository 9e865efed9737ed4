package conntrack

import (
	"bufio"
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/utils/clock"

	"fairlead.dev/fairlead/internal/dataplane"
	"fairlead.dev/fairlead/internal/ipfamily"
	"fairlead.dev/fairlead/internal/persistent"
	"fairlead.dev/fairlead/internal/service"
	"fairlead.dev/fairlead/test/netlab"
)

// testTimeout bounds every wait for a packet or the kernel.
const testTimeout = 10 * time.Second

const (
	port     = 80
	nodePort = 30080
)

// The addresses of the Service of the tests, by kind and family. The node sends what it
// does not translate to a gateway that answers nothing.
var vips = map[string][2]netip.Addr{
	"ClusterIP":      {netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("fd00:10:96::10")},
	"LoadBalancerIP": {netip.MustParseAddr("198.51.100.6"), netip.MustParseAddr("2001:db8::6")},
	"ExternalIP":     {netip.MustParseAddr("198.51.100.7"), netip.MustParseAddr("2001:db8::7")},
}

var podCIDRs = []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:10:244::/48")}

// lab is a node with pods a, b and c that answer on port 8080 and one that asks, and a
// client outside.
type lab struct {
	t        testing.TB
	node     *netlab.Node
	pods     map[string]*netlab.Host
	outside  *netlab.Host
	sink     *dataplane.Sink
	cleaner  *Cleaner
	nodePort []netip.Addr
}

func newLab(t testing.TB) *lab {
	t.Helper()
	world, err := netlab.New()
	must(t, err)
	t.Cleanup(func() { must(t, world.Close()) })
	l := &lab{t: t, pods: map[string]*netlab.Host{}}
	l.node, err = world.AddNode("node1")
	must(t, err)
	for _, name := range []string{"a", "b", "c", "pod"} {
		pod, err := l.node.AddPod(name)
		must(t, err)
		l.pods[name] = pod
		echo, err := netlab.StartEcho(pod, name, 8080)
		must(t, err)
		t.Cleanup(func() { must(t, echo.Close()) })
	}
	l.outside, err = world.AddClient("client")
	must(t, err)
	for prefix, via := range map[string]netip.Addr{"198.51.100.0/24": l.node.IPv4, "2001:db8::/32": l.node.IPv6} {
		must(t, l.outside.AddRoute(netip.MustParsePrefix(prefix), via))
		// Without a route it would say so, which ends what is connecting.
		must(t, world.Gateway().AddRoute(netip.MustParsePrefix(prefix)))
	}
	l.nodePort = []netip.Addr{l.node.IPv4, l.node.IPv6}
	l.restart()
	return l
}

// restart forgets what the agent knew; the rules stay.
func (l *lab) restart() {
	l.sink = dataplane.NewSink(dataplane.Config{Local: dataplane.LocalTraffic{CIDRs: true}})
	l.cleaner = New(fastClock{start: time.Now()}, logr.Discard())
}

// haste is by how much the time of a fastClock passes faster.
const haste = 10

// fastClock is a clock on which the rests between passes are short.
type fastClock struct {
	clock.RealClock
	start time.Time
}

func (c fastClock) Now() time.Time                  { return c.start.Add(haste * time.Since(c.start)) }
func (c fastClock) Since(t time.Time) time.Duration { return c.Now().Sub(t) }
func (c fastClock) NewTimer(d time.Duration) clock.Timer {
	return fastTimer{c.RealClock.NewTimer(d / haste)}
}

type fastTimer struct{ clock.Timer }

func (t fastTimer) Reset(d time.Duration) bool { return t.Timer.Reset(d / haste) }

// web is the Service of the tests, with the endpoints that take new connections.
func (l *lab) web(endpoints ...string) *service.Service {
	svc := &service.Service{Name: types.NamespacedName{Namespace: "default", Name: "web"}}
	for _, f := range ipfamily.All {
		svc.ClusterIPs = append(svc.ClusterIPs, vips["ClusterIP"][f])
		svc.LoadBalancerIPs = append(svc.LoadBalancerIPs, vips["LoadBalancerIP"][f])
		svc.ExternalIPs = append(svc.ExternalIPs, vips["ExternalIP"][f])
	}
	for _, p := range []service.Protocol{service.TCP, service.UDP} {
		svc.Ports = append(svc.Ports, service.Port{Protocol: p, Port: port, NodePort: nodePort, Cluster: l.backends(endpoints...)})
	}
	return svc
}

// internal is web with a single frontend, of UDP and IPv4.
func (l *lab) internal(endpoints ...string) *service.Service {
	svc := l.web(endpoints...)
	svc.LoadBalancerIPs, svc.ExternalIPs, svc.ClusterIPs = nil, nil, svc.ClusterIPs[:1]
	svc.Ports = svc.Ports[1:]
	svc.Ports[0].NodePort = 0
	return svc
}

func (l *lab) backends(pods ...string) (out service.Backends) {
	for _, f := range ipfamily.All {
		for _, name := range pods {
			out[f] = append(out[f], service.Backend{Addr: netip.AddrPortFrom(addrOf(l.pods[name], f), 8080), Local: true, Weight: 1})
		}
		slices.SortFunc(out[f], func(a, b service.Backend) int { return a.Addr.Compare(b.Addr) })
	}
	return out
}

func snapshot(nodeAddrs []netip.Addr, services ...*service.Service) *service.Snapshot {
	var all persistent.Map[types.NamespacedName, *service.Service]
	edit := all.Edit()
	for _, s := range services {
		edit.Set(s.Name, s)
	}
	return &service.Snapshot{Services: edit.Map(), NodePortAddrs: nodeAddrs, PodCIDRs: podCIDRs}
}

// write makes the rules those of the Services, and tells the Cleaner.
func (l *lab) write(services ...*service.Service) {
	l.t.Helper()
	snap := snapshot(l.nodePort, services...)
	l.cleaner.Writing()
	must(l.t, l.node.Do(func() error { return l.sink.Apply(l.t.Context(), snap) }))
	l.cleaner.Changed(snap)
}

// sweep does one pass.
func (l *lab) sweep() {
	l.t.Helper()
	must(l.t, l.node.Do(func() error {
		l.cleaner.takeIn()
		return l.cleaner.pass(l.t.Context())
	}))
}

// flows returns the flows of q in the node's table.
func (l *lab) flows(q query) (out []flow) {
	l.t.Helper()
	must(l.t, l.node.Do(func() error {
		var tab table
		defer tab.close()
		return tab.walk(l.t.Context(), q, func(fl *flow) error {
			out = append(out, *fl)
			return nil
		})
	}))
	return out
}

// vip is where the client of that kind finds the Service.
func (l *lab) vip(kind string, f ipfamily.Family) (*netlab.Host, netip.AddrPort) {
	switch kind {
	case "NodePort":
		return l.outside, netip.AddrPortFrom(addrOf(&l.node.Host, f), nodePort)
	case "ClusterIP":
		return l.pods["pod"], netip.AddrPortFrom(vips[kind][f], port)
	default:
		return l.outside, netip.AddrPortFrom(vips[kind][f], port)
	}
}

// dial returns a connection that stays the same flow.
func (l *lab) dial(from *netlab.Host, network string, to netip.AddrPort) net.Conn {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(l.t.Context(), testTimeout)
	defer cancel()
	conn, err := from.DialContext(ctx, network, to.String())
	must(l.t, err)
	l.t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// ask sends a datagram, or a line of HTTP, and returns the name of who answers.
func ask(conn net.Conn) (string, error) {
	if err := conn.SetDeadline(time.Now().Add(testTimeout)); err != nil {
		return "", err
	}
	if _, err := conn.Write([]byte("GET / HTTP/1.1\r\nHost: web\r\n\r\n")); err != nil {
		return "", err
	}
	r := bufio.NewReader(conn)
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return "", err
		}
		// Answers are "<name> <source>"; the headers of HTTP have a colon in the first word.
		if name, source, ok := strings.Cut(strings.TrimSpace(line), " "); ok {
			if _, err := netip.ParseAddrPort(source); err == nil {
				return name, nil
			}
		}
	}
}

func wantAnswer(t *testing.T, conn net.Conn, want string) {
	t.Helper()
	if got, err := ask(conn); got != want || err != nil {
		t.Fatalf("%s answered, %v; want %s", got, err, want)
	}
}

// awaitFlow waits until the table has a flow of q.
func (l *lab) awaitFlow(q query) {
	l.t.Helper()
	must(l.t, wait.PollUntilContextTimeout(l.t.Context(), 5*time.Millisecond, testTimeout, true,
		func(context.Context) (bool, error) { return len(l.flows(q)) > 0, nil }))
}

// sendTogether is how many requests fit into the buffer of a socket.
const sendTogether = 500

// addFlows adds n flows to the table as if packets had made them: of UDP, to port to,
// translated to port 8080 of other addresses.
func (l *lab) addFlows(n int, to uint16) {
	l.t.Helper()
	must(l.t, l.node.Do(func() error {
		conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
		if err != nil {
			return err
		}
		defer func() { _ = conn.Close() }() // nothing is left to be said
		for first := 0; first < n; first += sendTogether {
			var requests []netlink.Message
			for i := first; i < min(first+sendTogether, n); i++ {
				requests = append(requests, newFlow(uint32(i), to))
			}
			// One that fails says so; of the others only the last answers.
			requests[len(requests)-1].Header.Flags |= netlink.Acknowledge
			if _, err := conn.SendMessages(requests); err != nil {
				return err
			}
			if _, err := conn.Receive(); err != nil {
				return err
			}
		}
		return nil
	}))
}

func addrOf(h *netlab.Host, f ipfamily.Family) netip.Addr {
	if f == ipfamily.IPv4 {
		return h.IPv4
	}
	return h.IPv6
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// newFlow is the request for the i-th flow.
func newFlow(i uint32, to uint16) netlink.Message {
	client := netip.AddrFrom4([4]byte{100, byte(i >> 16), byte(i >> 8), byte(i)})
	tuple := func(src, dst netip.Addr, srcPort, dstPort uint16) func(*netlink.AttributeEncoder) error {
		return func(ae *netlink.AttributeEncoder) error {
			ae.Nested(ctaTupleIP, func(ae *netlink.AttributeEncoder) error {
				ae.Bytes(ctaIPv4Src, src.AsSlice())
				ae.Bytes(ctaIPv4Dst, dst.AsSlice())
				return nil
			})
			ae.Nested(ctaTupleProto, func(ae *netlink.AttributeEncoder) error {
				ae.Uint8(ctaProtoNum, uint8(service.UDP))
				ae.Bytes(ctaProtoSrcPort, binary.BigEndian.AppendUint16(nil, srcPort))
				ae.Bytes(ctaProtoDstPort, binary.BigEndian.AppendUint16(nil, dstPort))
				return nil
			})
			return nil
		}
	}
	other, backend := netip.MustParseAddr("192.0.2.53"), netip.MustParseAddr("10.244.9.9")
	ae := netlink.NewAttributeEncoder()
	ae.Nested(ctaTupleOrig, tuple(client, other, 1024, to))
	ae.Nested(ctaTupleReply, tuple(backend, client, 8080, 1024))
	ae.Bytes(ctaTimeout, binary.BigEndian.AppendUint32(nil, 3600))
	data, err := ae.Encode()
	if err != nil {
		panic(err) // of this test alone
	}
	return netlink.Message{
		Header: netlink.Header{Type: ctType(msgNew), Flags: netlink.Request | netlink.Create | netlink.Excl},
		Data:   append(header(ipfamily.IPv4), data...),
	}
}

const (
	msgNew     = 0
	ctaTimeout = 7
)
