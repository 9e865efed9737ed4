package baremetal

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"fairlead.dev/fairlead/api/v1alpha1"
	"fairlead.dev/fairlead/internal/cloud"
	"fairlead.dev/fairlead/internal/ipfamily"
)

// Owner is who has an address: one Service, not its successor of the same name.
type Owner struct {
	types.NamespacedName
	UID types.UID
}

// OwnerOf returns svc as an Owner.
func OwnerOf(svc *corev1.Service) Owner {
	return Owner{NamespacedName: types.NamespacedName{Namespace: svc.Namespace, Name: svc.Name}, UID: svc.UID}
}

// Request is what a Service wants.
type Request struct {
	Owner   Owner
	Created time.Time
	// Families are those of spec.ipFamilies, in its order.
	Families []ipfamily.Family
	// Partial says that some of Families are better than none: PreferDualStack.
	Partial bool
	// Addresses are asked for by AddressesFrom, at most one per family; none means any.
	Addresses     []netip.Addr
	AddressesFrom string
	// Pool is asked for by PoolFrom; empty means any with autoAssign.
	Pool, PoolFrom string
}

// before says whether r is served before other: explicit requests first, because no
// other address can serve them, then the oldest. The name breaks ties, as creation
// timestamps have whole seconds.
func (r Request) before(other Request) int {
	rank := func(r Request) int {
		if r.Pool != "" || len(r.Addresses) > 0 {
			return 0
		}
		return 1
	}
	return cmp.Or(
		cmp.Compare(rank(r), rank(other)),
		r.Created.Compare(other.Created),
		cmp.Compare(r.Owner.Namespace, other.Owner.Namespace),
		cmp.Compare(r.Owner.Name, other.Owner.Name),
		cmp.Compare(r.Owner.UID, other.Owner.UID),
	)
}

// wanted returns the address of family f that is asked for.
func (r Request) wanted(f ipfamily.Family) (netip.Addr, bool) {
	for _, a := range r.Addresses {
		if ipfamily.Of(a) == f {
			return a, true
		}
	}
	return netip.Addr{}, false
}

// Decode returns what svc wants. Where it asks for what cannot be, Pending says so, and
// the Request has its families only.
func Decode(svc *corev1.Service) (Request, *cloud.Pending) {
	r := Request{Owner: OwnerOf(svc), Created: svc.CreationTimestamp.Time}
	for _, f := range svc.Spec.IPFamilies {
		if f == corev1.IPv6Protocol {
			r.Families = append(r.Families, ipfamily.IPv6)
		} else {
			r.Families = append(r.Families, ipfamily.IPv4)
		}
	}
	if p := svc.Spec.IPFamilyPolicy; p != nil {
		r.Partial = *p == corev1.IPFamilyPolicyPreferDualStack
	}
	pool, pending := only("a pool", annotations(svc,
		v1alpha1.AnnotationPool, v1alpha1.AnnotationMetalLBPool, v1alpha1.AnnotationOldMetalLBPool))
	if pending != nil {
		return r, pending
	}
	asked := annotations(svc,
		v1alpha1.AnnotationAddresses, v1alpha1.AnnotationMetalLBAddresses, v1alpha1.AnnotationOldMetalLBAddresses)
	if ip := svc.Spec.LoadBalancerIP; ip != "" {
		asked = append(asked, ask{from: "spec.loadBalancerIP", value: ip})
	}
	list, pending := only("addresses", asked)
	if pending != nil {
		return r, pending
	}
	addrs, pending := addresses(list, r.Families)
	if pending != nil {
		return r, pending
	}
	r.Pool, r.PoolFrom = pool.value, pool.from
	r.Addresses, r.AddressesFrom = addrs, list.from
	return r, nil
}

// ask is one way to ask for something, and what is asked for.
type ask struct{ from, value string }

// annotations returns those of keys that svc has with a value, in the order of keys.
func annotations(svc *corev1.Service, keys ...string) []ask {
	var found []ask
	for _, key := range keys {
		if value := strings.TrimSpace(svc.Annotations[key]); value != "" {
			found = append(found, ask{from: "metadata.annotations[" + key + "]", value: value})
		}
	}
	return found
}

// only returns the one of asked, and the zero ask where there is none. More than one
// are refused also when they agree: the next edit would change one of them only.
func only(what string, asked []ask) (ask, *cloud.Pending) {
	switch len(asked) {
	case 0:
		return ask{}, nil
	case 1:
		return asked[0], nil
	}
	var ways []string
	for _, a := range asked {
		ways = append(ways, fmt.Sprintf("%s %q", a.from, a.value))
	}
	return ask{}, &cloud.Pending{
		Reason:  v1alpha1.ReasonConflictingRequests,
		Message: fmt.Sprintf("asks for %s in %d ways at once: %s", what, len(ways), strings.Join(ways, ", ")),
	}
}

// addresses parses the comma list that is asked for by a Service of these families.
func addresses(list ask, families []ipfamily.Family) ([]netip.Addr, *cloud.Pending) {
	if list.value == "" {
		return nil, nil
	}
	refuse := func(reason, format string, args ...any) *cloud.Pending {
		return &cloud.Pending{Reason: reason, Message: list.from + ": " + fmt.Sprintf(format, args...)}
	}
	var addrs []netip.Addr
	var seen [len(ipfamily.All)]bool
	for s := range strings.SplitSeq(list.value, ",") {
		a, err := netip.ParseAddr(strings.TrimSpace(s))
		if err != nil || a.Zone() != "" || a.Is4In6() {
			return nil, refuse(v1alpha1.ReasonAddressInvalid, "%q is not an IP address", s)
		}
		f := ipfamily.Of(a)
		switch {
		case seen[f]:
			return nil, refuse(v1alpha1.ReasonAddressInvalid, "%q has more than one %s address", list.value, f)
		case !slices.Contains(families, f):
			return nil, refuse(v1alpha1.ReasonFamilyMismatch, "%s is an %s address, and spec.ipFamilies is %s", a, f, names(families))
		}
		seen[f] = true
		addrs = append(addrs, a)
	}
	return addrs, nil
}

// names lists values for a message. More than ten are counted.
func names[T any](values []T) string {
	const most = 10
	var b strings.Builder
	for i, v := range values {
		if i == most {
			fmt.Fprintf(&b, " and %d more", len(values)-most)
			break
		}
		if i > 0 {
			b.WriteString(", ")
		}
		fmt.Fprint(&b, v)
	}
	return b.String()
}
