package baremetal

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestDecode(t *testing.T) {
	for name, tc := range map[string]struct {
		annotations map[string]string
		ip          string
		addrs, pool string
		refused     string
	}{
		"nothing asked":           {addrs: "[]"},
		"an address":              {annotations: map[string]string{"fairlead.dev/addresses": "192.0.2.7"}, addrs: "[192.0.2.7]"},
		"one per family":          {annotations: map[string]string{"fairlead.dev/addresses": "192.0.2.7, 2001:db8::7"}, addrs: "[192.0.2.7 2001:db8::7]"},
		"loadBalancerIP":          {ip: "2001:DB8::7", addrs: "[2001:db8::7]"},
		"MetalLB":                 {annotations: map[string]string{"metallb.io/loadBalancerIPs": "192.0.2.7", "metallb.io/address-pool": "blue"}, addrs: "[192.0.2.7]", pool: "blue"},
		"MetalLB's older prefix":  {annotations: map[string]string{"metallb.universe.tf/loadBalancerIPs": "192.0.2.7", "metallb.universe.tf/address-pool": "blue"}, addrs: "[192.0.2.7]", pool: "blue"},
		"a pool":                  {annotations: map[string]string{"fairlead.dev/pool": "blue"}, addrs: "[]", pool: "blue"},
		"an empty annotation":     {annotations: map[string]string{"fairlead.dev/addresses": " "}, addrs: "[]"},
		"a word":                  {annotations: map[string]string{"fairlead.dev/addresses": "banana"}, refused: `AddressInvalid: metadata.annotations[fairlead.dev/addresses]: "banana" is not an IP address`},
		"two of a family":         {annotations: map[string]string{"fairlead.dev/addresses": "192.0.2.7,192.0.2.8"}, refused: `AddressInvalid: metadata.annotations[fairlead.dev/addresses]: "192.0.2.7,192.0.2.8" has more than one IPv4 address`},
		"two ways to ask":         {ip: "192.0.2.7", annotations: map[string]string{"fairlead.dev/addresses": "192.0.2.7"}, refused: `ConflictingRequests: asks for addresses in 2 ways at once: metadata.annotations[fairlead.dev/addresses] "192.0.2.7", spec.loadBalancerIP "192.0.2.7"`},
		"two ways to ask a pool":  {annotations: map[string]string{"fairlead.dev/pool": "a", "metallb.io/address-pool": "b"}, refused: `ConflictingRequests: asks for a pool in 2 ways at once: metadata.annotations[fairlead.dev/pool] "a", metadata.annotations[metallb.io/address-pool] "b"`},
		"IPv4 written as IPv6":    {ip: "::ffff:192.0.2.7", refused: `AddressInvalid: spec.loadBalancerIP: "::ffff:192.0.2.7" is not an IP address`},
		"a comma and nothing":     {annotations: map[string]string{"fairlead.dev/addresses": "192.0.2.7,"}, refused: `AddressInvalid: metadata.annotations[fairlead.dev/addresses]: "" is not an IP address`},
		"loadBalancerIP is no IP": {ip: "x", refused: `AddressInvalid: spec.loadBalancerIP: "x" is not an IP address`},
	} {
		t.Run(name, func(t *testing.T) {
			svc := &corev1.Service{
				ObjectMeta: metav1.ObjectMeta{Annotations: tc.annotations},
				Spec:       corev1.ServiceSpec{LoadBalancerIP: tc.ip, IPFamilies: []corev1.IPFamily{"IPv4", "IPv6"}},
			}
			r, pending := Decode(svc)
			refused := ""
			if pending != nil {
				refused = pending.Reason + ": " + pending.Message
			}
			if refused != tc.refused {
				t.Fatalf("refused %q\n   want %q", refused, tc.refused)
			}
			if refused == "" && (strs(r.Addresses) != tc.addrs || r.Pool != tc.pool) {
				t.Errorf("asks for %s of %q, want %s of %q", strs(r.Addresses), r.Pool, tc.addrs, tc.pool)
			}
		})
	}
	svc := &corev1.Service{Spec: corev1.ServiceSpec{LoadBalancerIP: "2001:db8::7", IPFamilies: []corev1.IPFamily{"IPv4"}}}
	want := "spec.loadBalancerIP: 2001:db8::7 is an IPv6 address, and spec.ipFamilies is IPv4"
	if _, pending := Decode(svc); pending == nil || pending.Reason != "FamilyMismatch" || pending.Message != want {
		t.Errorf("a family it has not: %v, want %q", pending, want)
	}
}
