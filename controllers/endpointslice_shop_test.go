package controllers_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/onsi/gomega/gbytes"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/rest"
	"k8s.io/utils/clock"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/config"
	"sigs.k8s.io/controller-runtime/pkg/log/zap"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"fairlead.dev/fairlead/controllers"
)

// shop is a namespace of its own, with two nodes and, once it is opened, a manager that
// sees nothing else.
type shop struct {
	client.Client
	config    *rest.Config
	namespace string
	nodeA     string // in zone a
	nodeB     string // in zone b
}

func newShop(ctx context.Context, c client.Client, cfg *rest.Config) *shop {
	GinkgoHelper()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "shop-"}}
	Expect(c.Create(ctx, ns)).To(Succeed())
	s := &shop{Client: c, config: cfg, namespace: ns.Name, nodeA: ns.Name + "-a", nodeB: ns.Name + "-b"}
	s.node(ctx, s.nodeA, "a")
	s.node(ctx, s.nodeB, "b")
	return s
}

func (s *shop) node(ctx context.Context, name, zone string) *corev1.Node {
	GinkgoHelper()
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{
		Name: name, Labels: map[string]string{corev1.LabelTopologyZone: zone},
	}}
	Expect(s.Create(ctx, node)).To(Succeed())
	DeferCleanup(func(ctx SpecContext) { Expect(client.IgnoreNotFound(s.Delete(ctx, node))).To(Succeed()) })
	return node
}

// open starts the controller. It must not log an error as long as it runs.
func (s *shop) open(edit ...func(*controllers.EndpointSliceReconciler)) {
	GinkgoHelper()
	scheme, err := controllers.NewScheme()
	Expect(err).NotTo(HaveOccurred())
	logged := gbytes.NewBuffer()
	mgr, err := ctrl.NewManager(s.config, ctrl.Options{
		Scheme:     scheme,
		Logger:     zap.New(zap.WriteTo(io.MultiWriter(GinkgoWriter, logged))),
		Metrics:    metricsserver.Options{BindAddress: "0"},
		Cache:      cache.Options{DefaultNamespaces: map[string]cache.Config{s.namespace: {}}},
		Controller: config.Controller{SkipNameValidation: new(true)},
	})
	Expect(err).NotTo(HaveOccurred())
	r := &controllers.EndpointSliceReconciler{
		Client: mgr.GetClient(), Live: mgr.GetAPIReader(), Clock: clock.RealClock{}, MaxEndpointsPerSlice: 100,
	}
	for _, f := range edit {
		f(r)
	}
	Expect(r.SetupWithManager(mgr)).To(Succeed())
	ctx, stop := context.WithCancel(context.Background()) // ends with the spec, not with this node of it
	stopped := make(chan error)
	go func() { stopped <- mgr.Start(ctx) }()
	DeferCleanup(func(SpecContext) {
		Expect(string(logged.Contents())).NotTo(ContainSubstring(`"level":"error"`))
		stop()
		Eventually(stopped, "10s").Should(Receive(BeNil()))
	})
}

func observe(r *controllers.EndpointSliceReconciler) { r.Observe = true }

// service creates the Service web, which selects app=web.
func (s *shop) service(ctx context.Context, edit ...func(*corev1.Service)) *corev1.Service {
	GinkgoHelper()
	svc := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: s.namespace, Name: "web"},
		Spec: corev1.ServiceSpec{
			Selector: map[string]string{"app": "web"},
			Ports:    []corev1.ServicePort{{Name: "http", Port: 80, TargetPort: intstr.FromInt32(8080)}},
		},
	}
	for _, f := range edit {
		f(svc)
	}
	Expect(s.Create(ctx, svc)).To(Succeed())
	return svc
}

// pod creates a ready pod of the Service web with an address of each family.
func (s *shop) pod(ctx context.Context, number int, node string) *corev1.Pod {
	GinkgoHelper()
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: s.namespace, Name: fmt.Sprintf("pod-%d", number), Labels: map[string]string{"app": "web"},
		},
		Spec: corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Name: "web", Image: "web"}}},
	}
	Expect(s.Create(ctx, pod)).To(Succeed())
	v4 := fmt.Sprintf("10.244.%d.%d", number/256, number%256)
	pod.Status = corev1.PodStatus{
		Phase: corev1.PodRunning, PodIP: v4, PodIPs: []corev1.PodIP{{IP: v4}, {IP: fmt.Sprintf("fd00:244::%x", number+1)}},
	}
	s.ready(ctx, pod, true)
	return pod
}

func (s *shop) ready(ctx context.Context, pod *corev1.Pod, ready bool) {
	GinkgoHelper()
	status := corev1.ConditionFalse
	if ready {
		status = corev1.ConditionTrue
	}
	pod.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: status, LastTransitionTime: metav1.Now()}}
	Expect(s.Status().Update(ctx, pod)).To(Succeed())
}

// slices returns those of a Service, by name.
func (s *shop) slices(ctx context.Context, service string) []discoveryv1.EndpointSlice {
	GinkgoHelper()
	var list discoveryv1.EndpointSliceList
	Expect(s.List(ctx, &list, client.InNamespace(s.namespace),
		client.MatchingLabels{discoveryv1.LabelServiceName: service})).To(Succeed())
	return list.Items
}

// lines returns what the slices of the Service web say, one line per endpoint.
func (s *shop) lines(ctx context.Context) func() []string {
	return func() []string { return s.linesOf(ctx, "web") }
}

func (s *shop) linesOf(ctx context.Context, service string) []string {
	GinkgoHelper()
	lines := []string{}
	for _, slice := range s.slices(ctx, service) {
		for _, e := range slice.Endpoints {
			state := "notReady"
			if *e.Conditions.Ready {
				state = "ready"
			}
			node := strings.TrimPrefix(ptr.Deref(e.NodeName, "-"), s.namespace+"-")
			lines = append(lines, fmt.Sprint(e.Addresses[0], " ", state, " ", node, "/", ptr.Deref(e.Zone, "-")))
		}
	}
	slices.Sort(lines)
	return lines
}

// slowWatch lets the watch of EndpointSlices lag once it is told to.
type slowWatch struct {
	next    http.RoundTripper
	lagging *atomic.Bool
	lag     time.Duration
}

func (w slowWatch) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := w.next.RoundTrip(req)
	if err == nil && strings.HasSuffix(req.URL.Path, "/endpointslices") && req.URL.Query().Get("watch") != "" {
		resp.Body = slowBody{resp.Body, w}
	}
	return resp, err
}

type slowBody struct {
	io.ReadCloser
	slowWatch
}

func (b slowBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if b.lagging.Load() && err == nil {
		time.Sleep(b.lag)
	}
	return n, err
}

// observedDifferences reads the metric as Prometheus would.
func observedDifferences() string {
	GinkgoHelper()
	value := metric("fairlead_endpointslice_observed_differences")
	return fmt.Sprintf("create %v, update %v, delete %v", value["create"], value["update"], value["delete"])
}

// syncs returns how many times a Service was looked at.
func syncs() float64 {
	GinkgoHelper()
	return metric("fairlead_endpointslice_sync_duration_seconds")[""]
}

// metric returns the values of a counter or gauge, or the counts of a histogram, by the
// values of its labels.
func metric(name string) map[string]float64 {
	GinkgoHelper()
	families, err := metrics.Registry.Gather()
	Expect(err).NotTo(HaveOccurred())
	values := map[string]float64{}
	for _, family := range families {
		if family.GetName() != name {
			continue
		}
		for _, m := range family.GetMetric() {
			var labels []string
			for _, label := range m.GetLabel() {
				labels = append(labels, label.GetValue())
			}
			values[strings.Join(labels, ",")] =
				m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	return values
}
