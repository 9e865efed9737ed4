package bench_test

import (
	"fmt"
	"net/netip"
	"testing"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"fairlead.dev/fairlead/test/cluster"
)

// writers is how many requests to the API server are under way at a time.
const writers = 16

// size is how much there is in the cluster.
type size struct{ services, endpoints int }

func (s size) String() string { return fmt.Sprintf("%dx%d", s.services, s.endpoints) }

// api returns a client that speaks protobuf: what it costs is not what is measured.
func api(b testing.TB, c *cluster.Cluster) kubernetes.Interface {
	b.Helper()
	config := rest.CopyConfig(c.Config)
	config.ContentType = "application/vnd.kubernetes.protobuf"
	client, err := kubernetes.NewForConfig(config)
	must(b, err)
	return client
}

// address is endpoint e of Service i; there are up to 99 of 50,000.
func address(i, e int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, byte(128 + e), byte(i / 250), byte(i%250 + 1)})
}

// fresh is the i-th of many addresses that no endpoint has.
func fresh(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{100, byte(64 + i>>16&63), byte(i >> 8), byte(i)})
}

func (s size) slice(i int) *discoveryv1.EndpointSlice {
	var addrs []string
	for e := range s.endpoints {
		addrs = append(addrs, address(i, e).String())
	}
	slice := cluster.Slice(fmt.Sprint("s", i), addrs)
	for e := range slice.Endpoints {
		slice.Endpoints[e].NodeName = new("elsewhere") // as controllers write it
	}
	return slice
}

// changed is slice i with one endpoint replaced.
func (s size) changed(i, change int) (*discoveryv1.EndpointSlice, netip.Addr) {
	slice, addr := s.slice(i), fresh(change)
	slice.Endpoints[change%s.endpoints].Addresses = []string{addr.String()}
	return slice, addr
}

// fill creates the Services with a slice each.
func (s size) fill(b testing.TB, client kubernetes.Interface) {
	b.Helper()
	group, ctx := errgroup.WithContext(b.Context())
	group.SetLimit(writers)
	for i := range s.services {
		group.Go(func() error {
			_, err := client.CoreV1().Services("default").Create(ctx, &corev1.Service{
				ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("s", i)},
				Spec:       corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80}}},
			}, metav1.CreateOptions{})
			if err != nil {
				return err
			}
			_, err = client.DiscoveryV1().EndpointSlices("default").Create(ctx, s.slice(i), metav1.CreateOptions{})
			return err
		})
	}
	must(b, group.Wait())
}
