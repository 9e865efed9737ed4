package node

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"k8s.io/apimachinery/pkg/types"

	"fairlead.dev/fairlead/internal/dataplane"
	"fairlead.dev/fairlead/internal/ipfamily"
	"fairlead.dev/fairlead/internal/service"
)

func TestParseQuestion(t *testing.T) {
	vip := func(s string, p service.Protocol) question {
		return question{vip: netip.MustParseAddrPort(s), protocol: p}
	}
	named := func(namespace, name string) question {
		return question{service: types.NamespacedName{Namespace: namespace, Name: name}}
	}
	for arg, want := range map[string]question{
		"10.96.0.10:53":              vip("10.96.0.10:53", 0),
		"10.96.0.10:53/UDP":          vip("10.96.0.10:53", service.UDP),
		"10.96.0.10:53/sctp":         vip("10.96.0.10:53", service.SCTP),
		"[fd00::a]:53/TCP":           vip("[fd00::a]:53", service.TCP),
		"[::ffff:10.96.0.10]:53":     vip("10.96.0.10:53", 0),
		"web":                        named("default", "web"),
		"service/web":                named("default", "web"),
		"kube-system/kube-dns":       named("kube-system", "kube-dns"),
		"svc/kube-system/kube-dns":   named("kube-system", "kube-dns"),
		"service/service/my-service": named("service", "my-service"),
	} {
		got, err := parseQuestion(arg)
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(question{}), cmpopts.EquateComparable(netip.AddrPort{})); err != nil || diff != "" {
			t.Errorf("%s: %v (-want +got):\n%s", arg, err, diff)
		}
	}
	for arg, want := range map[string]string{
		"10.96.0.10":         "has no port",
		"10.96.0.10/TCP":     "has no port",
		"[fd00::a]":          "has no port",
		"fd00::a":            "has no port",
		"fd00:1:2:3:4:5:6:7": "has no port",
		"10.96.0.10:":        "no address with a port",
		"10.96.0.10:65536":   "no address with a port",
		"10.96.0.300:80":     "no address with a port",
		"web:80":             "no address with a port",
		"10.96.0.10:0":       "port 0",
		"[fe80::1%eth0]:80":  "zone",
		"10.96.0.10:80/ICMP": `unknown protocol "ICMP"`,
		"10.96.0.10:80/":     `unknown protocol ""`,
		"":                   "names no Service",
		"a/b/c":              "names no Service",
		"Web":                "names no Service",
		"service/":           "names no Service",
	} {
		_, err := parseQuestion(arg)
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), `"`+arg+`"`) || !strings.Contains(err.Error(), "VIP:PORT") {
			t.Errorf("%q: %v, want %q, the value and the right forms", arg, err, want)
		}
	}
}

// webWith is Service default/web with the endpoints.
func webWith(edit func(*service.Service), endpoints ...string) *service.Service {
	s := &service.Service{
		Name: types.NamespacedName{Namespace: "default", Name: "web"}, ClusterIPs: addrs("10.96.0.10"),
		Ports: []service.Port{{Protocol: service.TCP, Port: 80}},
	}
	for _, e := range endpoints {
		b := service.Backend{Addr: netip.MustParseAddrPort(e), Weight: 1}
		s.Ports[0].Cluster[ipfamily.IPv4] = append(s.Ports[0].Cluster[ipfamily.IPv4], b)
	}
	if edit != nil {
		edit(s)
	}
	return s
}

// TestCompare: where the kernel is not what the API says, each difference is named.
func TestCompare(t *testing.T) {
	name := types.NamespacedName{Namespace: "default", Name: "web"}
	pods := map[netip.Addr]string{netip.MustParseAddr("10.244.0.3"): "pod web-3"}
	both := []string{"10.244.0.2:8080", "10.244.0.3:8080"}
	for what, tc := range map[string]struct {
		kernel, api *service.Service
		want        []string // that the answer ends with
	}{
		"the same": {webWith(nil, both...), webWith(nil, both...), []string{"The kernel has what the API says."}},
		"an endpoint is missing": {webWith(nil, both[0]), webWith(nil, both...),
			[]string{"10.96.0.10:80/TCP: endpoint 10.244.0.3:8080 (pod web-3) is in the API, not in the kernel"}},
		"an endpoint is too much": {webWith(nil, both...), webWith(nil, both[0]),
			[]string{"10.96.0.10:80/TCP: endpoint 10.244.0.3:8080 (pod web-3) is in the kernel, not in the API"}},
		"another weight": {webWith(nil, both...), webWith(func(s *service.Service) { s.Ports[0].Cluster[ipfamily.IPv4][1].Weight = 3 }, both...),
			[]string{"endpoint 10.244.0.3:8080 (pod web-3) has 1 slots in the kernel, 3 by the API"}},
		"another way to pick": {webWith(nil, both...), webWith(func(s *service.Service) { s.Scheduler = service.RoundRobin }, both...),
			[]string{`from this node the kernel has "to one of 2 endpoints, at random, masqueraded", the API wants "to one of 2 endpoints, in turns, masqueraded"`}},
		"a frontend is missing": {webWith(nil, both...), webWith(func(s *service.Service) { s.ExternalIPs = addrs("192.0.2.9") }, both...),
			[]string{"192.0.2.9:80/TCP: the API makes it a LoadBalancer or external IP, in the kernel it is: no address of a Service"}},
		"no endpoints any more": {webWith(nil, both...), webWith(nil),
			[]string{"endpoint 10.244.0.2:8080 is in the kernel, not in the API",
				`from this node the kernel has "to one of 2 endpoints, at random, masqueraded", the API wants "refused with a TCP RST: there are no endpoints"`}},
		"no rules by the API": {webWith(nil, both...), nil, []string{"Service default/web has no rules: it is headless"}},
	} {
		t.Run(what, func(t *testing.T) {
			var s service.Snapshot
			edit := s.Services.Edit()
			edit.Set(name, tc.kernel)
			s.Services = edit.Map()
			in := dataplane.Installed{Ruleset: dataplane.Compile(dataplane.Program{}, &s).Ruleset, Ours: true}
			got := compare(in, name, inAPI{service: tc.api, pods: pods})
			for _, want := range tc.want {
				if !strings.Contains(got, want) {
					t.Errorf("no %q in:\n%s", want, got)
				}
			}
			if same := strings.Contains(got, "has what the API says"); same != (what == "the same") {
				t.Errorf("it says that both are the same: %t:\n%s", same, got)
			}
		})
	}
}
