package dataplane_test

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"fairlead.dev/fairlead/internal/dataplane"
	"fairlead.dev/fairlead/internal/service"
	"fairlead.dev/fairlead/test/netlab"
)

// testTimeout bounds every wait for a packet or the kernel.
const testTimeout = 10 * time.Second

var podCIDRs = []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:10:244::/48")}

// svc describes a Service and its endpoints in few words.
type svc struct {
	name             string
	clusterIPs       []string
	lbIPs, externals []string
	port, target     int32
	nodePort         int32
	endpoints        []string // addresses, all ready
	protocols        []corev1.Protocol
	age              time.Duration
	terminating      []string
	notReady         []string
	edit             []func(*corev1.Service)            // what else it says
	editSlices       []func(*discoveryv1.EndpointSlice) // and its slices
}

// with returns s with more that it says.
func (s svc) with(edit ...func(*corev1.Service)) svc {
	s.edit = append(slices.Clip(s.edit), edit...)
	return s
}

// nodeOf returns the node that an address of the lab is on, nil for others.
func nodeOf(a string) *string {
	for i := range 9 {
		for _, prefix := range []string{"10.244.%d.", "fd00:10:244:%d:"} {
			if strings.HasPrefix(a, fmt.Sprintf(prefix, i)) {
				return new(fmt.Sprintf("node%d", i))
			}
		}
		if a == fmt.Sprintf("172.18.0.%d", 10+i) || a == fmt.Sprintf("fd00:172:18::%d", 10+i) {
			return new(fmt.Sprintf("node%d", i))
		}
	}
	return nil
}

// add puts s into the store as the API would deliver it.
func (s svc) add(st *service.Store) {
	protocols := s.protocols
	if protocols == nil {
		protocols = []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP}
	}
	obj := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: s.name, CreationTimestamp: metav1.Unix(1e9-int64(s.age.Seconds()), 0)},
		Spec:       corev1.ServiceSpec{ClusterIP: s.clusterIPs[0], ClusterIPs: s.clusterIPs, ExternalIPs: s.externals},
	}
	for _, ip := range s.lbIPs {
		obj.Status.LoadBalancer.Ingress = append(obj.Status.LoadBalancer.Ingress, corev1.LoadBalancerIngress{IP: ip})
	}
	for _, p := range protocols {
		obj.Spec.Ports = append(obj.Spec.Ports, corev1.ServicePort{Name: string(p), Protocol: p, Port: s.port, NodePort: s.nodePort})
	}
	for _, edit := range s.edit {
		edit(obj)
	}
	st.SetService(obj)
	for i, kind := range []discoveryv1.AddressType{discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6} {
		slice := &discoveryv1.EndpointSlice{
			ObjectMeta: metav1.ObjectMeta{
				Namespace: "default", Name: fmt.Sprintf("%s-%d", s.name, i),
				Labels: map[string]string{discoveryv1.LabelServiceName: s.name},
			},
			AddressType: kind,
		}
		for _, p := range protocols {
			slice.Ports = append(slice.Ports, discoveryv1.EndpointPort{Name: new(string(p)), Protocol: &p, Port: new(s.target)})
		}
		add := func(addrs []string, c discoveryv1.EndpointConditions) {
			for _, a := range addrs {
				if netip.MustParseAddr(a).Is4() == (kind == discoveryv1.AddressTypeIPv4) {
					slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{Addresses: []string{a}, NodeName: nodeOf(a), Conditions: c})
				}
			}
		}
		add(s.endpoints, discoveryv1.EndpointConditions{})
		add(s.notReady, discoveryv1.EndpointConditions{Ready: new(false), Serving: new(false)})
		add(s.terminating, discoveryv1.EndpointConditions{Ready: new(false), Serving: new(true), Terminating: new(true)})
		for _, edit := range s.editSlices {
			edit(slice)
		}
		st.SetSlice(slice)
	}
}

// snapshot returns the Snapshot of the services on a node with the addresses.
func snapshot(nodeAddrs []netip.Addr, services ...svc) *service.Snapshot {
	return surroundings{node: "node1", nodePortAddrs: nodeAddrs, podCIDRs: podCIDRs}.of(services...)
}

// surroundings are what a node knows of beside Services.
type surroundings struct {
	node, zone               string
	nodePortAddrs, nodeAddrs []netip.Addr
	podCIDRs, serviceCIDRs   []netip.Prefix
}

// of returns the Snapshot of the services there.
func (e surroundings) of(services ...svc) *service.Snapshot {
	st := service.NewStore(e.node)
	for _, s := range services {
		s.add(st)
	}
	st.SetZone(e.zone)
	st.SetNodePortAddrs(e.nodePortAddrs)
	st.SetNodeAddrs(e.nodeAddrs)
	st.SetPodCIDRs(e.podCIDRs)
	st.SetServiceCIDRs(e.serviceCIDRs)
	return st.Snapshot()
}

// world is a cluster of two nodes with one client outside.
type world struct {
	lab    *netlab.Lab
	nodes  []*netlab.Node
	client *netlab.Host
}

func newWorld(t testing.TB, nodes int) *world {
	t.Helper()
	lab, err := netlab.New()
	must(t, err)
	t.Cleanup(func() { must(t, lab.Close()) })
	w := &world{lab: lab}
	for i := range nodes {
		n, err := lab.AddNode(fmt.Sprintf("node%d", i+1))
		must(t, err)
		w.nodes = append(w.nodes, n)
	}
	w.client, err = lab.AddClient("client")
	must(t, err)
	return w
}

// pod adds a pod that answers on port 8080.
func (w *world) pod(t testing.TB, node int, name string) *netlab.Host {
	t.Helper()
	pod, err := w.nodes[node].AddPod(name)
	must(t, err)
	echo, err := netlab.StartEcho(pod, name, 8080)
	must(t, err)
	t.Cleanup(func() { must(t, echo.Close()) })
	return pod
}

// on returns a sink for a node's rules; its socket is opened in the node's namespace.
// The configuration is the usual one where none is given.
func (w *world) on(t testing.TB, node int, cfg ...dataplane.Config) *nodeSink {
	return &nodeSink{t: t, node: w.nodes[node], Sink: dataplane.NewSink(append(cfg, byCIDRs)[0])}
}

type nodeSink struct {
	t    testing.TB
	node *netlab.Node
	*dataplane.Sink
}

func (s *nodeSink) apply(snap *service.Snapshot) dataplane.Written {
	s.t.Helper()
	must(s.t, s.node.Do(func() error { return s.Apply(s.t.Context(), snap) }))
	return s.Last()
}

func (s *nodeSink) check() dataplane.Written {
	s.t.Helper()
	must(s.t, s.node.Do(func() error { return s.Check(s.t.Context()) }))
	return s.Last()
}

// nft runs the nft command on the node.
func (s *nodeSink) nft(args ...string) string {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), testTimeout)
	defer cancel()
	out, err := s.node.Output(ctx, "nft", args...)
	if err != nil {
		s.t.Fatalf("nft %v: %v\n%s", args, err, out)
	}
	return string(out)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
