package controllers_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
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
	"sigs.k8s.io/controller-runtime/pkg/envtest"
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

var _ = Describe("EndpointSlice controller", func() {
	var s *shop

	BeforeEach(func(ctx SpecContext) { s = newShop(ctx, k8s, restConfig) })

	DescribeTable("fills slices with the pods of a Service", func(ctx SpecContext, edit func(*corev1.Service), wantLabels []string) {
		s.open()
		s.pod(ctx, 1, s.nodeA)
		svc := s.service(ctx, edit)
		s.pod(ctx, 2, s.nodeB)

		Eventually(s.lines(ctx)).Should(HaveExactElements("10.244.0.1 ready a/a", "10.244.0.2 ready b/b"))
		all := s.slices(ctx, "web")
		Expect(all).To(HaveLen(1))
		Expect(all[0].Name).To(HavePrefix("web-"))
		Expect(metav1.IsControlledBy(&all[0], svc)).To(BeTrue())
		Expect(all[0].Labels).To(HaveKeyWithValue(discoveryv1.LabelManagedBy, "endpointslice-controller.k8s.io"))
		for _, label := range wantLabels {
			Expect(all[0].Labels).To(HaveKey(label))
		}
	},
		Entry("with a cluster IP", func(*corev1.Service) {}, nil),
		Entry("without one", func(svc *corev1.Service) { svc.Spec.ClusterIP = corev1.ClusterIPNone }, []string{corev1.IsHeadlessService}),
		Entry("with labels", func(svc *corev1.Service) { svc.Labels = map[string]string{"team": "a"} }, []string{"team"}),
	)

	It("makes slices of both families for a dual-stack Service", func(ctx SpecContext) {
		// The suite's API server has one family.
		env := &envtest.Environment{BinaryAssetsDirectory: filepath.Join("..", "bin", "controlplane")}
		env.ControlPlane.GetAPIServer().Configure().Set("service-cluster-ip-range", "10.96.0.0/24,fd00:96::/112")
		cfg, err := env.Start()
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(env.Stop)
		cfg.QPS = -1
		c, err := client.New(cfg, client.Options{Scheme: k8s.Scheme()})
		Expect(err).NotTo(HaveOccurred())

		s := newShop(ctx, c, cfg)
		s.open()
		s.service(ctx, func(svc *corev1.Service) { svc.Spec.IPFamilyPolicy = new(corev1.IPFamilyPolicyRequireDualStack) })
		s.pod(ctx, 1, s.nodeA)

		Eventually(s.lines(ctx)).Should(HaveExactElements("10.244.0.1 ready a/a", "fd00:244::2 ready a/a"))
		Expect(s.slices(ctx, "web")).To(ConsistOf(
			HaveField("AddressType", discoveryv1.AddressTypeIPv4), HaveField("AddressType", discoveryv1.AddressTypeIPv6)))
	})

	It("follows the readiness of a pod, and its end", func(ctx SpecContext) {
		s.open()
		s.service(ctx)
		pod := s.pod(ctx, 1, s.nodeA)
		Eventually(s.lines(ctx)).Should(HaveExactElements("10.244.0.1 ready a/a"))
		s.ready(ctx, pod, false)
		Eventually(s.lines(ctx)).Should(HaveExactElements("10.244.0.1 notReady a/a"))
		s.ready(ctx, pod, true)
		Eventually(s.lines(ctx)).Should(HaveExactElements("10.244.0.1 ready a/a"))
		Expect(s.slices(ctx, "web")[0].Annotations).To(HaveKey(corev1.EndpointsLastChangeTriggerTime))
		Expect(s.Delete(ctx, pod, client.GracePeriodSeconds(0))).To(Succeed())
		Eventually(s.lines(ctx)).Should(BeEmpty())
		Expect(s.slices(ctx, "web")).To(HaveLen(1))
	})

	It("ends up right after a burst of changes and other writers among them", func(ctx SpecContext) {
		s.open()
		s.service(ctx)
		pods := []*corev1.Pod{s.pod(ctx, 1, s.nodeA), s.pod(ctx, 2, s.nodeA), s.pod(ctx, 3, s.nodeA)}
		for i := range 30 {
			s.ready(ctx, pods[i%3], i%2 == 1)
			for _, slice := range s.slices(ctx, "web") {
				before := slice.DeepCopy()
				slice.Annotations = map[string]string{"writer": fmt.Sprint(i)}
				Expect(s.Patch(ctx, &slice, client.MergeFrom(before))).To(Succeed())
			}
		}
		Eventually(s.lines(ctx)).Should(HaveExactElements(
			"10.244.0.1 ready a/a", "10.244.0.2 notReady a/a", "10.244.0.3 ready a/a"))
		Expect(s.slices(ctx, "web")).To(HaveLen(1))
	})

	It("sees its own writes before its cache does", func(ctx SpecContext) {
		const lag = 2 * time.Second
		var lagging atomic.Bool
		s.config = rest.CopyConfig(restConfig)
		s.config.Wrap(func(next http.RoundTripper) http.RoundTripper {
			return slowWatch{next: next, lagging: &lagging, lag: lag}
		})
		retries := func() float64 {
			return metric("controller_runtime_reconcile_total")["endpointslice,requeue_after"]
		}
		s.open()
		s.service(ctx)
		pod := s.pod(ctx, 1, s.nodeA)
		Eventually(s.lines(ctx)).Should(HaveExactElements("10.244.0.1 ready a/a"))
		before := retries()

		lagging.Store(true)
		for _, state := range []string{"notReady", "ready", "notReady", "ready"} {
			s.ready(ctx, pod, state == "ready")
			Eventually(s.lines(ctx)).WithTimeout(lag / 2).Should(HaveExactElements("10.244.0.1 " + state + " a/a"))
		}
		Expect(retries()).To(Equal(before))
	})

	It("moves a pod to the Service that its labels say", func(ctx SpecContext) {
		s.open()
		s.service(ctx)
		s.service(ctx, func(svc *corev1.Service) { svc.Name, svc.Spec.Selector = "db", map[string]string{"app": "db"} })
		pod := s.pod(ctx, 1, s.nodeA)
		Eventually(s.lines(ctx)).Should(HaveLen(1))

		pod.Labels["app"] = "db"
		Expect(s.Update(ctx, pod)).To(Succeed())

		Eventually(s.lines(ctx)).Should(BeEmpty())
		Eventually(func() []string { return s.linesOf(ctx, "db") }).Should(HaveLen(1))
	})

	DescribeTable("repairs within a second", func(ctx SpecContext, vandal func(context.Context, *discoveryv1.EndpointSlice)) {
		s.open()
		s.service(ctx)
		s.pod(ctx, 1, s.nodeA)
		Eventually(s.lines(ctx)).Should(HaveLen(1))
		before := s.slices(ctx, "web")[0]

		vandal(ctx, before.DeepCopy())

		Eventually(func() []discoveryv1.EndpointSlice { return s.slices(ctx, "web") }).WithTimeout(time.Second).
			Should(ConsistOf(And(
				HaveField("Endpoints", before.Endpoints), HaveField("Ports", before.Ports),
				HaveField("Labels", before.Labels), HaveField("OwnerReferences", before.OwnerReferences))))
	},
		Entry("a slice that is deleted", func(ctx context.Context, slice *discoveryv1.EndpointSlice) {
			Expect(k8s.Delete(ctx, slice)).To(Succeed())
		}),
		Entry("an endpoint that is removed", func(ctx context.Context, slice *discoveryv1.EndpointSlice) {
			slice.Endpoints = nil
			Expect(k8s.Update(ctx, slice)).To(Succeed())
		}),
		Entry("an endpoint that is made up", func(ctx context.Context, slice *discoveryv1.EndpointSlice) {
			slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{Addresses: []string{"192.0.2.1"}})
			Expect(k8s.Update(ctx, slice)).To(Succeed())
		}),
		Entry("a port that is changed", func(ctx context.Context, slice *discoveryv1.EndpointSlice) {
			slice.Ports[0].Port = new(int32(1))
			Expect(k8s.Update(ctx, slice)).To(Succeed())
		}),
		Entry("a label that is added", func(ctx context.Context, slice *discoveryv1.EndpointSlice) {
			slice.Labels["x"] = "y"
			Expect(k8s.Update(ctx, slice)).To(Succeed())
		}),
		Entry("a slice that is labelled away from its Service", func(ctx context.Context, slice *discoveryv1.EndpointSlice) {
			delete(slice.Labels, discoveryv1.LabelServiceName)
			Expect(k8s.Update(ctx, slice)).To(Succeed())
		}),
		Entry("an owner that is removed", func(ctx context.Context, slice *discoveryv1.EndpointSlice) {
			slice.OwnerReferences = nil
			Expect(k8s.Update(ctx, slice)).To(Succeed())
		}),
	)

	It("makes a slice of its own where somebody takes one over, and leaves that alone", func(ctx SpecContext) {
		s.open()
		s.service(ctx)
		s.pod(ctx, 1, s.nodeA)
		Eventually(s.lines(ctx)).Should(HaveLen(1))
		taken := s.slices(ctx, "web")[0]
		taken.Labels = map[string]string{discoveryv1.LabelManagedBy: "somebody"}
		taken.OwnerReferences = nil
		Expect(s.Update(ctx, &taken)).To(Succeed())

		Eventually(s.lines(ctx)).Should(HaveExactElements("10.244.0.1 ready a/a"))
		version := taken.ResourceVersion
		Expect(s.Get(ctx, client.ObjectKeyFromObject(&taken), &taken)).To(Succeed())
		Expect(taken.ResourceVersion).To(Equal(version))
	})

	DescribeTable("removes its slices from a Service that", func(ctx SpecContext, change func(*corev1.Service)) {
		s.open()
		svc := s.service(ctx)
		s.pod(ctx, 1, s.nodeA)
		Eventually(s.lines(ctx)).Should(HaveLen(1))
		byHand := &discoveryv1.EndpointSlice{
			ObjectMeta: metav1.ObjectMeta{
				Namespace: s.namespace, Name: "by-hand", Labels: map[string]string{discoveryv1.LabelServiceName: "web"},
			},
			AddressType: discoveryv1.AddressTypeIPv4,
			Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{"192.0.2.1"}}},
		}
		Expect(s.Create(ctx, byHand)).To(Succeed())

		before := svc.DeepCopy()
		change(svc)
		Expect(s.Patch(ctx, svc, client.MergeFrom(before))).To(Succeed())

		Eventually(func() []discoveryv1.EndpointSlice { return s.slices(ctx, "web") }).Should(HaveExactElements(HaveField("Name", "by-hand")))
	},
		Entry("becomes ExternalName", func(svc *corev1.Service) {
			svc.Spec.Type, svc.Spec.ExternalName = corev1.ServiceTypeExternalName, "example.com"
			svc.Spec.ClusterIP, svc.Spec.ClusterIPs = "", nil
		}),
		Entry("loses its selector", func(svc *corev1.Service) { svc.Spec.Selector = nil }),
	)

	It("waits for the Node of a pod, and follows its zone", func(ctx SpecContext) {
		s.open()
		s.service(ctx)
		s.pod(ctx, 1, s.namespace+"-c")
		s.pod(ctx, 2, s.nodeA)
		Eventually(s.lines(ctx)).Should(HaveExactElements("10.244.0.2 ready a/a"))

		node := s.node(ctx, s.namespace+"-c", "c")
		Eventually(s.lines(ctx)).Should(HaveExactElements("10.244.0.1 ready c/c", "10.244.0.2 ready a/a"))

		node.Labels[corev1.LabelTopologyZone] = "d"
		Expect(s.Update(ctx, node)).To(Succeed())
		Eventually(s.lines(ctx)).Should(HaveExactElements("10.244.0.1 ready c/d", "10.244.0.2 ready a/a"))
	})

	It("replaces the slices of an older Service of the same name", func(ctx SpecContext) {
		s.open()
		old := s.service(ctx)
		s.pod(ctx, 1, s.nodeA)
		Eventually(s.lines(ctx)).Should(HaveLen(1))
		Expect(s.Delete(ctx, old)).To(Succeed())

		svc := s.service(ctx)

		Eventually(func() []discoveryv1.EndpointSlice { return s.slices(ctx, "web") }).Should(HaveExactElements(
			HaveField("OwnerReferences", HaveExactElements(HaveField("UID", svc.UID)))))
		Expect(s.linesOf(ctx, "web")).To(HaveExactElements("10.244.0.1 ready a/a"))
	})

	It("spreads 250 pods over 3 slices", func(ctx SpecContext) {
		s.open()
		s.service(ctx)
		for i := range 250 {
			s.pod(ctx, i, s.nodeA)
		}
		Eventually(s.lines(ctx)).Should(HaveLen(250))
		Expect(s.slices(ctx, "web")).To(ConsistOf(
			HaveField("Endpoints", HaveLen(100)), HaveField("Endpoints", HaveLen(100)), HaveField("Endpoints", HaveLen(50))))
	})

	It("has nothing to say in a namespace that is being deleted", func(ctx SpecContext) {
		s.open() // which fails the spec on a logged error
		s.service(ctx)
		Eventually(func() []discoveryv1.EndpointSlice { return s.slices(ctx, "web") }).Should(HaveLen(1))
		Expect(s.Delete(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: s.namespace}})).To(Succeed())
		before := syncs()

		slice := s.slices(ctx, "web")[0]
		Expect(s.Delete(ctx, &slice)).To(Succeed())

		Eventually(syncs).Should(BeNumerically(">", before))
		Consistently(func() []discoveryv1.EndpointSlice { return s.slices(ctx, "web") }, "300ms").Should(BeEmpty())
	})

	It("in Observe reports what it would write, and writes nothing", func(ctx SpecContext) {
		s.open(observe)
		svc := s.service(ctx)
		Eventually(observedDifferences).Should(Equal("create 1, update 0, delete 0"))

		// Another controller makes the slice, first wrong, then right.
		slice := &discoveryv1.EndpointSlice{
			ObjectMeta: metav1.ObjectMeta{
				Namespace: s.namespace, Name: "web-other",
				Labels: map[string]string{
					discoveryv1.LabelServiceName: "web", discoveryv1.LabelManagedBy: "endpointslice-controller.k8s.io", "x": "y",
				},
				OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(svc, corev1.SchemeGroupVersion.WithKind("Service"))},
			},
			AddressType: discoveryv1.AddressTypeIPv4,
			Endpoints:   []discoveryv1.Endpoint{},
		}
		Expect(s.Create(ctx, slice)).To(Succeed())
		Eventually(observedDifferences).Should(Equal("create 0, update 1, delete 0"))
		delete(slice.Labels, "x")
		Expect(s.Update(ctx, slice)).To(Succeed())
		Eventually(observedDifferences).Should(Equal("create 0, update 0, delete 0"))

		version := slice.ResourceVersion
		s.pod(ctx, 1, s.nodeA)
		Eventually(observedDifferences).Should(Equal("create 0, update 1, delete 0"))
		Expect(s.slices(ctx, "web")).To(HaveExactElements(HaveField("ResourceVersion", version)))

		Expect(s.Delete(ctx, svc)).To(Succeed())
		Eventually(observedDifferences).Should(Equal("create 0, update 0, delete 0"))
	})
})

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
