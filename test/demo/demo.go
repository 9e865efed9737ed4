package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"fairlead.dev/fairlead/api/v1alpha1"
	"fairlead.dev/fairlead/test/netlab"
)

// demo is one run: a world, a control plane, fairlead, and what was seen of them.
type demo struct {
	opts   options
	bin    binaries
	dir    string // for everything that is written
	report *report
	clock  clock.WithTicker
	fail   context.CancelCauseFunc

	world  *world
	plane  *controlPlane
	procs  *processes
	api    client.WithWatch
	events *recorder

	manifests  manifests
	kubeconfig string // of an administrator
	services   []corev1.Service
	routes     []route
}

// run is the whole demo. It leaves nothing behind, whatever the error is.
func run(ctx context.Context, opts options, out io.Writer) (err error) {
	log.SetLogger(logr.Discard()) // fairlead's logs are those of its processes
	bin, err := findBinaries(opts)
	if err != nil {
		return err
	}
	m, err := readManifests(opts)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "fairlead-demo-")
	if err != nil {
		return fmt.Errorf("making a directory for keys and logs: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	ctx, cancel := context.WithCancelCause(ctx)
	c := clock.RealClock{}
	d := &demo{
		opts: opts, bin: bin, manifests: m, dir: dir, clock: c, fail: cancel,
		report: &report{out: out, clock: c, start: c.Now()},
		procs:  &processes{dir: dir, ended: cancel, clock: c},
		events: &recorder{clock: c},
	}
	err = d.steps(ctx)
	if err != nil && !errors.Is(err, errInterrupted) {
		d.procs.tails(os.Stderr, d.toldBy)
	}
	cancel(nil) // probes and watches end before what they look at
	return errors.Join(err, d.stop())
}

func (d *demo) steps(ctx context.Context) error {
	for _, step := range []func(context.Context) error{
		d.startControlPlane,
		d.prepareCluster,
		d.startFairlead,
		d.createPods,
		d.applySamples,
		d.showObjects,
		d.showTraffic,
		d.showAbsence,
		d.showUnready,
		d.showRepair,
		d.lookAround,
	} {
		if err := step(ctx); err != nil {
			if cause := context.Cause(ctx); cause != nil {
				return cause // the reason, where err is what came of it
			}
			return err
		}
	}
	return nil
}

// toldBy says whose log explains a failure: the control plane's until it was ready.
func (d *demo) toldBy(process string) bool { return isFairlead(process) || d.api == nil }

// stop ends what was started.
func (d *demo) stop() error {
	err := d.procs.stop(isFairlead)
	if d.world != nil {
		err = errors.Join(err, d.world.close())
	}
	return err
}

// startControlPlane starts etcd and kube-apiserver, and lays out the network while they boot.
func (d *demo) startControlPlane(ctx context.Context) error {
	lab, err := netlab.New()
	if err != nil {
		return err
	}
	d.world = &world{lab: lab}
	gateway := lab.Gateway()
	if d.plane, err = newControlPlane(d.dir, net.IP(gateway.IPv4.AsSlice())); err != nil {
		return err
	}
	etcd, apiserver := d.plane.commands(d.bin)
	if err := d.procs.start(gateway, "etcd", etcd); err != nil {
		return err
	}
	if err := d.procs.start(gateway, "kube-apiserver", apiserver); err != nil {
		return err
	}
	if err := d.world.populate(); err != nil {
		return err
	}
	d.report.say("%d nodes, %d pods and a client outside, each in a network namespace of its own", len(d.world.nodes), len(d.world.pods))
	if err := await(ctx, "the API server is ready", d.plane.ready); err != nil {
		return err
	}
	d.report.say("etcd and kube-apiserver are ready at %s; no other part of Kubernetes runs here", d.plane.server)
	return nil
}

// prepareCluster makes what there is in a cluster before fairlead comes.
func (d *demo) prepareCluster(ctx context.Context) error {
	scheme := runtime.NewScheme()
	if err := errors.Join(clientgoscheme.AddToScheme(scheme), v1alpha1.AddToScheme(scheme)); err != nil {
		return fmt.Errorf("registering types: %w", err)
	}
	api, err := client.NewWithWatch(d.plane.config(d.plane.token), client.Options{Scheme: scheme})
	if err != nil {
		return fmt.Errorf("building a client: %w", err)
	}
	d.api = api
	if d.kubeconfig, err = d.plane.writeKubeconfig("admin", d.plane.token, podNamespace); err != nil {
		return err
	}
	crds, roles := d.manifests.crds, d.manifests.roles
	for _, objects := range [][]*unstructured.Unstructured{crds, namespacesOf(roles), roles} {
		if err := applyAll(ctx, api, objects); err != nil {
			return err
		}
	}
	if err := await(ctx, "the custom resources are served", func(ctx context.Context) error {
		return established(ctx, api, crds)
	}); err != nil {
		return err
	}
	return d.prepareNodes(ctx)
}

// prepareNodes registers the nodes and begins to watch what will be measured.
func (d *demo) prepareNodes(ctx context.Context) error {
	for _, n := range d.world.nodes {
		if err := d.kubelet().register(ctx, n); err != nil {
			return err
		}
		if err := watchRules(ctx, n, d.world.pods, d.events, d.fail); err != nil {
			return err
		}
	}
	return watchSlices(ctx, d.api, d.events, d.fail)
}

func (d *demo) kubelet() *kubelet {
	return &kubelet{api: d.api, clock: d.clock, events: d.events, failed: d.fail}
}

// createPods plays the scheduler and the kubelet.
func (d *demo) createPods(ctx context.Context) error {
	d.report.say("fairlead controller and one fairlead node per node run, with the rights of %s and no more", filepath.Clean(d.opts.rbac))
	for _, p := range d.world.pods {
		if err := d.kubelet().run(ctx, p); err != nil {
			return err
		}
	}
	return nil
}

// lookAround waits for Ctrl-C, unless the demo was asked to end.
func (d *demo) lookAround(ctx context.Context) error {
	if d.opts.once {
		d.report.say("every answer was right")
		return nil
	}
	enter := enterCommand()
	d.report.say("every answer was right; have a look around, the kubeconfig is %s", d.kubeconfig)
	d.report.show(strings.Join([]string{
		fmt.Sprintf("%s %s --kubeconfig %s get svc", enter, d.bin.kubectl, d.kubeconfig),
		fmt.Sprintf("%s ip netns exec %s %s list ruleset", enter, d.world.nodes[0].Name, d.bin.nft),
		fmt.Sprintf("%s ip netns exec %s curl -s http://%s/", enter, d.world.client.Name, d.ingress()),
	}, "\n"))
	d.report.say("Ctrl-C ends it and takes everything away")
	<-ctx.Done()
	if cause := context.Cause(ctx); !errors.Is(cause, errInterrupted) {
		return cause
	}
	return nil
}

// ingress returns where the client outside finds the LoadBalancer Service.
func (d *demo) ingress() netip.AddrPort {
	i := slices.IndexFunc(d.routes, func(r route) bool { return r.from == d.world.client && r.kind == ingressIP })
	return d.routes[i].to // there is one, or the traffic would not have been shown
}

// enterCommand returns the command that runs others in the world. Where the world has
// the user namespace of the machine, there is none to join (setns(2)).
func enterCommand() string {
	own, err := os.Readlink("/proc/self/ns/user")
	parents, parentErr := os.Readlink(fmt.Sprintf("/proc/%d/ns/user", os.Getppid()))
	userNS := "-U --preserve-credentials "
	if err == nil && parentErr == nil && own == parents {
		userNS = ""
	}
	return fmt.Sprintf("nsenter -t %d %s-n -m", os.Getpid(), userNS)
}
