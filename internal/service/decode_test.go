package service_test

import (
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"

	"fairlead.dev/fairlead/internal/service"
)

// decoded returns what the node knows of the web Service after change.
func decoded(t *testing.T, change func(*corev1.Service)) *service.Service {
	t.Helper()
	st := service.NewStore("node1")
	st.SetService(webService(change))
	got, ok := st.Snapshot().Services.Get(web)
	if !ok {
		t.Fatal("the Service is not in the Snapshot")
	}
	return got
}

func wantFaults(t *testing.T, got *service.Service, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, got.Faults); diff != "" {
		t.Errorf("faults mismatch (-want +got):\n%s", diff)
	}
}

// TestPolicies: which policies are Local, and where health is told.
func TestPolicies(t *testing.T) {
	local := corev1.ServiceExternalTrafficPolicyLocal
	for name, tc := range map[string]struct {
		change             func(*corev1.Service)
		internal, external bool
		health             uint16
		faults             []string
	}{
		"neither is said": {change: func(*corev1.Service) {}},
		"both are Cluster": {change: func(s *corev1.Service) {
			s.Spec.InternalTrafficPolicy = new(corev1.ServiceInternalTrafficPolicyCluster)
			s.Spec.Type, s.Spec.ExternalTrafficPolicy = corev1.ServiceTypeNodePort, corev1.ServiceExternalTrafficPolicyCluster
		}},
		"internal Local": {change: func(s *corev1.Service) {
			s.Spec.InternalTrafficPolicy = new(corev1.ServiceInternalTrafficPolicyLocal)
		}, internal: true},
		"external Local of a ClusterIP Service says nothing": {change: func(s *corev1.Service) {
			s.Spec.Type, s.Spec.ExternalTrafficPolicy = corev1.ServiceTypeClusterIP, local
		}},
		"external Local of a ClusterIP Service with external IPs": {change: func(s *corev1.Service) {
			s.Spec.Type, s.Spec.ExternalTrafficPolicy, s.Spec.ExternalIPs = corev1.ServiceTypeClusterIP, local, []string{"192.0.2.1"}
		}, external: true},
		"external Local of node ports, which have no health check": {change: func(s *corev1.Service) {
			s.Spec.Type, s.Spec.ExternalTrafficPolicy, s.Spec.HealthCheckNodePort = corev1.ServiceTypeNodePort, local, 30000
		}, external: true},
		"external Local of a load balancer": {change: func(s *corev1.Service) {
			s.Spec.Type, s.Spec.ExternalTrafficPolicy, s.Spec.HealthCheckNodePort = corev1.ServiceTypeLoadBalancer, local, 30000
		}, external: true, health: 30000},
		"external Cluster of a load balancer leaves its health check port": {change: func(s *corev1.Service) {
			s.Spec.Type, s.Spec.HealthCheckNodePort = corev1.ServiceTypeLoadBalancer, 30000
		}},
		"policies and a port that are none": {change: func(s *corev1.Service) {
			s.Spec.InternalTrafficPolicy = new(corev1.ServiceInternalTrafficPolicy("Near"))
			s.Spec.Type, s.Spec.ExternalTrafficPolicy, s.Spec.HealthCheckNodePort = corev1.ServiceTypeLoadBalancer, "Far", 70000
		}, faults: []string{
			`spec.internalTrafficPolicy: Invalid value: "Near": must be Cluster or Local`,
			`spec.externalTrafficPolicy: Invalid value: "Far": must be Cluster or Local`,
		}},
		"a health check port that is none": {change: func(s *corev1.Service) {
			s.Spec.Type, s.Spec.ExternalTrafficPolicy, s.Spec.HealthCheckNodePort = corev1.ServiceTypeLoadBalancer, local, 70000
		}, external: true, faults: []string{`spec.healthCheckNodePort: Invalid value: 70000: must be a port between 1 and 65535`}},
	} {
		t.Run(name, func(t *testing.T) {
			got := decoded(t, tc.change)
			if got.InternalLocal != tc.internal || got.ExternalLocal != tc.external || got.HealthCheckNodePort != tc.health {
				t.Errorf("internal Local %t, external Local %t, health check port %d; want %t, %t, %d",
					got.InternalLocal, got.ExternalLocal, got.HealthCheckNodePort, tc.internal, tc.external, tc.health)
			}
			wantFaults(t, got, tc.faults...)
		})
	}
}

// TestAffinity: for how long a client stays with its endpoint.
func TestAffinity(t *testing.T) {
	seconds := func(n int32) *corev1.SessionAffinityConfig {
		return &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: &n}}
	}
	for name, tc := range map[string]struct {
		affinity corev1.ServiceAffinity
		config   *corev1.SessionAffinityConfig
		want     time.Duration
		fault    string
	}{
		"not said":                        {},
		"None":                            {affinity: corev1.ServiceAffinityNone, config: seconds(5)},
		"ClientIP":                        {affinity: corev1.ServiceAffinityClientIP, config: seconds(5), want: 5 * time.Second},
		"ClientIP without a timeout":      {affinity: corev1.ServiceAffinityClientIP, config: &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{}}, want: 3 * time.Hour},
		"ClientIP without anything":       {affinity: corev1.ServiceAffinityClientIP, want: 3 * time.Hour},
		"an affinity that is none":        {affinity: "Cookie", fault: `spec.sessionAffinity: Invalid value: "Cookie": must be None or ClientIP`},
		"a timeout of nothing":            {affinity: corev1.ServiceAffinityClientIP, config: seconds(0), want: 3 * time.Hour, fault: `spec.sessionAffinityConfig.clientIP.timeoutSeconds: Invalid value: 0: must be between 1 and 86400`},
		"a timeout longer than the API's": {affinity: corev1.ServiceAffinityClientIP, config: seconds(86401), want: 3 * time.Hour, fault: `spec.sessionAffinityConfig.clientIP.timeoutSeconds: Invalid value: 86401: must be between 1 and 86400`},
	} {
		t.Run(name, func(t *testing.T) {
			got := decoded(t, func(s *corev1.Service) { s.Spec.SessionAffinity, s.Spec.SessionAffinityConfig = tc.affinity, tc.config })
			if got.Affinity != tc.want {
				t.Errorf("Affinity = %s, want %s", got.Affinity, tc.want)
			}
			if tc.fault == "" {
				wantFaults(t, got)
			} else {
				wantFaults(t, got, tc.fault)
			}
		})
	}
}

// TestSourceRanges: who may reach the load balancer addresses.
func TestSourceRanges(t *testing.T) {
	everyone := []netip.Prefix(nil)
	ranges := func(s ...string) []netip.Prefix {
		out := []netip.Prefix{}
		for _, p := range s {
			out = append(out, netip.MustParsePrefix(p))
		}
		return out
	}
	for name, tc := range map[string]struct {
		in     []string
		want   []netip.Prefix
		faults []string
	}{
		"none":                                    {nil, everyone, nil},
		"of one family, the other is closed":      {[]string{"10.0.0.0/8"}, ranges("10.0.0.0/8"), nil},
		"in order, each once":                     {[]string{"fd00::/8", "10.0.0.0/8", "10.0.0.0/7", "fd00::/8"}, ranges("10.0.0.0/7", "10.0.0.0/8", "fd00::/8"), nil},
		"with space around":                       {[]string{" 10.0.0.0/8 ", "\tfd00::/8"}, ranges("10.0.0.0/8", "fd00::/8"), nil},
		"with bits beyond the length":             {[]string{"10.1.2.3/8"}, ranges("10.0.0.0/8"), nil},
		"with zeros in front, as in old objects":  {[]string{"010.000.001.0/24"}, ranges("10.0.1.0/24"), nil},
		"IPv4 in IPv6 notation":                   {[]string{"::ffff:10.0.0.0/104"}, ranges("10.0.0.0/8"), nil},
		"/0 of IPv4 alone is everyone":            {[]string{"0.0.0.0/0"}, everyone, nil},
		"/0 of IPv6 alone is everyone":            {[]string{"::/0"}, everyone, nil},
		"/0 of both is everyone":                  {[]string{"0.0.0.0/0", "::/0"}, everyone, nil},
		"/0 beside a range of its family":         {[]string{"0.0.0.0/0", "10.0.0.0/8"}, everyone, nil},
		"/0 of one family, a range of the other":  {[]string{"fd00::/8", "0.0.0.0/0", "10.0.0.0/8"}, ranges("0.0.0.0/0", "fd00::/8"), nil},
		"/0 of IPv6, a range of IPv4":             {[]string{"10.0.0.0/8", "::/0"}, ranges("10.0.0.0/8", "::/0"), nil},
		"/0 with bits beyond the length":          {[]string{"10.0.0.0/0"}, everyone, nil},
		"empty strings say nothing":               {[]string{"", " "}, everyone, nil},
		"one that is none beside one that is one": {[]string{"10.0.0.0", "fd00::/8"}, ranges("fd00::/8"), []string{`spec.loadBalancerSourceRanges[0]: Invalid value: "10.0.0.0": must be a CIDR`}},
		"only such that are none let nobody in":   {[]string{"10.0.0.0/33"}, ranges(), []string{`spec.loadBalancerSourceRanges[0]: Invalid value: "10.0.0.0/33": must be a CIDR`}},
	} {
		t.Run(name, func(t *testing.T) {
			got := decoded(t, func(s *corev1.Service) { s.Spec.LoadBalancerSourceRanges = tc.in })
			if diff := cmp.Diff(tc.want, got.SourceRanges, cmpopts.EquateComparable(netip.Prefix{})); diff != "" {
				t.Errorf("SourceRanges mismatch (-want +got):\n%s", diff)
			}
			wantFaults(t, got, tc.faults...)
		})
	}
	t.Run("the annotation for cloud providers says nothing, as with kube-proxy", func(t *testing.T) {
		got := decoded(t, func(s *corev1.Service) {
			s.Annotations = map[string]string{corev1.AnnotationLoadBalancerSourceRangesKey: "10.0.0.0/8"}
		})
		if got.SourceRanges != nil {
			t.Errorf("SourceRanges = %v, want nil", got.SourceRanges)
		}
	})
}

// TestScheduler: how endpoints are picked.
func TestScheduler(t *testing.T) {
	const key = "fairlead.dev/scheduler"
	for value, want := range map[string]service.Scheduler{
		"random": service.Random, "round-robin": service.RoundRobin, "source-hash": service.SourceHash, "maglev": service.Maglev,
	} {
		t.Run(value, func(t *testing.T) {
			got := decoded(t, func(s *corev1.Service) { s.Annotations = map[string]string{key: value} })
			if got.Scheduler != want {
				t.Errorf("Scheduler = %d, want %d", got.Scheduler, want)
			}
			wantFaults(t, got)
		})
	}
	t.Run("one that is not there is random", func(t *testing.T) {
		got := decoded(t, func(s *corev1.Service) { s.Annotations = map[string]string{key: "least-connection"} })
		if got.Scheduler != service.Random {
			t.Errorf("Scheduler = %d, want %d", got.Scheduler, service.Random)
		}
		wantFaults(t, got, `metadata.annotations[fairlead.dev/scheduler]: Invalid value: "least-connection": must be random, round-robin, source-hash or maglev`)
	})
}

// TestFaults: what cannot be used is named, the rest is served.
func TestFaults(t *testing.T) {
	got := decoded(t, func(s *corev1.Service) {
		s.Spec.ClusterIP, s.Spec.ClusterIPs = "10.0.0.1", []string{"010.0.0.01", "nonsense"}
		s.Spec.ExternalIPs = []string{"192.0.2.1", "fe80::1%eth0"}
		s.Spec.Ports = []corev1.ServicePort{
			{Name: "a", Port: 80, NodePort: 70000}, {Name: "b", Port: 0}, {Name: "c", Port: 1, Protocol: "ICMP"},
		}
		s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "192.0.2"}, {Hostname: "lb.example.com"}, {IP: "192.0.2.2"}}
	})
	wantFaults(t, got,
		`spec.clusterIPs[1]: Invalid value: "nonsense": must be an IP address`,
		`spec.externalIPs[1]: Invalid value: "fe80::1%eth0": must be an IP address`,
		`status.loadBalancer.ingress[0].ip: Invalid value: "192.0.2": must be an IP address`,
		`spec.ports[0].nodePort: Invalid value: 70000: must be a port between 1 and 65535`,
		`spec.ports[1].port: Invalid value: 0: must be a port between 1 and 65535`,
		`spec.ports[2].protocol: Invalid value: "ICMP": must be TCP, UDP or SCTP`,
	)
	addr := func(s string) []netip.Addr { return []netip.Addr{netip.MustParseAddr(s)} }
	want := &service.Service{Name: web, ClusterIPs: addr("10.0.0.1"), ExternalIPs: addr("192.0.2.1"), LoadBalancerIPs: addr("192.0.2.2"),
		Ports: []service.Port{{Name: "a", Protocol: service.TCP, Port: 80}}, Faults: got.Faults}
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{})); diff != "" {
		t.Errorf("Service mismatch (-want +got):\n%s", diff)
	}
}
