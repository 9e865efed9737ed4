package e2e_test

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
	"sigs.k8s.io/yaml"

	"fairlead.dev/fairlead/test/cluster"
	"fairlead.dev/fairlead/test/netlab"
)

// nodeUser returns the kubeconfig of a user with the role that nodes are installed with,
// and no other.
func nodeUser(t *testing.T, c *cluster.Cluster) string {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("..", "..", "config", "rbac", "node_role.yaml"))
	must(t, err)
	role := &rbacv1.ClusterRole{}
	must(t, yaml.UnmarshalStrict(raw, role))
	_, err = c.Client.RbacV1().ClusterRoles().Create(t.Context(), role, metav1.CreateOptions{})
	must(t, err)
	_, err = c.Client.RbacV1().ClusterRoleBindings().Create(t.Context(), &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: role.Name},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role.Name},
		Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: "node"}},
	}, metav1.CreateOptions{})
	must(t, err)
	t.Cleanup(func() {
		ctx, cancel := timeout()
		defer cancel()
		must(t, c.Client.RbacV1().ClusterRoleBindings().Delete(ctx, role.Name, metav1.DeleteOptions{}))
		must(t, c.Client.RbacV1().ClusterRoles().Delete(ctx, role.Name, metav1.DeleteOptions{}))
	})
	return c.KubeconfigOf(t, envtest.User{Name: "node"})
}

// addLocalService creates a Service of type LoadBalancer with externalTrafficPolicy
// Local and the health check port, whose endpoints are on node1.
func addLocalService(t *testing.T, c *cluster.Cluster, name string, port int32, addrs ...string) *corev1.Service {
	t.Helper()
	svc, err := c.Client.CoreV1().Services("default").Create(t.Context(), &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer, Ports: []corev1.ServicePort{{Port: 80}},
			ExternalTrafficPolicy: corev1.ServiceExternalTrafficPolicyLocal, HealthCheckNodePort: port},
	}, metav1.CreateOptions{})
	must(t, err)
	slice := cluster.Slice(name, addrs)
	for i := range slice.Endpoints {
		slice.Endpoints[i].NodeName = new("node1")
	}
	_, err = c.Client.DiscoveryV1().EndpointSlices("default").Create(t.Context(), slice, metav1.CreateOptions{})
	must(t, err)
	return svc
}

// saysHealth returns nil when the port tells so many endpoints with that status.
func saysHealth(t *testing.T, from *netlab.Host, at netip.AddrPort, status, endpoints int) error {
	out, err := from.Output(t.Context(), "curl", "-s", "-i", "-m", "2", fmt.Sprintf("http://%s/healthz", at))
	if err != nil {
		return fmt.Errorf("%s: %w: %s", at, err, out)
	}
	for _, want := range []string{
		fmt.Sprintf("HTTP/1.1 %d ", status), fmt.Sprintf("X-Load-Balancing-Endpoint-Weight: %d\r\n", endpoints),
		"X-Content-Type-Options: nosniff\r\n", "Content-Type: application/json\r\n",
		fmt.Sprintf(`{"service":{"namespace":"default","name":"local"},"localEndpoints":%d,"serviceProxyHealthy":true}`, endpoints),
	} {
		if !strings.Contains(string(out), want) {
			return fmt.Errorf("%s: no %q in %s", at, want, out)
		}
	}
	return nil
}

// TestHealthCheckNodePort: load balancers are told which nodes have endpoints, with
// nothing but the rights that a node is installed with.
func TestHealthCheckNodePort(t *testing.T) {
	const port = 32100
	c := cluster.Share(t)
	one, two := c.AddNode(t, "node1"), c.AddNode(t, "node2")
	balancer, err := c.Lab.AddClient("balancer")
	must(t, err)
	taken, err := two.Listen(t.Context(), "tcp", netip.AddrPortFrom(two.IPv4, port).String())
	must(t, err)
	t.Cleanup(func() { _ = taken.Close() }) // the test closes it

	svc := addLocalService(t, c, "local", port, "10.244.1.2", "10.244.1.3")
	kubeconfig := nodeUser(t, c)
	config := cluster.Write(t, "node.yaml", "apiVersion: config.fairlead.dev/v1alpha1\nkind: NodeConfiguration\nnodePortAddresses: [172.18.0.0/24]\n")
	c.Start(t, &one.Host, "node", "--kubeconfig", kubeconfig, "--node-name", "node1", "--config", config)
	agent := c.Start(t, &two.Host, "node", "--kubeconfig", kubeconfig, "--node-name", "node2")
	says := func(at netip.AddrPort, status, endpoints int) {
		t.Helper()
		cluster.Eventually(t, func() error { return saysHealth(t, balancer, at, status, endpoints) })
	}

	t.Run("a node with endpoints", func(_ *testing.T) { says(netip.AddrPortFrom(one.IPv4, port), 200, 2) })

	t.Run("a port that another process has", func(t *testing.T) {
		cluster.Eventually(t, func() error {
			return hasEvent(t, c, svc, "FailedToStartServiceHealthcheck", fmt.Sprintf(
				`node node2 failed to start healthcheck "default/local" on port %d: listen tcp %s:%d: bind: address already in use`, port, two.IPv4, port))
		})
		agent.Says("address already in use")
		says(netip.AddrPortFrom(two.IPv6, port), 503, 0) // it has the other family
		must(t, taken.Close())
		says(netip.AddrPortFrom(two.IPv4, port), 503, 0) // a node without endpoints
	})

	t.Run("an address that comes", func(t *testing.T) {
		extra := netip.MustParsePrefix("172.18.0.77/24")
		must(t, one.AddAddr(extra))
		says(netip.AddrPortFrom(extra.Addr(), port), 200, 2)
		must(t, one.DelAddr(extra))
		says(netip.AddrPortFrom(one.IPv4, port), 200, 2)
	})

	t.Run("a value that cannot be used", func(t *testing.T) {
		other := addLocalService(t, c, "other", port+1)
		other.Annotations = map[string]string{"fairlead.dev/scheduler": "least-connection"}
		_, err := c.Client.CoreV1().Services("default").Update(t.Context(), other, metav1.UpdateOptions{})
		must(t, err)
		for _, node := range []string{"node1", "node2"} {
			cluster.Eventually(t, func() error {
				return hasEvent(t, c, other, "InvalidValue",
					"node "+node+` serves this Service without what it cannot use: metadata.annotations[fairlead.dev/scheduler]: Invalid value: "least-connection"`)
			})
		}
	})

	t.Run("endpoints that go", func(t *testing.T) {
		_, err := c.Client.DiscoveryV1().EndpointSlices("default").Update(t.Context(), cluster.Slice("local", nil), metav1.UpdateOptions{})
		must(t, err)
		says(netip.AddrPortFrom(one.IPv4, port), 503, 0)
	})

	t.Run("a Service that goes", func(t *testing.T) {
		must(t, c.Client.CoreV1().Services("default").Delete(t.Context(), svc.Name, metav1.DeleteOptions{}))
		cluster.Eventually(t, func() error {
			if err := saysHealth(t, balancer, netip.AddrPortFrom(one.IPv4, port), 503, 0); err != nil && strings.Contains(err.Error(), "exit status 7") {
				return nil // curl's for a refused connection
			}
			return fmt.Errorf("%s still answers", net.JoinHostPort(one.IPv4.String(), fmt.Sprint(port)))
		})
	})

	t.Run("the metrics server answers as kube-proxy's", func(t *testing.T) {
		for path, want := range map[string]string{"proxyMode": "nftables", "healthz": "ok"} {
			out, err := one.Output(t.Context(), "curl", "-sf", "http://127.0.0.1:10249/"+path)
			if err != nil || string(out) != want {
				t.Errorf("/%s: %v, %q, want %q", path, err, out, want)
			}
		}
		out, err := one.Output(t.Context(), "curl", "-sf", "http://127.0.0.1:10256/healthz")
		var report struct {
			NodeEligible, Healthy bool
			Status                map[string]struct{ Healthy bool }
		}
		if err != nil || json.Unmarshal(out, &report) != nil || !report.Healthy || !report.NodeEligible || !report.Status["IPv4"].Healthy {
			t.Errorf("%v: %s", err, out)
		}
	})
}

// hasEvent returns nil when the Service has one event for the reason that begins with
// note, found by what kubectl describe looks for.
func hasEvent(t *testing.T, c *cluster.Cluster, svc *corev1.Service, reason, note string) error {
	events := c.Client.CoreV1().Events("default")
	list, err := events.List(t.Context(), metav1.ListOptions{
		FieldSelector: events.GetFieldSelector(&svc.Name, &svc.Namespace, new("Service"), new(string(svc.UID))).String()})
	if err != nil {
		return err
	}
	found := 0
	for _, e := range list.Items {
		if e.Reason == reason && e.Type == corev1.EventTypeWarning && e.ReportingController == "fairlead-node" && strings.HasPrefix(e.Message, note) {
			found++
		}
	}
	if found != 1 {
		return fmt.Errorf("%d of the events %+v are for reason %s and begin with %q, want one", found, list.Items, reason, note)
	}
	return nil
}
