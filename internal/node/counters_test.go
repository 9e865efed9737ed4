package node

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/go-logr/logr"
	"github.com/go-logr/logr/funcr"
	"github.com/prometheus/client_golang/prometheus/testutil"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"fairlead.dev/fairlead/internal/dataplane"
	"fairlead.dev/fairlead/internal/service"
)

// TestCounters: what was counted at all addresses of a Service port is one figure, and
// what no Service has any more is left out.
func TestCounters(t *testing.T) {
	st := service.NewStore("node1")
	st.SetService(&corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"},
		Spec: corev1.ServiceSpec{
			ClusterIP: "10.0.0.1", ExternalIPs: []string{"192.0.2.9"},
			Ports: []corev1.ServicePort{{Port: 80, NodePort: 30080, Protocol: corev1.ProtocolTCP}},
		},
	})
	st.SetNodePortAddrs(addrs("192.0.2.1"))
	program := dataplane.Compile(dataplane.Program{}, st.Snapshot())
	c := newCounters(logr.Discard())
	c.read = func() (map[dataplane.Frontend]dataplane.Count, error) {
		out := map[dataplane.Frontend]dataplane.Count{}
		for i, vip := range []string{"10.0.0.1:80", "192.0.2.9:80", "192.0.2.1:30080", "10.0.0.7:80", "192.0.2.2:30080"} {
			out[dataplane.FrontendOf(netip.MustParseAddrPort(vip), service.TCP)] = dataplane.Count{Connections: 1 << i, Packets: 10 << i, Bytes: 100 << i}
		}
		return out, nil
	}
	if n := testutil.CollectAndCount(c); n != 0 {
		t.Errorf("%d figures before the first write", n)
	}
	c.program.Store(&program)
	want := `
# HELP fairlead_dataplane_service_connections_total Connections that were begun to a Service port at any of its addresses.
# TYPE fairlead_dataplane_service_connections_total counter
fairlead_dataplane_service_connections_total{namespace="shop",port="80",protocol="TCP",service="web"} 7
# HELP fairlead_dataplane_service_packets_total Packets that clients sent to a Service port.
# TYPE fairlead_dataplane_service_packets_total counter
fairlead_dataplane_service_packets_total{namespace="shop",port="80",protocol="TCP",service="web"} 70
`
	if err := testutil.CollectAndCompare(c, strings.NewReader(want), "fairlead_dataplane_service_connections_total", "fairlead_dataplane_service_packets_total"); err != nil {
		t.Error(err)
	}
}

// TestCountersThatCannotBeRead: it is said once for each reason, however often somebody
// asks.
func TestCountersThatCannotBeRead(t *testing.T) {
	var said []string
	c := newCounters(funcr.New(func(_, line string) { said = append(said, line) }, funcr.Options{}))
	c.program.Store(&dataplane.Program{})
	var fails error
	c.read = func() (map[dataplane.Frontend]dataplane.Count, error) { return nil, fails }
	for _, fails = range []error{errors.New("torn"), errors.New("torn"), errors.New("away"), nil, nil, errors.New("torn")} {
		testutil.CollectAndCount(c)
	}
	want := []string{"torn", "away", "works again", "torn"}
	for i, line := range said {
		if i >= len(want) || !strings.Contains(line, want[i]) {
			t.Fatalf("said %q, want %q", said, want)
		}
	}
	if len(said) != len(want) {
		t.Errorf("said %q, want %q", said, want)
	}
}
