package e2e_test

import (
	"fmt"
	"syscall"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	fairleadv1alpha1 "fairlead.dev/fairlead/api/v1alpha1"
	"fairlead.dev/fairlead/test/cluster"
)

// TestController runs `fairlead controller` without a configuration file: endpoints, an
// address out of a pool, kept over a restart.
func TestController(t *testing.T) {
	c := cluster.Share(t)
	c.AddNode(t, "node1")
	addPod(t, c, "web-1", "10.244.1.2")
	svc := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "web"},
		Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer, Selector: map[string]string{"app": "web"},
			Ports: []corev1.ServicePort{{Port: 80}}},
	}
	_, err := c.Client.CoreV1().Services("default").Create(t.Context(), svc, metav1.CreateOptions{})
	must(t, err)

	host := c.Lab.Gateway()
	run := func() *cluster.Process { return c.Start(t, host, "controller", "--kubeconfig", c.Kubeconfig) }
	controller := run()
	// Endpoints do not wait for the CRD of the pools.
	cluster.Eventually(t, func() error {
		slices, err := c.Client.DiscoveryV1().EndpointSlices("default").List(t.Context(), metav1.ListOptions{
			LabelSelector: discoveryv1.LabelServiceName + "=web",
		})
		if err != nil {
			return err
		}
		if len(slices.Items) != 1 || len(slices.Items[0].Endpoints) != 1 || slices.Items[0].Endpoints[0].Addresses[0] != "10.244.1.2" {
			return fmt.Errorf("slices %+v", slices)
		}
		return nil
	})
	controller.Says("CRD addresspools.fairlead.dev is not installed")
	c.InstallCRDs(t)
	pools := poolClient(t, c)
	must(t, pools.Create(t.Context(), &fairleadv1alpha1.AddressPool{
		ObjectMeta: metav1.ObjectMeta{Name: "lan"},
		Spec:       fairleadv1alpha1.AddressPoolSpec{Addresses: []fairleadv1alpha1.AddressRange{"172.18.0.200-172.18.0.210"}},
	}))
	wantIngress(t, c, "web", "172.18.0.200")

	second := run()
	if code := second.Wait(); code != 1 {
		t.Errorf("a second one on the same ports exits with %d, want 1", code)
	}
	second.Says("bindAddress")
	second.Says("address already in use")

	controller.Stop(syscall.SIGTERM)
	if code := controller.Wait(); code != 0 {
		t.Errorf("exit code %d after SIGTERM, want 0", code)
	}
	// One that comes first in time, and in the order of names, must not get it now.
	other := svc.DeepCopy()
	other.Name = "another"
	_, err = c.Client.CoreV1().Services("default").Create(t.Context(), other, metav1.CreateOptions{})
	must(t, err)
	run()
	wantIngress(t, c, "another", "172.18.0.201")
	wantIngress(t, c, "web", "172.18.0.200")
}

func wantIngress(t *testing.T, c *cluster.Cluster, name, want string) {
	t.Helper()
	cluster.Eventually(t, func() error {
		svc, err := c.Client.CoreV1().Services("default").Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if len(svc.Status.LoadBalancer.Ingress) != 1 || svc.Status.LoadBalancer.Ingress[0].IP != want {
			return fmt.Errorf("status %+v, want ingress %s", svc.Status, want)
		}
		return nil
	})
}

func poolClient(t *testing.T, c *cluster.Cluster) client.Client {
	t.Helper()
	scheme := runtime.NewScheme()
	must(t, fairleadv1alpha1.AddToScheme(scheme))
	out, err := client.New(c.Config, client.Options{Scheme: scheme})
	must(t, err)
	return out
}

// addPod adds a ready pod with label app=web on node1, as the kubelet would report it.
func addPod(t *testing.T, c *cluster.Cluster, name, ip string) {
	t.Helper()
	pods := c.Client.CoreV1().Pods("default")
	pod, err := pods.Create(t.Context(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": "web"}},
		Spec:       corev1.PodSpec{NodeName: "node1", Containers: []corev1.Container{{Name: "web", Image: "web"}}},
	}, metav1.CreateOptions{})
	must(t, err)
	pod.Status = corev1.PodStatus{
		Phase: corev1.PodRunning, PodIP: ip, PodIPs: []corev1.PodIP{{IP: ip}},
		Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}},
	}
	_, err = pods.UpdateStatus(t.Context(), pod, metav1.UpdateOptions{})
	must(t, err)
}
