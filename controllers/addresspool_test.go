package controllers_test

import (
	"context"
	"fmt"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"fairlead.dev/fairlead/api/v1alpha1"
	"fairlead.dev/fairlead/controllers"
	"fairlead.dev/fairlead/internal/cloud/baremetal"
)

// poolCounts returns a poll for the IPv4 capacity, assigned and available of pool.
func poolCounts(ctx context.Context, pool *v1alpha1.AddressPool) func() ([]int64, error) {
	return func() ([]int64, error) {
		var p v1alpha1.AddressPool
		err := k8s.Get(ctx, client.ObjectKeyFromObject(pool), &p)
		return []int64{p.Status.Capacity.IPv4, p.Status.Assigned.IPv4, p.Status.Available.IPv4}, err
	}
}

// poolCondition returns a poll for a condition of pool as "Status Reason: message".
func poolCondition(ctx context.Context, pool *v1alpha1.AddressPool, kind string) func() string {
	return func() string {
		var p v1alpha1.AddressPool
		if err := k8s.Get(ctx, client.ObjectKeyFromObject(pool), &p); err != nil {
			return err.Error()
		}
		c := apimeta.FindStatusCondition(p.Status.Conditions, kind)
		if c == nil {
			return ""
		}
		return fmt.Sprintf("%s %s: %s", c.Status, c.Reason, c.Message)
	}
}

var _ = Describe("AddressPool", func() {
	DescribeTable("is refused by the API server",
		func(ctx SpecContext, address v1alpha1.AddressRange, want string) {
			pool := &v1alpha1.AddressPool{
				ObjectMeta: metav1.ObjectMeta{GenerateName: "refused-"},
				Spec:       v1alpha1.AddressPoolSpec{Addresses: []v1alpha1.AddressRange{"192.0.2.0/28", address}},
			}
			err := k8s.Create(ctx, pool)
			Expect(err).To(MatchError(HaveSuffix(fmt.Sprintf("spec.addresses[1]: Invalid value: %q: %s", address, want))))
		},
		Entry("a word", v1alpha1.AddressRange("banana"), "is neither a CIDR such as 192.0.2.0/24 nor a range such as 192.0.2.10-192.0.2.20"),
		Entry("one IPv4 address", v1alpha1.AddressRange("192.0.2.7"), "is one address; write it as 192.0.2.7/32"),
		Entry("one IPv6 address", v1alpha1.AddressRange("2001:db8::7"), "is one address; write it as 2001:db8::7/128"),
		Entry("three ends", v1alpha1.AddressRange("192.0.2.1-192.0.2.2-192.0.2.3"), "is neither a CIDR such as 192.0.2.0/24 nor a range such as 192.0.2.10-192.0.2.20"),
		Entry("an IPv4 prefix too long", v1alpha1.AddressRange("192.0.2.0/33"), "has a prefix length over 32, the length of an IPv4 address"),
		Entry("an IPv6 prefix too long", v1alpha1.AddressRange("2001:db8::/129"), "has a prefix length over 128, the length of an IPv6 address"),
		Entry("IPv4 host bits", v1alpha1.AddressRange("192.0.2.5/24"), "has bits beyond its prefix length"),
		Entry("IPv6 host bits", v1alpha1.AddressRange("2001:db8::1/64"), "has bits beyond its prefix length"),
		Entry("mixed families", v1alpha1.AddressRange("192.0.2.1-2001:db8::1"), "mixes IPv4 and IPv6"),
		Entry("a reversed IPv4 range", v1alpha1.AddressRange("192.0.2.10-192.0.2.9"), "is a reversed range; did you mean 192.0.2.9-192.0.2.10?"),
		Entry("a reversed IPv4 range over octets", v1alpha1.AddressRange("192.0.3.0-192.0.2.255"), "is a reversed range; did you mean 192.0.2.255-192.0.3.0?"),
		Entry("a reversed IPv6 range", v1alpha1.AddressRange("2001:db8::10-2001:db8::f"), "is a reversed range; did you mean 2001:db8::f-2001:db8::10?"),
		Entry("an IPv6 range reversed in its first bit", v1alpha1.AddressRange("8000::-1::"), "is a reversed range; did you mean 1::-8000::?"),
		Entry("an IPv6 range reversed in its last bit", v1alpha1.AddressRange("1::1-1::"), "is a reversed range; did you mean 1::-1::1?"),
	)

	DescribeTable("is taken by the API server", func(ctx SpecContext, address v1alpha1.AddressRange) {
		pool := &v1alpha1.AddressPool{
			ObjectMeta: metav1.ObjectMeta{GenerateName: "taken-"},
			Spec:       v1alpha1.AddressPoolSpec{Addresses: []v1alpha1.AddressRange{address}},
		}
		Expect(k8s.Create(ctx, pool, client.DryRunAll)).To(Succeed())
		Expect(pool.Spec.AutoAssign).To(HaveValue(BeTrue()))
	},
		Entry("an IPv4 CIDR", v1alpha1.AddressRange("192.0.2.0/24")),
		Entry("an IPv6 CIDR", v1alpha1.AddressRange("2001:db8::/64")),
		Entry("all of IPv6", v1alpha1.AddressRange("::/0")),
		Entry("an IPv4 range that is no order of strings", v1alpha1.AddressRange("192.0.2.9-192.0.2.10")),
		Entry("an IPv6 range that is no order of strings", v1alpha1.AddressRange("2001:db8::f-2001:db8::10")),
		Entry("a range over a power of two", v1alpha1.AddressRange("2001:db8::ffff-2001:db8:1::")),
		Entry("a range of one address in two spellings", v1alpha1.AddressRange("2001:DB8::F-2001:db8::f")),
		Entry("the longest", v1alpha1.AddressRange("2001:0db8:0000:0000:0000:0000:0000:0001-2001:0db8:0000:0000:0000:0000:0000:0002")),
	)

	It("needs at least one address", func(ctx SpecContext) {
		pool := &v1alpha1.AddressPool{
			ObjectMeta: metav1.ObjectMeta{GenerateName: "empty-"},
			Spec:       v1alpha1.AddressPoolSpec{Addresses: []v1alpha1.AddressRange{}},
		}
		Expect(k8s.Create(ctx, pool)).To(MatchError(ContainSubstring("spec.addresses in body should have at least 1 items")))
	})

	It("takes 256 ranges within the cost limit of the API server", func(ctx SpecContext) {
		pool := &v1alpha1.AddressPool{ObjectMeta: metav1.ObjectMeta{GenerateName: "large-"}}
		for i := range 256 {
			pool.Spec.Addresses = append(pool.Spec.Addresses, v1alpha1.AddressRange(fmt.Sprintf(
				"2001:0db8:aaaa:bbbb:cccc:dddd:%04x:0000-2001:0db8:aaaa:bbbb:cccc:dddd:%04x:ffff", i, i)))
		}
		Expect(k8s.Create(ctx, pool, client.DryRunAll)).To(Succeed())
	})

	It("says what is wrong with a range that slipped in", func(ctx SpecContext) {
		scheme, err := controllers.NewScheme()
		Expect(err).NotTo(HaveOccurred())
		pool := &v1alpha1.AddressPool{
			ObjectMeta: metav1.ObjectMeta{Name: "slipped"},
			Spec:       v1alpha1.AddressPoolSpec{Addresses: []v1alpha1.AddressRange{"192.0.2.0/30", "192.0.2.9-192.0.2.8"}},
		}
		// The API server refuses such a pool, so it is one without its rules.
		lax := fake.NewClientBuilder().WithScheme(scheme).WithObjects(pool).WithStatusSubresource(pool).Build()
		r := &controllers.AddressPoolReconciler{Client: lax, Reporter: reporterFunc(func(string) baremetal.Report {
			return baremetal.Report{
				Capacity: v1alpha1.FamilyCounts{IPv4: 4},
				Faults:   []string{`spec.addresses[1]: "192.0.2.9-192.0.2.8" is a reversed range; did you mean 192.0.2.8-192.0.2.9?`},
			}
		})}
		_, err = r.Reconcile(ctx, ctrl.Request{NamespacedName: client.ObjectKeyFromObject(pool)})
		Expect(err).NotTo(HaveOccurred())
		Expect(lax.Get(ctx, client.ObjectKeyFromObject(pool), pool)).To(Succeed())
		ready := apimeta.FindStatusCondition(pool.Status.Conditions, v1alpha1.ConditionReady)
		Expect(ready).To(And(
			HaveField("Status", metav1.ConditionFalse), HaveField("Reason", v1alpha1.ReasonInvalidAddresses),
			HaveField("Message", `spec.addresses[1]: "192.0.2.9-192.0.2.8" is a reversed range; did you mean 192.0.2.8-192.0.2.9?`)))
		Expect(pool.Status.Capacity).To(Equal(v1alpha1.FamilyCounts{IPv4: 4}))
	})
})

type reporterFunc func(name string) baremetal.Report

func (f reporterFunc) Report(name string) (baremetal.Report, bool) { return f(name), true }
