package cluster

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"github.com/go-logr/logr"
	"github.com/vishvananda/netlink"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"fairlead.dev/fairlead/test/netlab"
)

// built is where `make control-plane` puts what it makes.
var built = filepath.Join("..", "..", "bin", "controlplane")

// assets is the directory of the control plane's binaries.
func assets() string {
	if dir := os.Getenv("KUBEBUILDER_ASSETS"); dir != "" {
		return dir
	}
	return built
}

// common is what the tests of a package have in common, since it takes seconds to make:
// the binary, and the control plane of Share. Main takes it away.
var common struct {
	mu     sync.Mutex
	dir    string // of the binary, empty before it is built
	plane  *plane
	failed error // starting it
}

// Main runs m inside a world of its own; it is all of a TestMain.
func Main(m *testing.M) {
	log.SetLogger(logr.Discard()) // of envtest; failures carry their own words
	err := netlab.Enter()
	if err == nil {
		code := m.Run()
		if err = tidy(); err == nil {
			os.Exit(code)
		}
	}
	fmt.Fprintln(os.Stderr, "cluster:", err)
	os.Exit(1)
}

// tidy takes away what the tests had in common.
func tidy() error {
	var err error
	if common.plane != nil {
		err = common.plane.stop()
	}
	if common.dir != "" {
		err = errors.Join(err, os.RemoveAll(common.dir))
	}
	return err
}

// Build returns the binary under test, built from this tree.
func Build(t testing.TB) string {
	t.Helper()
	common.mu.Lock()
	defer common.mu.Unlock()
	path := func() string { return filepath.Join(common.dir, "fairlead") }
	if common.dir != "" {
		return path()
	}
	var err error
	common.dir, err = os.MkdirTemp("", "fairlead-") //nolint:usetesting // it outlives the test
	must(t, err)
	cmd := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-o", path(), "fairlead.dev/fairlead")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building fairlead: %v\n%s", err, out)
	}
	return path()
}

// New starts a control plane of the test's own. It goes at the end of the test.
func New(t testing.TB) *Cluster {
	t.Helper()
	lab := newLab(t)
	p, err := startPlane(lab.Gateway().IPv4.String())
	must(t, err)
	t.Cleanup(func() { must(t, p.stop()) })
	return p.cluster(t, lab)
}

// Share is New with the control plane that the tests of the package share. They get it
// one after the other, each as if it were new: what the API has of kinds that tests make
// goes at the end of the test.
func Share(t testing.TB) *Cluster {
	t.Helper()
	lab := newLab(t)
	common.mu.Lock()
	if common.plane == nil && common.failed == nil {
		address := lab.Gateway().IPv4
		if common.failed = keep(address); common.failed == nil {
			common.plane, common.failed = startPlane(address.String())
		}
	}
	p, err := common.plane, common.failed
	common.mu.Unlock()
	must(t, err)
	c := p.cluster(t, lab)
	t.Cleanup(func() { must(t, c.clear()) })
	return c
}

func newLab(t testing.TB) *netlab.Lab {
	t.Helper()
	lab, err := netlab.New()
	must(t, err)
	t.Cleanup(func() { must(t, lab.Close()) })
	return lab
}

// keep gives the address to lo as well, where it stays between one lab and the next, and
// with it the connections of the API server.
func keep(address netip.Addr) error {
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.AddrAdd(lo, &netlink.Addr{IPNet: netlink.NewIPNet(address.AsSlice())})
	}
	if err != nil {
		return fmt.Errorf("adding address %s to lo: %w", address, err)
	}
	return nil
}

// plane is a control plane.
type plane struct {
	env    *envtest.Environment
	config *rest.Config
	dir    string // of the API server's certificates
}

// startPlane starts one whose API server listens at address.
func startPlane(address string) (*plane, error) {
	dir, err := os.MkdirTemp("", "apiserver-")
	if err != nil {
		return nil, err
	}
	p := &plane{env: &envtest.Environment{BinaryAssetsDirectory: assets()}, dir: dir}
	server := p.env.ControlPlane.GetAPIServer()
	server.Address, server.Port = address, "6443"
	server.CertDir = dir // in one of envtest's own it would not be the same after a stop
	server.Configure().Set("service-cluster-ip-range", "10.96.0.0/16,fd00:10:96::/112")
	p.env.ControlPlane.Etcd = &envtest.Etcd{}
	p.env.ControlPlane.Etcd.Configure().Append("unsafe-no-fsync")
	if p.config, err = p.env.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("starting a control plane: %w", err), os.RemoveAll(dir))
	}
	p.config.QPS = -1
	return p, nil
}

func (p *plane) stop() error { return errors.Join(p.env.Stop(), os.RemoveAll(p.dir)) }

// cluster returns the Cluster of a test.
func (p *plane) cluster(t testing.TB, lab *netlab.Lab) *Cluster {
	t.Helper()
	client, err := kubernetes.NewForConfig(p.config)
	must(t, err)
	c := &Cluster{Lab: lab, Config: p.config, Client: client, Binary: Build(t), plane: p}
	c.Kubeconfig = c.KubeconfigOf(t, envtest.User{Name: "e2e", Groups: []string{"system:masters"}})
	return c
}

// StopAPIServer stops the API server; etcd goes on.
func (c *Cluster) StopAPIServer(t testing.TB) {
	t.Helper()
	must(t, c.plane.env.ControlPlane.GetAPIServer().Stop())
}

// StartAPIServer starts the API server again and waits until it is healthy.
func (c *Cluster) StartAPIServer(t testing.TB) {
	t.Helper()
	must(t, c.plane.env.ControlPlane.GetAPIServer().Start())
}

// clear deletes everything of the kinds that most tests make, but for what the API server
// itself makes.
func (c *Cluster) clear() error {
	ctx, cancel := context.WithTimeout(context.Background(), Timeout)
	defer cancel()
	all := metav1.ListOptions{}
	others := metav1.ListOptions{FieldSelector: "metadata.name!=kubernetes"}
	now := metav1.DeleteOptions{GracePeriodSeconds: new(int64)}
	const namespace = metav1.NamespaceDefault
	if err := c.letGo(ctx, namespace); err != nil {
		return err
	}
	return errors.Join(
		// The generated client lacks it.
		c.Client.CoreV1().RESTClient().Delete().Namespace(namespace).Resource("services").
			VersionedParams(&others, scheme.ParameterCodec).Body(&now).Do(ctx).Error(),
		c.Client.DiscoveryV1().EndpointSlices(namespace).DeleteCollection(ctx, now, others),
		c.Client.CoreV1().Pods(namespace).DeleteCollection(ctx, now, all),
		c.Client.CoreV1().Nodes().DeleteCollection(ctx, now, all),
		c.Client.CoreV1().Events(namespace).DeleteCollection(ctx, now, all),
	)
}

// letGo takes the finalizers off all Services: who set them does not run any more.
func (c *Cluster) letGo(ctx context.Context, namespace string) error {
	services := c.Client.CoreV1().Services(namespace)
	list, err := services.List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for i := range list.Items {
		if svc := &list.Items[i]; len(svc.Finalizers) > 0 {
			svc.Finalizers = nil
			if _, err := services.Update(ctx, svc, metav1.UpdateOptions{}); err != nil {
				return err
			}
		}
	}
	return nil
}
