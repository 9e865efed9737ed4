package controllers_test

import (
	"context"
	"errors"
	"strings"
	"time"
	"unicode/utf8"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/client-go/tools/events"
	cloudapi "k8s.io/cloud-provider/api"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"fairlead.dev/fairlead/api/v1alpha1"
	"fairlead.dev/fairlead/controllers"
	hosting "fairlead.dev/fairlead/internal/cloud"
)

const foreignFinalizer = "example.com/audit"

var _ = Describe("LoadBalancer lifecycle", Ordered, func() {
	var (
		e     *lbEnv
		cloud *scripted
	)
	BeforeAll(func(ctx SpecContext) {
		e = newLBEnv(ctx, "lifecycle", k8s, restConfig)
		cloud = newScripted()
		e.provider = cloud
		e.start()
	})
	It("tells about nodes that changed while it was ensured first", SpecTimeout(patience), func(ctx SpecContext) {
		witness := e.service(ctx, "witness")
		Eventually(ctx, e.told(ctx, witness)).Should(HavePrefix("True"))
		entered, leave := make(chan struct{}), make(chan struct{})
		cloud.set(func() {
			// Without an ingress to publish no event of our own brings it back by chance.
			cloud.ensure = &hosting.Pending{Reason: v1alpha1.ReasonNoAddress, Message: "none yet"}
			cloud.during = func(svc *corev1.Service) {
				if svc.Name == "slow" {
					close(entered)
					<-leave
				}
			}
		})
		DeferCleanup(func() { cloud.set(func() { cloud.during, cloud.ensure = nil, nil }) })
		svc := e.service(ctx, "slow")
		Eventually(ctx, entered).Should(BeClosed())
		addNode(ctx, "lb-meanwhile")
		Eventually(ctx, cloud.told(witness)).Should(ContainElement("lb-meanwhile"))
		close(leave)
		Eventually(ctx, cloud.told(svc)).Should(ContainElement("lb-meanwhile"))
	})

	It("shows no address after it was freed, whoever keeps the Service", SpecTimeout(patience), func(ctx SpecContext) {
		svc := e.service(ctx, "kept", func(svc *corev1.Service) { svc.Finalizers = []string{foreignFinalizer} })
		DeferCleanup(func(ctx SpecContext) { e.edit(ctx, svc, func() { svc.Finalizers = nil }) })
		Eventually(ctx, e.told(ctx, svc)).Should(HavePrefix("True"))
		Expect(k8s.Delete(ctx, svc)).To(Succeed())
		Eventually(ctx, func() []string { return e.fetch(ctx, svc).Finalizers }).Should(ConsistOf(foreignFinalizer))
		Expect(e.ips(ctx, svc)()).To(BeEmpty())
		Expect(e.told(ctx, svc)()).To(BeEmpty())
	})

	It("puts back its mark", SpecTimeout(patience), func(ctx SpecContext) {
		svc := e.service(ctx, "unmarked")
		Eventually(ctx, e.told(ctx, svc)).Should(HavePrefix("True"))
		e.edit(ctx, svc, func() { svc.Annotations = nil })
		Eventually(ctx, func() map[string]string { return e.fetch(ctx, svc).Annotations }).Should(And(
			HaveKeyWithValue(v1alpha1.AnnotationProvider, "fake"), HaveKeyWithValue(v1alpha1.AnnotationProviderClass, e.class)))
	})

	It("puts back its condition, and calls nobody for what it wrote itself", SpecTimeout(patience), func(ctx SpecContext) {
		svc := e.service(ctx, "mute")
		Eventually(ctx, e.told(ctx, svc)).Should(HavePrefix("True"))
		for _, edit := range []func(*corev1.Service){
			func(svc *corev1.Service) { svc.Status.Conditions = nil },
			func(svc *corev1.Service) { svc.Status.Conditions[0].Message = "mine now" },
		} {
			got := e.fetch(ctx, svc)
			edit(got)
			Expect(k8s.Status().Update(ctx, got)).To(Succeed())
			Eventually(ctx, e.told(ctx, svc)).Should(Equal("True Assigned: assigned 203.0.113.7"))
		}

		// An error without a delay is tried again after five seconds; not at once.
		var before int
		cloud.set(func() { cloud.ensure, before = errors.New("boom"), cloud.ensures })
		DeferCleanup(func() { cloud.set(func() { cloud.ensure = nil }) })
		e.edit(ctx, svc, func() { svc.Spec.Ports[0].Port = 81 })
		Eventually(ctx, e.told(ctx, svc)).Should(Equal("False SyncLoadBalancerFailed: boom"))
		Consistently(ctx, func() (n int) { cloud.set(func() { n = cloud.ensures }); return n }, "500ms").Should(Equal(before + 1))
	})

	It("says in the condition why the nodes could not be updated", SpecTimeout(patience), func(ctx SpecContext) {
		svc := e.service(ctx, "deaf")
		Eventually(ctx, e.told(ctx, svc)).Should(HavePrefix("True"))
		cloud.set(func() { cloud.update = cloudapi.NewRetryError("no more targets", 100*time.Millisecond) })
		addNode(ctx, "lb-deaf")
		Eventually(ctx, e.told(ctx, svc)).Should(Equal("True Assigned: assigned 203.0.113.7; updating its nodes failed: no more targets"))
		cloud.set(func() { cloud.update = nil })
		Eventually(ctx, e.told(ctx, svc)).Should(Equal("True Assigned: assigned 203.0.113.7"))
	})
})

var _ = Describe("Reconciling a LoadBalancer", Ordered, func() {
	var (
		e        *lbEnv
		cloud    *scripted
		recorder *events.FakeRecorder
		r        *controllers.LoadBalancerReconciler
	)
	BeforeAll(func(ctx SpecContext) {
		e = newLBEnv(ctx, "direct", k8s, restConfig)
	})
	BeforeEach(func() {
		cloud = newScripted()
		e.provider = cloud
		recorder = events.NewFakeRecorder(100)
		r = &controllers.LoadBalancerReconciler{Client: k8s, Balancer: cloud, Events: recorder, Provider: "fake", Class: e.class}
	})
	// served makes a Service that r has served. Nobody looks after its finalizers.
	served := func(ctx context.Context, name string) (*corev1.Service, ctrl.Request) {
		svc := e.service(ctx, name)
		DeferCleanup(func(ctx SpecContext) {
			if e.client.Get(ctx, client.ObjectKeyFromObject(svc), svc) == nil {
				e.edit(ctx, svc, func() { svc.Finalizers = nil })
			}
		})
		req := ctrl.Request{NamespacedName: client.ObjectKeyFromObject(svc)}
		Expect(r.Reconcile(ctx, req)).To(Equal(ctrl.Result{}))
		return svc, req
	}
	toClusterIP := func(svc *corev1.Service) func() {
		return func() {
			svc.Spec.Type, svc.Spec.LoadBalancerClass = corev1.ServiceTypeClusterIP, nil
			svc.Spec.AllocateLoadBalancerNodePorts = nil
		}
	}

	DescribeTable("leaves it to the rate limiter when to ask a provider again",
		func(ctx SpecContext, name string, answer error) {
			svc, req := served(ctx, name)
			cloud.ensure, cloud.destroy = answer, answer
			e.edit(ctx, svc, func() { svc.Spec.Ports[0].Port = 81 })
			_, err := r.Reconcile(ctx, req)
			Expect(err).To(MatchError(answer))
			Expect(k8s.Delete(ctx, svc)).To(Succeed())
			_, err = r.Reconcile(ctx, req)
			Expect(err).To(MatchError(answer))
		},
		Entry("that found something missing", SpecTimeout(patience), "notfound", apierrors.NewNotFound(corev1.Resource("subnets"), "blue")),
		Entry("that was too late", SpecTimeout(patience), "conflict", apierrors.NewConflict(corev1.Resource("subnets"), "blue", errors.New("stale"))),
	)

	It("withdraws the address before it is free", SpecTimeout(patience), func(ctx SpecContext) {
		svc, req := served(ctx, "early")
		e.edit(ctx, svc, func() { svc.Finalizers = append(svc.Finalizers, foreignFinalizer) })
		Expect(k8s.Delete(ctx, svc)).To(Succeed())
		cloud.destroy = errors.New("draining")
		for range 2 {
			_, err := r.Reconcile(ctx, req)
			Expect(err).To(MatchError(cloud.destroy))
			Expect(e.ips(ctx, svc)()).To(BeEmpty())
			Expect(e.told(ctx, svc)()).To(Equal("False DeleteLoadBalancerFailed: draining"))
		}
		sent := []string{}
		for len(recorder.Events) > 0 {
			sent = append(sent, <-recorder.Events)
		}
		Expect(sent).To(ConsistOf(ContainSubstring("EnsuringLoadBalancer"), ContainSubstring("UnAvailable"),
			ContainSubstring("EnsuredLoadBalancer"), ContainSubstring("DeletingLoadBalancer"), ContainSubstring("DeleteLoadBalancerFailed")))
		cloud.destroy = nil
		Expect(r.Reconcile(ctx, req)).To(Equal(ctrl.Result{}))
		Expect(e.told(ctx, svc)()).To(BeEmpty())
		Expect(e.fetch(ctx, svc).Finalizers).To(ConsistOf(foreignFinalizer))
	})

	It("ensures again what is wanted back while it was being deleted", SpecTimeout(patience), func(ctx SpecContext) {
		svc, req := served(ctx, "back")
		spec := e.fetch(ctx, svc).Spec
		e.edit(ctx, svc, toClusterIP(svc))
		cloud.destroy = errors.New("draining")
		_, err := r.Reconcile(ctx, req)
		Expect(err).To(MatchError(cloud.destroy))
		e.edit(ctx, svc, func() { svc.Spec = spec })
		before := cloud.ensures
		Expect(r.Reconcile(ctx, req)).To(Equal(ctrl.Result{}))
		Expect(cloud.ensures).To(Equal(before + 1))
		Expect(e.ips(ctx, svc)()).To(Equal([]string{"203.0.113.7"}))
	})

	It("forgets a Service only after its last patch", SpecTimeout(patience), func(ctx SpecContext) {
		svc, req := served(ctx, "late")
		// Somebody took our mark away, so that memory is all there is.
		e.edit(ctx, svc, func() { svc.Annotations = nil; toClusterIP(svc)() })
		scheme, err := controllers.NewScheme()
		Expect(err).NotTo(HaveOccurred())
		direct, err := client.NewWithWatch(restConfig, client.Options{Scheme: scheme})
		Expect(err).NotTo(HaveOccurred())
		boom := errors.New("boom")
		r.Client = interceptor.NewClient(direct, interceptor.Funcs{
			Patch: func(context.Context, client.WithWatch, client.Object, client.Patch, ...client.PatchOption) error {
				return boom
			},
		})
		_, err = r.Reconcile(ctx, req)
		Expect(err).To(MatchError(boom))
		r.Client = k8s
		Expect(r.Reconcile(ctx, req)).To(Equal(ctrl.Result{}))
		Expect(e.fetch(ctx, svc).Finalizers).To(BeEmpty())
	})

	It("cuts the words of a provider between two characters", SpecTimeout(patience), func(ctx SpecContext) {
		svc, req := served(ctx, "wordy")
		for len(recorder.Events) > 0 {
			<-recorder.Events
		}
		cloud.ensure = errors.New("x" + strings.Repeat("ö", 1000))
		e.edit(ctx, svc, func() { svc.Spec.Ports[0].Port = 81 })
		_, err := r.Reconcile(ctx, req)
		Expect(err).To(MatchError(cloud.ensure))
		for len(recorder.Events) > 0 {
			Expect(<-recorder.Events).To(Satisfy(utf8.ValidString))
		}
		Expect(apimeta.FindStatusCondition(e.fetch(ctx, svc).Status.Conditions, v1alpha1.ConditionAddressAssigned).Message).To(Equal(cloud.ensure.Error()))
	})
})
