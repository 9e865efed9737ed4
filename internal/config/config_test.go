package config_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"fairlead.dev/fairlead/api/config/v1alpha1"
	"fairlead.dev/fairlead/internal/config"
)

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

const (
	controllerHead = "apiVersion: config.fairlead.dev/v1alpha1\nkind: ControllerConfiguration\n"
	nodeHead       = "apiVersion: config.fairlead.dev/v1alpha1\nkind: NodeConfiguration\n"
)

func TestDefaults(t *testing.T) {
	controller, err := config.Controller("")
	if err != nil {
		t.Fatal(err)
	}
	fromFile, err := config.Controller(write(t, controllerHead))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(controller, fromFile); diff != "" {
		t.Errorf("no file and a file without fields differ (-none +file):\n%s", diff)
	}
	if controller.Endpoints.Mode != v1alpha1.EndpointsAuto || !controller.LeaderElection.Enabled ||
		controller.LoadBalancer.Provider != "baremetal" || controller.LoadBalancer.Class != "fairlead.dev/baremetal" {
		t.Errorf("defaults are %+v", controller)
	}
	node, err := config.Node("")
	if err != nil {
		t.Fatal(err)
	}
	if node.Healthz.BindAddress != ":10256" || node.Metrics.BindAddress != "127.0.0.1:10249" {
		t.Errorf("defaults are %+v", node)
	}
	hours := func(n time.Duration) metav1.Duration { return metav1.Duration{Duration: n * time.Hour} }
	if diff := cmp.Diff(v1alpha1.Conntrack{MaxPerCore: 32768, Min: 131072, TCPEstablishedTimeout: hours(24), TCPCloseWaitTimeout: hours(1)}, node.Conntrack); diff != "" {
		t.Errorf("defaults of conntrack mismatch (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(v1alpha1.LocalTraffic{}, node.LocalTraffic); diff != "" || node.MasqueradeAll || node.Counters || node.KubeProxy.AllowRunning || node.KubeProxy.RemoveLeftovers {
		t.Errorf("something is on by default: %+v", node)
	}
}

func TestEveryNodeField(t *testing.T) {
	got, err := config.Node(write(t, nodeHead+`
localTraffic: {bridge: cni0}
masqueradeAll: true
counters: true
nodePortAddresses: [10.0.0.0/8]
conntrack: {maxPerCore: 0, min: 1, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 2h, tcpBeLiberal: true, udpTimeout: 30s, udpStreamTimeout: 3m}
kubeProxy: {allowRunning: true, removeLeftovers: true}
healthz: {bindAddress: "0"}
metrics: {bindAddress: "127.0.0.1:1"}
`))
	if err != nil {
		t.Fatal(err)
	}
	duration := func(d time.Duration) metav1.Duration { return metav1.Duration{Duration: d} }
	want := &v1alpha1.NodeConfiguration{
		TypeMeta:     metav1.TypeMeta{APIVersion: v1alpha1.APIVersion, Kind: v1alpha1.NodeKind},
		LocalTraffic: v1alpha1.LocalTraffic{Bridge: "cni0"}, MasqueradeAll: true, Counters: true,
		NodePortAddresses: []string{"10.0.0.0/8"},
		Conntrack: v1alpha1.Conntrack{Min: 1, TCPCloseWaitTimeout: duration(2 * time.Hour), TCPBeLiberal: true,
			UDPTimeout: duration(30 * time.Second), UDPStreamTimeout: duration(3 * time.Minute)},
		KubeProxy: v1alpha1.KubeProxy{AllowRunning: true, RemoveLeftovers: true},
		Healthz:   v1alpha1.Server{BindAddress: "0"}, Metrics: v1alpha1.Server{BindAddress: "127.0.0.1:1"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("configuration mismatch (-want +got):\n%s", diff)
	}
}

func TestAFileLiesOverTheDefaults(t *testing.T) {
	got, err := config.Controller(write(t, controllerHead+"endpoints: {mode: Observe}\nleaderElection: {enabled: false}\nmetrics: {bindAddress: \"0\"}\n"))
	if err != nil {
		t.Fatal(err)
	}
	if got.Endpoints.Mode != v1alpha1.EndpointsObserve || got.LeaderElection.Enabled || got.Metrics.BindAddress != "0" {
		t.Errorf("the file's values are lost: %+v", got)
	}
	if got.Endpoints.MaxEndpointsPerSlice != 100 || got.HealthProbe.BindAddress != ":8081" {
		t.Errorf("defaults beside the file's values are lost: %+v", got)
	}
}

func TestFaults(t *testing.T) {
	controller := func(path string) error { _, err := config.Controller(path); return err }
	node := func(path string) error { _, err := config.Node(path); return err }
	for name, tc := range map[string]struct {
		load func(string) error
		text string
		want []string
	}{
		"no YAML":          {controller, "a: [", []string{"parsing"}},
		"no mapping":       {controller, "- a\n", []string{"parsing"}},
		"a field twice":    {controller, controllerHead + "metrics: {bindAddress: \":1\"}\nmetrics: {bindAddress: \":2\"}\n", []string{`"metrics" already set`}},
		"the other's file": {node, controllerHead, []string{`kind: Unsupported value: "ControllerConfiguration": supported values: "NodeConfiguration"`}},
		"no apiVersion":    {node, "kind: NodeConfiguration\napiVersion: v1\n", []string{`apiVersion: Unsupported value: "v1"`}},
		"every fault at once": {controller, controllerHead + `
endpoints: {mode: Sometimes, moode: Own, maxEndpointsPerSlice: many}
loadBalancer: {class: "not a class!"}
leaderElection: {enabled: maybe}
metrics: {bindAddress: 8080}
healthProbe: {bindAddress: "example.com:80"}
extra: 1
`, []string{
			`endpoints.mode: Unsupported value: "Sometimes": supported values: "Own", "Observe", "Off", "Auto"`,
			`unknown field "endpoints.moode"`,
			`endpoints.maxEndpointsPerSlice: Invalid value: string, must be a int32`,
			`loadBalancer.class: Invalid value: "not a class!"`,
			`leaderElection.enabled: Invalid value: string, must be a bool`,
			`metrics.bindAddress: Invalid value: number, must be a string`,
			`healthProbe.bindAddress: Invalid value: "example.com:80": must have an IP address or localhost as its host`,
			`unknown field "extra"`,
		}},
		"bounds": {controller, controllerHead + "endpoints: {maxEndpointsPerSlice: 1001}\nloadBalancer: {class: \"\"}\nmetrics: {bindAddress: \":0\"}\nhealthProbe: {bindAddress: \"8081\"}\n", []string{
			`endpoints.maxEndpointsPerSlice: Invalid value: 1001: must be between 1 and 1000`,
			`loadBalancer.class: Required value`,
			`metrics.bindAddress: Invalid value: ":0": must have a port between 1 and 65535`,
			`healthProbe.bindAddress: Invalid value: "8081": must be host:port, :port, or "0" for off`,
		}},
		"networks": {node, nodeHead + "localTraffic: {clusterCIDRs: [10.244.0.1/16, fd00::/129]}\nnodePortAddresses: [primary, 10.0.0.0/8]\n", []string{
			`localTraffic.clusterCIDRs[0]: Invalid value: "10.244.0.1/16": has bits beyond its prefix length; did you mean 10.244.0.0/16?`,
			`localTraffic.clusterCIDRs[1]: Invalid value: "fd00::/129": must be a CIDR`,
			`nodePortAddresses[0]: Invalid value: "primary": must be a CIDR`,
		}},
		"two ways to tell pods": {node, nodeHead + "localTraffic: {clusterCIDRs: [10.0.0.0/8], nodeCIDR: true, bridge: cni0, interfacePrefix: veth}\n", []string{
			`localTraffic: Invalid value: "clusterCIDRs, nodeCIDR, bridge, interfacePrefix": must have at most one of its fields`,
		}},
		"interfaces that the kernel cannot have": {node, nodeHead + "localTraffic: {bridge: a123456789012345, interfacePrefix: \"a b\"}\n", []string{
			`localTraffic.bridge: Invalid value: "a123456789012345": must be at most 15 bytes, as names of interfaces are`,
			`localTraffic.interfacePrefix: Invalid value: "a b": must be part of an interface's name, without "/", ":" and spaces`,
		}},
		"negative settings of conntrack": {node, nodeHead + "conntrack: {maxPerCore: -1, min: -2, tcpEstablishedTimeout: -1s, tcpCloseWaitTimeout: -2s, udpTimeout: -3s, udpStreamTimeout: -4s}\n", []string{
			`conntrack.maxPerCore: Invalid value: -1: must not be negative; 0 leaves it as it is`,
			`conntrack.min: Invalid value: -2: must not be negative; 0 leaves it as it is`,
			`conntrack.tcpEstablishedTimeout: Invalid value: "-1s": must not be negative; 0 leaves it as it is`,
			`conntrack.tcpCloseWaitTimeout: Invalid value: "-2s": must not be negative; 0 leaves it as it is`,
			`conntrack.udpTimeout: Invalid value: "-3s": must not be negative; 0 leaves it as it is`,
			`conntrack.udpStreamTimeout: Invalid value: "-4s": must not be negative; 0 leaves it as it is`,
		}},
		"durations that the kernel cannot have": {node, nodeHead + "conntrack: {udpTimeout: 500ms, udpStreamTimeout: 2147483648s}\n", []string{
			`conntrack.udpTimeout: Invalid value: "500ms": must be whole seconds`,
			`conntrack.udpStreamTimeout: Invalid value: "596523h14m8s": must be at most 2147483647s, the kernel's limit`,
		}},
		"durations that are none, beside other faults": {node, nodeHead + "conntrack: {udpTimeout: 30, udpStreamTimeout: soon, tcpCloseWaitTimeout: null, min: -2, max: 1}\ncounters: 1\n", []string{
			`conntrack.udpTimeout: Invalid value: 30: must be a duration such as 1h or 30s`,
			`conntrack.udpStreamTimeout: Invalid value: "soon": must be a duration such as 1h or 30s`,
			`conntrack.tcpCloseWaitTimeout: Invalid value: null: must be a duration such as 1h or 30s`,
			`conntrack.min: Invalid value: -2: must not be negative`,
			`unknown field "conntrack.max"`,
			`counters: Invalid value: number, must be a bool`,
		}},
		"an empty file": {node, "", []string{`apiVersion: Unsupported value: ""`, `kind: Unsupported value: ""`}},
		"no addresses":  {node, nodeHead + "nodePortAddresses: []\n", []string{`nodePortAddresses: Required value: must be CIDRs, or "primary"`}},
	} {
		t.Run(name, func(t *testing.T) {
			err := tc.load(write(t, tc.text))
			if err == nil {
				t.Fatal("no error")
			}
			for _, want := range tc.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("the error does not say %q:\n%v", want, err)
				}
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("the error has more than one line:\n%v", err)
			}
		})
	}
	if err := controller(filepath.Join(t.TempDir(), "none.yaml")); err == nil || !strings.Contains(err.Error(), "none.yaml") {
		t.Errorf("a file that is not there: %v", err)
	}
}
