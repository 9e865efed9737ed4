package controllers_test

import (
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/metrics"

	"fairlead.dev/fairlead/api/v1alpha1"
)

// statusRepairs reads the metric as a scrape does.
func statusRepairs() float64 {
	GinkgoHelper()
	families, err := metrics.Registry.Gather()
	Expect(err).NotTo(HaveOccurred())
	for _, f := range families {
		if f.GetName() == "fairlead_loadbalancer_status_repairs_total" {
			return f.GetMetric()[0].GetCounter().GetValue()
		}
	}
	Fail("there is no such metric")
	return 0
}

var _ = Describe("Bare-metal LoadBalancer", Ordered, func() {
	var e *lbEnv
	BeforeAll(func(ctx SpecContext) {
		e = newLBEnv(ctx, "baremetal", k8s, restConfig)
		e.start()
	})

	It("assigns the lowest free address, with finalizer, condition and events", SpecTimeout(patience), func(ctx SpecContext) {
		e.pool(ctx, "plain", "198.51.100.8-198.51.100.9")
		svc := e.service(ctx, "plain")

		Eventually(ctx, e.told(ctx, svc)).Should(Equal("True Assigned: assigned 198.51.100.8"))
		got := e.fetch(ctx, svc)
		Expect(got.Finalizers).To(ConsistOf(cleanupFinalizer))
		Expect(got.Annotations).To(HaveKeyWithValue(v1alpha1.AnnotationProvider, "baremetal"))
		Expect(got.Status.LoadBalancer.Ingress).To(Equal([]corev1.LoadBalancerIngress{
			{IP: "198.51.100.8", IPMode: ptr.To(corev1.LoadBalancerIPModeVIP)},
		}))
		Eventually(ctx, e.events(ctx, svc)).Should(ConsistOf("EnsuringLoadBalancer", "UnAvailableLoadBalancer", "EnsuredLoadBalancer"))
		e.remove(ctx, svc)
		Eventually(ctx, e.events(ctx, svc)).Should(ContainElements("DeletingLoadBalancer", "DeletedLoadBalancer"))
	})

	It("keeps addresses over a restart, also of a pool that is gone", SpecTimeout(patience), func(ctx SpecContext) {
		first := e.pool(ctx, "restart", "198.51.100.16-198.51.100.19")
		a, b := e.service(ctx, "restart-a"), e.service(ctx, "restart-b")
		Eventually(ctx, e.ips(ctx, a)).ShouldNot(BeEmpty())
		Eventually(ctx, e.ips(ctx, b)).ShouldNot(BeEmpty())
		before := [][]string{e.ips(ctx, a)(), e.ips(ctx, b)()}
		rv := e.fetch(ctx, a).ResourceVersion

		e.stop()
		Expect(k8s.Delete(ctx, first)).To(Succeed())
		c := e.service(ctx, "restart-c")
		e.start()
		e.pool(ctx, "restart-new", "198.51.100.16-198.51.100.18")

		Eventually(ctx, e.ips(ctx, c)).Should(Equal([]string{"198.51.100.18"}))
		Expect([][]string{e.ips(ctx, a)(), e.ips(ctx, b)()}).To(Equal(before))
		Expect(e.fetch(ctx, a).ResourceVersion).To(Equal(rv), "nothing changed, so nothing is written")
	})

	It("refuses an address outside of the pools and keeps what the Service had", SpecTimeout(patience), func(ctx SpecContext) {
		e.pool(ctx, "requests", "198.51.100.24-198.51.100.27")
		svc := e.service(ctx, "requests")
		Eventually(ctx, e.ips(ctx, svc)).Should(Equal([]string{"198.51.100.24"}))

		e.edit(ctx, svc, func() { svc.Annotations[v1alpha1.AnnotationAddresses] = "203.0.113.9" })
		Eventually(ctx, e.told(ctx, svc)).Should(Equal("False AddressNotInPool: " +
			"metadata.annotations[fairlead.dev/addresses]: 203.0.113.9 is in no AddressPool; there are: requests"))
		Expect(e.ips(ctx, svc)()).To(Equal([]string{"198.51.100.24"}))
		Eventually(ctx, e.events(ctx, svc)).Should(ContainElement("AddressNotInPool"))

		e.edit(ctx, svc, func() { svc.Annotations[v1alpha1.AnnotationAddresses] = "198.51.100.27" })
		Eventually(ctx, e.told(ctx, svc)).Should(Equal("True Assigned: assigned 198.51.100.27"))

		other := e.service(ctx, "requests-other", func(s *corev1.Service) { s.Spec.LoadBalancerIP = "198.51.100.27" })
		Eventually(ctx, e.told(ctx, other)).Should(Equal("False AddressTaken: " +
			"spec.loadBalancerIP: 198.51.100.27 belongs to the Service " + e.ns + "/requests"))
		e.remove(ctx, svc)
		Eventually(ctx, e.told(ctx, other)).Should(Equal("True Assigned: assigned 198.51.100.27"))
	})

	It("serves the oldest that waits as soon as an address is free", SpecTimeout(patience), func(ctx SpecContext) {
		e.pool(ctx, "small", "198.51.100.32/32")
		holder := e.service(ctx, "holder")
		Eventually(ctx, e.ips(ctx, holder)).ShouldNot(BeEmpty())
		older, younger := e.service(ctx, "waiting-1"), e.service(ctx, "waiting-2")
		for _, svc := range []*corev1.Service{older, younger} {
			Eventually(ctx, e.told(ctx, svc)).Should(Equal("False PoolExhausted: no IPv4 address is free in the pools tried: small"))
			Eventually(ctx, e.events(ctx, svc)).Should(ConsistOf("EnsuringLoadBalancer", "UnAvailableLoadBalancer", "PoolExhausted"))
		}

		e.remove(ctx, holder)
		Eventually(ctx, e.ips(ctx, older)).Should(Equal([]string{"198.51.100.32"}))
		Consistently(ctx, e.ips(ctx, younger), "300ms").Should(BeEmpty())
		Expect(e.events(ctx, younger)()).To(HaveLen(3))
	})

	It("serves Services that are older than the pool, the oldest first", SpecTimeout(patience), func(ctx SpecContext) {
		one, two := e.service(ctx, "early-1"), e.service(ctx, "early-2")
		Eventually(ctx, e.told(ctx, two)).Should(Equal("False NoPool: no AddressPool assigns IPv4 addresses by itself; there are: (there are none)"))
		Eventually(ctx, e.told(ctx, one)).Should(HavePrefix("False NoPool"))
		late := e.pool(ctx, "late", "198.51.100.40/32")
		Eventually(ctx, e.ips(ctx, one)).Should(Equal([]string{"198.51.100.40"}))
		Eventually(ctx, e.told(ctx, two)).Should(HavePrefix("False PoolExhausted"))

		e.edit(ctx, late, func() { late.Spec.Addresses = append(late.Spec.Addresses, "198.51.100.42/31") })
		Eventually(ctx, e.ips(ctx, two)).Should(Equal([]string{"198.51.100.42"}))
	})

	It("takes nothing from a running Service when its pool shrinks", SpecTimeout(patience), func(ctx SpecContext) {
		shrink := e.pool(ctx, "shrink", "198.51.100.48/31")
		svc := e.service(ctx, "shrink")
		Eventually(ctx, e.ips(ctx, svc)).Should(Equal([]string{"198.51.100.48"}))
		e.edit(ctx, shrink, func() { shrink.Spec.Addresses = []v1alpha1.AddressRange{"198.51.100.49/32"} })
		Eventually(ctx, poolCounts(ctx, shrink)).Should(Equal([]int64{1, 0, 1}))
		e.edit(ctx, svc, func() { svc.Spec.Ports[0].Port = 81 })
		Consistently(ctx, e.ips(ctx, svc), "300ms").Should(Equal([]string{"198.51.100.48"}))
	})

	It("leaves Services of other classes alone", SpecTimeout(patience), func(ctx SpecContext) {
		e.pool(ctx, "foreign", "198.51.100.56/29")
		foreign := e.service(ctx, "foreign", func(s *corev1.Service) { s.Spec.LoadBalancerClass = new("example.com/other") })
		served := e.service(ctx, "served", func(s *corev1.Service) {
			s.Spec.LoadBalancerClass = new("example.com/other")
			s.Annotations[v1alpha1.AnnotationProvider] = "baremetal"
			s.Annotations[v1alpha1.AnnotationProviderClass] = "example.com/other"
		})
		classless := e.service(ctx, "classless", func(s *corev1.Service) { s.Spec.LoadBalancerClass = nil })
		Eventually(ctx, e.ips(ctx, e.service(ctx, "ours"))).ShouldNot(BeEmpty())
		for _, svc := range []*corev1.Service{foreign, served, classless} {
			Expect(e.fetch(ctx, svc).ResourceVersion).To(Equal(svc.ResourceVersion))
		}
	})

	It("releases and clears a Service that is no LoadBalancer any more", SpecTimeout(patience), func(ctx SpecContext) {
		e.pool(ctx, "leaving", "198.51.100.64/32")
		svc := e.service(ctx, "leaving")
		Eventually(ctx, e.ips(ctx, svc)).ShouldNot(BeEmpty())
		next := e.service(ctx, "leaving-next")

		e.edit(ctx, svc, func() {
			svc.Spec.Type, svc.Spec.LoadBalancerClass = corev1.ServiceTypeClusterIP, nil
			svc.Spec.AllocateLoadBalancerNodePorts = nil
		})
		Eventually(ctx, e.ips(ctx, next)).Should(Equal([]string{"198.51.100.64"}))
		Eventually(ctx, func(g Gomega) {
			got := e.fetch(ctx, svc)
			g.Expect(got.Finalizers).To(BeEmpty())
			g.Expect(got.Annotations).NotTo(Or(HaveKey(v1alpha1.AnnotationProvider), HaveKey(v1alpha1.AnnotationProviderClass)))
			g.Expect(got.Status.LoadBalancer.Ingress).To(BeEmpty())
			g.Expect(got.Status.Conditions).To(BeEmpty())
		}).Should(Succeed())
	})

	It("cleans up at start what changed while nobody looked", SpecTimeout(patience), func(ctx SpecContext) {
		e.pool(ctx, "leftover", "198.51.100.72/32")
		svc := e.service(ctx, "leftover")
		Eventually(ctx, e.ips(ctx, svc)).ShouldNot(BeEmpty())
		e.stop()
		e.edit(ctx, svc, func() {
			svc.Spec.Type, svc.Spec.LoadBalancerClass = corev1.ServiceTypeClusterIP, nil
			svc.Spec.AllocateLoadBalancerNodePorts = nil
		})
		e.start()
		Eventually(ctx, func() []string { return e.fetch(ctx, svc).Finalizers }).Should(BeEmpty())
		Expect(e.told(ctx, svc)()).To(BeEmpty())
	})

	It("puts back a status that somebody else wrote", SpecTimeout(patience), func(ctx SpecContext) {
		e.pool(ctx, "drift", "198.51.100.80/32")
		svc := e.service(ctx, "drift")
		Eventually(ctx, e.told(ctx, svc)).Should(HavePrefix("True"))
		got := e.fetch(ctx, svc)
		before, repairs := got.DeepCopy(), statusRepairs()
		got.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "203.0.113.1"}}
		Expect(k8s.Status().Patch(ctx, got, client.MergeFrom(before))).To(Succeed())
		Eventually(ctx, e.ips(ctx, svc)).Should(Equal([]string{"198.51.100.80"}))
		Consistently(ctx, e.ips(ctx, svc), "200ms").Should(Equal([]string{"198.51.100.80"}))
		Expect(statusRepairs() - repairs).To(BeEquivalentTo(1))
	})

	It("assigns from a pool without autoAssign only on request", SpecTimeout(patience), func(ctx SpecContext) {
		reserved := &v1alpha1.AddressPool{Spec: v1alpha1.AddressPoolSpec{
			Addresses: []v1alpha1.AddressRange{"198.51.100.88/30"}, AutoAssign: new(false)}}
		reserved.Name = "reserved"
		Expect(k8s.Create(ctx, reserved)).To(Succeed())
		DeferCleanup(func(ctx SpecContext) { Expect(k8s.Delete(ctx, reserved)).To(Succeed()) })

		auto := e.service(ctx, "reserved-auto")
		Eventually(ctx, e.told(ctx, auto)).Should(Equal("False NoPool: no AddressPool assigns IPv4 addresses by itself; there are: reserved"))
		for i, key := range []string{v1alpha1.AnnotationPool, "metallb.io/address-pool", "metallb.universe.tf/address-pool"} {
			svc := e.service(ctx, []string{"reserved-a", "reserved-b", "reserved-c"}[i], annotated(key, "reserved"))
			Eventually(ctx, e.ips(ctx, svc)).ShouldNot(BeEmpty(), key)
		}
		svc := e.service(ctx, "reserved-d", annotated("metallb.io/loadBalancerIPs", "198.51.100.91"))
		Eventually(ctx, e.ips(ctx, svc)).Should(Equal([]string{"198.51.100.91"}))
	})

	It("assigns nothing new from the younger of two pools that overlap", SpecTimeout(patience), func(ctx SpecContext) {
		older := e.pool(ctx, "a-older", "198.51.100.96/32")
		Eventually(ctx, poolCounts(ctx, older)).Should(Equal([]int64{1, 0, 1}))
		younger := e.pool(ctx, "b-younger", "198.51.100.96-198.51.100.99")
		Eventually(ctx, poolCondition(ctx, younger, v1alpha1.ConditionConflict)).Should(Equal(
			"True Overlap: older AddressPools have some of the addresses, so nothing new is assigned from here: a-older"))
		Expect(poolCondition(ctx, younger, v1alpha1.ConditionReady)()).To(HavePrefix("False Overlap"))
		Expect(poolCondition(ctx, older, v1alpha1.ConditionConflict)()).To(HavePrefix("False NoOverlap"))

		Eventually(ctx, e.ips(ctx, e.service(ctx, "overlap-1"))).Should(Equal([]string{"198.51.100.96"}))
		two := e.service(ctx, "overlap-2", annotated(v1alpha1.AnnotationPool, "b-younger"))
		Eventually(ctx, e.told(ctx, two)).Should(Equal("False PoolConflict: metadata.annotations[fairlead.dev/pool]: " +
			`the AddressPool "b-younger" overlaps older ones and assigns nothing: a-older`))

		Expect(k8s.Delete(ctx, older)).To(Succeed())
		Eventually(ctx, e.ips(ctx, two)).Should(Equal([]string{"198.51.100.97"}))
		Eventually(ctx, poolCounts(ctx, younger)).Should(Equal([]int64{4, 2, 2}))
	})
})

var _ = Describe("Bare-metal LoadBalancer on a dual-stack cluster", Ordered, func() {
	var e *lbEnv
	BeforeAll(func(ctx SpecContext) {
		e = newLBEnv(ctx, "dual", k8s, restConfig)
		e.start()
	})
	families := func(policy corev1.IPFamilyPolicy, families ...corev1.IPFamily) func(*corev1.Service) {
		return func(svc *corev1.Service) { svc.Spec.IPFamilyPolicy, svc.Spec.IPFamilies = &policy, families }
	}

	It("follows the families of the Service", SpecTimeout(patience), func(ctx SpecContext) {
		pool := e.pool(ctx, "both", "198.51.100.0/30", "2001:db8::/64")
		for _, tc := range []struct {
			name   string
			policy corev1.IPFamilyPolicy
			in     []corev1.IPFamily
			want   []string
		}{
			{"four", corev1.IPFamilyPolicySingleStack, []corev1.IPFamily{"IPv4"}, []string{"198.51.100.0"}},
			{"six", corev1.IPFamilyPolicySingleStack, []corev1.IPFamily{"IPv6"}, []string{"2001:db8::"}},
			{"require", corev1.IPFamilyPolicyRequireDualStack, []corev1.IPFamily{"IPv4", "IPv6"}, []string{"198.51.100.1", "2001:db8::1"}},
			{"prefer", corev1.IPFamilyPolicyPreferDualStack, []corev1.IPFamily{"IPv6", "IPv4"}, []string{"2001:db8::2", "198.51.100.2"}},
		} {
			Eventually(ctx, e.ips(ctx, e.service(ctx, tc.name, families(tc.policy, tc.in...)))).Should(Equal(tc.want), tc.name)
		}
		Eventually(ctx, func(g Gomega) {
			g.Expect(e.client.Get(ctx, client.ObjectKeyFromObject(pool), pool)).To(Succeed())
			g.Expect(pool.Status.Capacity).To(Equal(v1alpha1.FamilyCounts{IPv4: 4, IPv6: 1<<63 - 1}))
			g.Expect(pool.Status.Assigned).To(Equal(v1alpha1.FamilyCounts{IPv4: 3, IPv6: 3}))
			g.Expect(pool.Status.Available).To(Equal(v1alpha1.FamilyCounts{IPv4: 1, IPv6: 1<<63 - 1}))
			g.Expect(apimeta.IsStatusConditionTrue(pool.Status.Conditions, v1alpha1.ConditionReady)).To(BeTrue())
		}).Should(Succeed())
	})

	It("gives both or none where both are required, and completes what is preferred", SpecTimeout(patience), func(ctx SpecContext) {
		pool := e.pool(ctx, "four", "198.51.100.8/30")
		require := e.service(ctx, "a-require", families(corev1.IPFamilyPolicyRequireDualStack, "IPv4", "IPv6"))
		prefer := e.service(ctx, "b-prefer", families(corev1.IPFamilyPolicyPreferDualStack, "IPv4", "IPv6"))
		Eventually(ctx, e.ips(ctx, prefer)).Should(Equal([]string{"198.51.100.8"}))
		Eventually(ctx, e.told(ctx, require)).Should(Equal("False NoPool: no AddressPool assigns IPv6 addresses by itself; there are: four"))
		Expect(e.ips(ctx, require)()).To(BeEmpty())

		e.edit(ctx, pool, func() { pool.Spec.Addresses = append(pool.Spec.Addresses, "2001:db8::8-2001:db8::9") })
		Eventually(ctx, e.ips(ctx, require)).Should(Equal([]string{"198.51.100.9", "2001:db8::8"}))
		Eventually(ctx, e.ips(ctx, prefer)).Should(Equal([]string{"198.51.100.8", "2001:db8::9"}))

		e.edit(ctx, prefer, func() {
			families(corev1.IPFamilyPolicySingleStack, "IPv4")(prefer)
			prefer.Spec.ClusterIPs = prefer.Spec.ClusterIPs[:1]
		})
		Eventually(ctx, e.ips(ctx, prefer)).Should(Equal([]string{"198.51.100.8"}))
		six := e.service(ctx, "six", families(corev1.IPFamilyPolicySingleStack, "IPv6"))
		Eventually(ctx, e.ips(ctx, six)).Should(Equal([]string{"2001:db8::9"}))
	})
})
