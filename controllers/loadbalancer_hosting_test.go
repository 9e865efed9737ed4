package controllers_test

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/events"
	cloudprovider "k8s.io/cloud-provider"
	cloudapi "k8s.io/cloud-provider/api"
	fakecloud "k8s.io/cloud-provider/fake"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrlconfig "sigs.k8s.io/controller-runtime/pkg/config"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	configv1alpha1 "fairlead.dev/fairlead/api/config/v1alpha1"
	"fairlead.dev/fairlead/api/v1alpha1"
	"fairlead.dev/fairlead/controllers"
)

// scripted is upstream's fake provider with answers that a spec can set while it runs.
type scripted struct {
	*fakecloud.Cloud
	mu              sync.Mutex
	ensure, destroy error
	update          error
	ensures         int
	hosts           map[string][]string       // node names by Service, of its last UpdateLoadBalancer
	destroyed       []string                  // UIDs
	during          func(svc *corev1.Service) // called within EnsureLoadBalancer
}

func (s *scripted) LoadBalancer() (cloudprovider.LoadBalancer, bool) { return s, true }

func (s *scripted) set(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

func (s *scripted) EnsureLoadBalancer(ctx context.Context, cluster string, svc *corev1.Service, nodes []*corev1.Node) (*corev1.LoadBalancerStatus, error) {
	var during func(*corev1.Service)
	s.set(func() { during = s.during })
	if during != nil {
		during(svc)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ensures++
	if s.ensure != nil {
		return nil, s.ensure
	}
	return s.Cloud.EnsureLoadBalancer(ctx, cluster, svc, nodes)
}

func (s *scripted) UpdateLoadBalancer(_ context.Context, _ string, svc *corev1.Service, nodes []*corev1.Node) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	names := []string{}
	for _, n := range nodes {
		names = append(names, n.Name)
	}
	s.hosts[svc.Name] = names
	return s.update
}

// told returns a poll for the nodes that svc was last updated with.
func (s *scripted) told(svc *corev1.Service) func() []string {
	return func() (names []string) {
		s.set(func() { names = s.hosts[svc.Name] })
		return names
	}
}

func (s *scripted) EnsureLoadBalancerDeleted(_ context.Context, _ string, svc *corev1.Service) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.destroy == nil {
		s.destroyed = append(s.destroyed, string(svc.UID))
	}
	return s.destroy
}

// addNode makes a Node, ready but for what edit says, that is gone after the current spec.
func addNode(ctx context.Context, name string, edit ...func(*corev1.Node)) {
	GinkgoHelper()
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{}}}
	node.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}
	for _, f := range edit {
		f(node)
	}
	status := node.Status
	Expect(k8s.Create(ctx, node)).To(Succeed())
	DeferCleanup(func(ctx SpecContext) { Expect(k8s.Delete(ctx, node)).To(Succeed()) })
	node.Status = status
	Expect(k8s.Status().Update(ctx, node)).To(Succeed())
}

func newScripted() *scripted {
	return &scripted{hosts: map[string][]string{}, Cloud: &fakecloud.Cloud{ExternalIP: net.ParseIP("203.0.113.7")}}
}

var _ = Describe("Hosting a cloud provider", Ordered, func() {
	var (
		e     *lbEnv
		cloud *scripted
	)
	BeforeAll(func(ctx SpecContext) {
		e = newLBEnv(ctx, "hosting", k8s, restConfig)
		cloud = newScripted()
		e.provider = cloud
		e.start()
	})

	It("publishes what the provider answers, port status too", SpecTimeout(patience), func(ctx SpecContext) {
		svc := e.service(ctx, "web")
		Eventually(ctx, e.told(ctx, svc)).Should(Equal("True Assigned: assigned 203.0.113.7"))
		got := e.fetch(ctx, svc)
		Expect(got.Annotations).To(HaveKeyWithValue(v1alpha1.AnnotationProvider, "fake"))
		Expect(got.Status.LoadBalancer.Ingress[0].Ports).To(Equal([]corev1.PortStatus{{Port: 80, Protocol: "TCP"}}))

		e.edit(ctx, svc, func() { svc.Spec.Ports[0].Port = 81 })
		Eventually(ctx, func() int32 { return e.fetch(ctx, svc).Status.LoadBalancer.Ingress[0].Ports[0].Port }).Should(BeEquivalentTo(81))
	})

	It("asks once per change and not for what it wrote itself", SpecTimeout(patience), func(ctx SpecContext) {
		count := func() (n int) { cloud.set(func() { n = cloud.ensures }); return n }
		before := count()
		svc := e.service(ctx, "calm")
		Eventually(ctx, e.told(ctx, svc)).Should(HavePrefix("True"))
		Consistently(ctx, count, "300ms").Should(Equal(before + 1))
	})

	It("says what the provider says when it fails, and deletes only when it succeeds", SpecTimeout(patience), func(ctx SpecContext) {
		cloud.set(func() { cloud.ensure = cloudapi.NewRetryError("quota of 5 reached", 100*time.Millisecond) })
		svc := e.service(ctx, "failing")
		Eventually(ctx, e.told(ctx, svc)).Should(Equal("False SyncLoadBalancerFailed: quota of 5 reached"))
		cloud.set(func() { cloud.ensure = nil })
		Eventually(ctx, e.told(ctx, svc)).Should(HavePrefix("True"))
		Eventually(ctx, e.events(ctx, svc)).Should(ContainElements("SyncLoadBalancerFailed", "EnsuredLoadBalancer"))

		cloud.set(func() { cloud.destroy = cloudapi.NewRetryError("still draining", 100*time.Millisecond) })
		Expect(k8s.Delete(ctx, svc)).To(Succeed())
		Eventually(ctx, e.told(ctx, svc)).Should(Equal("False DeleteLoadBalancerFailed: still draining"))
		Expect(e.fetch(ctx, svc).Finalizers).To(ConsistOf(cleanupFinalizer))
		cloud.set(func() { cloud.destroy = nil })
		e.remove(ctx, svc)
		Eventually(ctx, e.events(ctx, svc)).Should(ContainElements("DeleteLoadBalancerFailed", "DeletedLoadBalancer"))
	})

	It("keeps its hands off what is implemented elsewhere", SpecTimeout(patience), func(ctx SpecContext) {
		cloud.set(func() { cloud.ensure = cloudprovider.ImplementedElsewhere })
		DeferCleanup(func() { cloud.set(func() { cloud.ensure = nil }) })
		svc := e.service(ctx, "elsewhere")
		Eventually(ctx, func() []string { return e.fetch(ctx, svc).Finalizers }).Should(ConsistOf(cleanupFinalizer))
		got := e.fetch(ctx, svc)
		before := got.DeepCopy()
		got.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{Hostname: "lb.example.com"}}
		Expect(k8s.Status().Patch(ctx, got, client.MergeFrom(before))).To(Succeed())
		Consistently(ctx, func() string { return e.fetch(ctx, svc).Status.LoadBalancer.Ingress[0].Hostname }, "300ms").Should(Equal("lb.example.com"))
		Expect(e.told(ctx, svc)()).To(BeEmpty())
	})

	It("tells the provider which nodes there are", SpecTimeout(patience), func(ctx SpecContext) {
		svc := e.service(ctx, "nodes")
		Eventually(ctx, e.told(ctx, svc)).Should(HavePrefix("True"))
		addNode(ctx, "lb-excluded", func(n *corev1.Node) { n.Labels[corev1.LabelNodeExcludeBalancers] = "" })
		addNode(ctx, "lb-leaving", func(n *corev1.Node) {
			n.Spec.Taints = []corev1.Taint{{Key: "ToBeDeletedByClusterAutoscaler", Effect: "NoSchedule"}}
		})
		addNode(ctx, "lb-broken", func(n *corev1.Node) { n.Status.Conditions = nil })
		addNode(ctx, "lb-ready") // the last: whoever knows it knows the others too
		Eventually(ctx, cloud.told(svc)).Should(ContainElement("lb-ready"))
		Expect(cloud.told(svc)()).To(ConsistOf("lb-ready"))
		Eventually(ctx, e.events(ctx, svc)).Should(ContainElement("UpdatedLoadBalancer"))
	})

	It("deletes the load balancer of a Service that came back as another one", SpecTimeout(patience), func(ctx SpecContext) {
		cloud := newScripted()
		r := &controllers.LoadBalancerReconciler{
			Client: k8s, Balancer: cloud, Events: events.NewFakeRecorder(100), Provider: "fake", Class: "test.fairlead.dev/twins",
		}
		twin := func(svc *corev1.Service) { svc.Spec.LoadBalancerClass = &r.Class }
		old := e.service(ctx, "twin", twin)
		req := ctrl.Request{NamespacedName: client.ObjectKeyFromObject(old)}
		Expect(r.Reconcile(ctx, req)).To(Equal(ctrl.Result{}))
		e.edit(ctx, old, func() { old.Finalizers = nil })
		e.remove(ctx, old)
		next := e.service(ctx, "twin", twin)
		DeferCleanup(func(ctx SpecContext) { e.edit(ctx, next, func() { next.Finalizers = nil }) })

		cloud.set(func() { cloud.destroy = cloudapi.NewRetryError("busy", 42*time.Second) })
		Expect(r.Reconcile(ctx, req)).To(Equal(ctrl.Result{RequeueAfter: 42 * time.Second}))
		Expect(e.ips(ctx, next)()).To(BeEmpty(), "the old one goes first")
		cloud.set(func() { cloud.destroy = nil })
		Expect(r.Reconcile(ctx, req)).To(Equal(ctrl.Result{}))
		Expect(cloud.destroyed).To(Equal([]string{string(old.UID)}))
		Expect(e.ips(ctx, next)()).To(Equal([]string{"203.0.113.7"}))

		boom := errors.New("boom")
		cloud.set(func() { cloud.ensure = boom })
		e.edit(ctx, next, func() { next.Spec.Ports[0].Port = 82 })
		_, err := r.Reconcile(ctx, req)
		Expect(err).To(MatchError(boom))
		Expect(e.told(ctx, next)()).To(Equal("False SyncLoadBalancerFailed: boom"))
		Expect(e.ips(ctx, next)()).To(Equal([]string{"203.0.113.7"}), "what it had stays")
	})
})

var _ = Describe("Setup of the LoadBalancer lifecycle", func() {
	setup := func(name string, provider cloudprovider.Interface) (ctrl.Manager, error) {
		scheme, err := controllers.NewScheme()
		Expect(err).NotTo(HaveOccurred())
		mgr, err := ctrl.NewManager(restConfig, ctrl.Options{
			Scheme: scheme, Metrics: metricsserver.Options{BindAddress: "0"},
			Controller: ctrlconfig.Controller{SkipNameValidation: new(true)},
		})
		Expect(err).NotTo(HaveOccurred())
		return mgr, controllers.Setup(mgr, &configv1alpha1.ControllerConfiguration{
			Endpoints:    configv1alpha1.Endpoints{Mode: configv1alpha1.EndpointsOff},
			LoadBalancer: configv1alpha1.LoadBalancer{Provider: name, Class: "test.fairlead.dev/setup"},
		}, provider)
	}
	It("refuses a provider that nobody registered", func() {
		_, err := setup("nimbus", nil)
		Expect(err).To(MatchError(`loadBalancer.provider: "nimbus" is no registered cloud provider; known are: baremetal`))
	})
	It("refuses a provider without load balancers", SpecTimeout(patience), func(ctx SpecContext) {
		mgr, err := setup("any", &fakecloud.Cloud{DisableLoadBalancers: true})
		Expect(err).NotTo(HaveOccurred())
		Expect(mgr.Start(ctx)).To(MatchError(ContainSubstring(`the cloud provider "fake" has no load balancers`)))
	})
	It("is off without a name", func() {
		_, err := setup("", &fakecloud.Cloud{DisableLoadBalancers: true})
		Expect(err).NotTo(HaveOccurred())
	})
})
