// Package cluster is a control plane on the LAN of a netlab, and the binary that a real
// cluster runs as processes on its nodes: a real API server, a real kernel. Tests of
// the whole system and benchmarks stand on it.
package cluster

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

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/envtest"

	"fairlead.dev/fairlead/test/netlab"
)

const (
	// Timeout bounds every wait.
	Timeout = 30 * time.Second

	// poll is between two looks at a condition that nothing announces.
	poll = 10 * time.Millisecond
)

// Cluster is a control plane on the LAN of a lab, and the binary under test.
type Cluster struct {
	Lab        *netlab.Lab
	Config     *rest.Config // an administrator's
	Client     kubernetes.Interface
	Kubeconfig string // path of an administrator's
	Binary     string // path

	plane *plane
}

// InstallCRDs installs ours for the length of the test.
func (c *Cluster) InstallCRDs(t testing.TB) {
	t.Helper()
	options := envtest.CRDInstallOptions{
		Paths: []string{filepath.Join("..", "..", "config", "crd", "bases")}, ErrorIfPathMissing: true,
	}
	_, err := envtest.InstallCRDs(c.Config, options)
	must(t, err)
	t.Cleanup(func() { must(t, envtest.UninstallCRDs(c.Config, options)) })
}

// KubeconfigOf returns the path of a kubeconfig of a user, who may do what RBAC says.
func (c *Cluster) KubeconfigOf(t testing.TB, u envtest.User) string {
	t.Helper()
	user, err := c.plane.env.AddUser(u, c.Config)
	must(t, err)
	raw, err := user.KubeConfig()
	must(t, err)
	return Write(t, "kubeconfig", string(raw))
}

// Write writes a file for the length of the test and returns its path.
func Write(t testing.TB, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	must(t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

// Process is a running fairlead or kube-proxy.
type Process struct {
	Output fmt.Stringer // what it said so far

	t   testing.TB
	cmd *exec.Cmd

	ended chan struct{}
	err   error // of Wait, once ended is closed
}

// Start runs fairlead on a host. It is killed at the end of the test.
func (c *Cluster) Start(t testing.TB, host *netlab.Host, args ...string) *Process {
	t.Helper()
	return start(t, host, exec.Command(c.Binary, args...))
}

func start(t testing.TB, host *netlab.Host, cmd *exec.Cmd) *Process {
	t.Helper()
	output := &buffer{}
	p := &Process{t: t, cmd: cmd, Output: output, ended: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = output, output
	p.cmd.Env = append(os.Environ(), "NODE_NAME=")
	must(t, host.Start(p.cmd))
	go func() {
		p.err = p.cmd.Wait()
		close(p.ended)
	}()
	t.Cleanup(func() {
		p.Stop(syscall.SIGKILL)
		if t.Failed() {
			t.Logf("%s said:\n%s", strings.Join(cmd.Args, " "), p.Output)
		}
	})
	return p
}

// Stop sends the signal and waits for the end.
func (p *Process) Stop(signal syscall.Signal) {
	if err := p.cmd.Process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
		p.t.Error(err)
	}
	p.Wait()
}

// Wait waits for the end and returns the exit code.
func (p *Process) Wait() int {
	p.t.Helper()
	select {
	case <-p.ended:
	case <-time.After(Timeout):
		p.t.Fatalf("still running; said:\n%s", p.Output)
	}
	return p.cmd.ProcessState.ExitCode()
}

// Says waits until the output has text.
func (p *Process) Says(text string) {
	p.t.Helper()
	Eventually(p.t, func() error {
		if !strings.Contains(p.Output.String(), text) {
			return fmt.Errorf("output has no %q:\n%s", text, p.Output)
		}
		return nil
	})
}

// buffer is a bytes.Buffer for a process that writes and a test that reads. It has none
// of its other methods: io.Copy would go past the lock with ReadFrom.
type buffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// Eventually calls check until it returns nil.
func Eventually(t testing.TB, check func() error) {
	t.Helper()
	tick := time.NewTicker(poll)
	defer tick.Stop()
	deadline := time.After(Timeout)
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("after %s: %v", Timeout, err)
		}
	}
}

// AddNode adds a node to the lab, and its Node object.
func (c *Cluster) AddNode(t testing.TB, name string) *netlab.Node {
	t.Helper()
	n, err := c.Lab.AddNode(name)
	must(t, err)
	obj, err := c.Client.CoreV1().Nodes().Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
	must(t, err)
	for _, ip := range []string{n.IPv4.String(), n.IPv6.String()} {
		obj.Status.Addresses = append(obj.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: ip})
	}
	_, err = c.Client.CoreV1().Nodes().UpdateStatus(t.Context(), obj, metav1.UpdateOptions{})
	must(t, err)
	return n
}

// AddService creates a Service of type NodePort on port 80 with one slice that leads to
// port 8080 of addrs, and returns its ClusterIP and node port.
func (c *Cluster) AddService(t testing.TB, name string, addrs ...string) (clusterIP string, nodePort int32) {
	t.Helper()
	svc, err := c.Client.CoreV1().Services("default").Create(t.Context(), &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeNodePort, Ports: []corev1.ServicePort{{Port: 80}}},
	}, metav1.CreateOptions{})
	must(t, err)
	_, err = c.Client.DiscoveryV1().EndpointSlices("default").Create(t.Context(), Slice(name, addrs), metav1.CreateOptions{})
	must(t, err)
	return svc.Spec.ClusterIP, svc.Spec.Ports[0].NodePort
}

// Slice is the one slice of a Service made by AddService.
func Slice(service string, addrs []string) *discoveryv1.EndpointSlice {
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

// NFT runs nft on a host and returns what it prints.
func NFT(t testing.TB, h *netlab.Host, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), Timeout)
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

// PID returns the process id, in the world's own count.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Running says whether it has not ended.
func (p *Process) Running() bool {
	select {
	case <-p.ended:
		return false
	default:
		return true
	}
}
