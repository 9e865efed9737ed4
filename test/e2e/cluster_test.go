// Package e2e runs the binary that a real cluster runs, as processes in network
// namespaces of their own, against a real API server and a real kernel.
package e2e_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"fairlead.dev/fairlead/test/netlab"
)

// testTimeout bounds every wait; poll is between two looks at a condition that nothing
// announces.
const (
	testTimeout = 30 * time.Second
	poll        = 10 * time.Millisecond
)

func TestMain(m *testing.M) {
	log.SetLogger(logr.Discard()) // of envtest; failures carry their own words
	netlab.Main(m)
}

// cluster is a control plane on the LAN of a lab, and the binary under test.
type cluster struct {
	lab        *netlab.Lab
	env        *envtest.Environment
	client     kubernetes.Interface
	kubeconfig string
	binary     string
}

func newCluster(t testing.TB) *cluster {
	t.Helper()
	lab, err := netlab.New()
	must(t, err)
	t.Cleanup(func() { must(t, lab.Close()) })
	c := &cluster{lab: lab, binary: build(t)}
	assets := os.Getenv("KUBEBUILDER_ASSETS")
	if assets == "" {
		assets = filepath.Join("..", "..", "bin", "controlplane") // made by `make control-plane`
	}
	c.env = &envtest.Environment{
		BinaryAssetsDirectory: assets,
		CRDDirectoryPaths:     []string{filepath.Join("..", "..", "config", "crd", "bases")},
	}
	server := c.env.ControlPlane.GetAPIServer()
	server.Address, server.Port = lab.Gateway().IPv4.String(), "6443"
	server.Configure().Set("service-cluster-ip-range", "10.96.0.0/16,fd00:10:96::/112")
	c.env.ControlPlane.Etcd = &envtest.Etcd{}
	c.env.ControlPlane.Etcd.Configure().Append("unsafe-no-fsync")
	config, err := c.env.Start()
	must(t, err)
	t.Cleanup(func() { must(t, c.env.Stop()) })
	config.QPS = -1
	c.client, err = kubernetes.NewForConfig(config)
	must(t, err)
	user, err := c.env.AddUser(envtest.User{Name: "e2e", Groups: []string{"system:masters"}}, config)
	must(t, err)
	raw, err := user.KubeConfig()
	must(t, err)
	c.kubeconfig = write(t, "kubeconfig", string(raw))
	return c
}

// build returns the binary under test, built from this tree.
func build(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "fairlead")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-o", path, "fairlead.dev/fairlead")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building fairlead: %v\n%s", err, out)
	}
	return path
}

func write(t testing.TB, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	must(t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

// process is a running fairlead.
type process struct {
	t      testing.TB
	cmd    *exec.Cmd
	output *buffer
	ended  chan struct{}
	err    error // of Wait, once ended is closed
}

// start runs fairlead on a host. It is killed at the end of the test.
func (c *cluster) start(t testing.TB, host *netlab.Host, args ...string) *process {
	t.Helper()
	p := &process{t: t, cmd: exec.Command(c.binary, args...), output: &buffer{}, ended: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = p.output, p.output
	p.cmd.Env = append(os.Environ(), "NODE_NAME=")
	must(t, host.Start(p.cmd))
	go func() {
		p.err = p.cmd.Wait()
		close(p.ended)
	}()
	t.Cleanup(func() {
		p.stop(syscall.SIGKILL)
		if t.Failed() {
			t.Logf("fairlead %s said:\n%s", strings.Join(args, " "), p.output)
		}
	})
	return p
}

func (p *process) stop(signal syscall.Signal) {
	if err := p.cmd.Process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
		p.t.Error(err)
	}
	p.wait()
}

// wait returns the exit code.
func (p *process) wait() int {
	p.t.Helper()
	select {
	case <-p.ended:
	case <-time.After(testTimeout):
		p.t.Fatalf("still running; said:\n%s", p.output)
	}
	return p.cmd.ProcessState.ExitCode()
}

// says waits until the output has text.
func (p *process) says(text string) {
	p.t.Helper()
	eventually(p.t, func() error {
		if !strings.Contains(p.output.String(), text) {
			return fmt.Errorf("output has no %q:\n%s", text, p.output)
		}
		return nil
	})
}

// buffer is a bytes.Buffer for a process that writes and a test that reads.
type buffer struct {
	mu sync.Mutex
	bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.String()
}

// eventually calls check until it returns nil.
func eventually(t testing.TB, check func() error) {
	t.Helper()
	tick := time.NewTicker(poll)
	defer tick.Stop()
	deadline := time.After(testTimeout)
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("after %s: %v", testTimeout, err)
		}
	}
}

// node adds a node to the lab, and its Node object.
func (c *cluster) node(t testing.TB, name string) *netlab.Node {
	t.Helper()
	n, err := c.lab.AddNode(name)
	must(t, err)
	obj, err := c.client.CoreV1().Nodes().Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
	must(t, err)
	for _, ip := range []string{n.IPv4.String(), n.IPv6.String()} {
		obj.Status.Addresses = append(obj.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: ip})
	}
	_, err = c.client.CoreV1().Nodes().UpdateStatus(t.Context(), obj, metav1.UpdateOptions{})
	must(t, err)
	return n
}

// service creates a Service of type NodePort on port 80 with one slice that leads to
// port 8080 of addrs, and returns its ClusterIP and node port.
func (c *cluster) service(t testing.TB, name string, addrs ...string) (clusterIP string, nodePort int32) {
	t.Helper()
	svc, err := c.client.CoreV1().Services("default").Create(t.Context(), &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeNodePort, Ports: []corev1.ServicePort{{Port: 80}}},
	}, metav1.CreateOptions{})
	must(t, err)
	_, err = c.client.DiscoveryV1().EndpointSlices("default").Create(t.Context(), slice(name, addrs), metav1.CreateOptions{})
	must(t, err)
	return svc.Spec.ClusterIP, svc.Spec.Ports[0].NodePort
}

func slice(service string, addrs []string) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: service + "-1", Namespace: "default", Labels: map[string]string{discoveryv1.LabelServiceName: service}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: new(""), Port: new(int32(8080)), Protocol: new(corev1.ProtocolTCP)}},
	}
	for _, a := range addrs {
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{a}, Conditions: discoveryv1.EndpointConditions{Ready: new(true)}})
	}
	return s
}

// nft runs nft on a host.
func nft(t testing.TB, h *netlab.Host, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	out, err := h.Output(ctx, "nft", args...)
	if err != nil {
		t.Fatalf("nft %v: %v\n%s", args, err, out)
	}
	return string(out)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
