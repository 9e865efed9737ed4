package controllers_test

import (
	"context"
	"fmt"
	"net/http"
	"sync/atomic"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"fairlead.dev/fairlead/api/v1alpha1"
)

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

	It("tells the nodes of the weight that a pod asks for", func(ctx SpecContext) {
		s.open()
		s.service(ctx)
		pod := s.pod(ctx, 1, s.nodeA)
		annotations := func() map[string]string { return s.slices(ctx, "web")[0].Annotations }
		Eventually(s.lines(ctx)).Should(HaveExactElements("10.244.0.1 ready a/a"))
		Expect(annotations()).NotTo(HaveKey(v1alpha1.AnnotationWeights))
		before := pod.DeepCopy()
		pod.Annotations = map[string]string{v1alpha1.AnnotationWeights: "3"}
		Expect(s.Patch(ctx, pod, client.MergeFrom(before))).To(Succeed())
		Eventually(annotations).Should(HaveKeyWithValue(v1alpha1.AnnotationWeights, `{"10.244.0.1":3}`))
		before = pod.DeepCopy()
		pod.Annotations = nil
		Expect(s.Patch(ctx, pod, client.MergeFrom(before))).To(Succeed())
		Eventually(annotations).ShouldNot(HaveKey(v1alpha1.AnnotationWeights))
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
