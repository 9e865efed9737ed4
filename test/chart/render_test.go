package chart_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"fairlead.dev/fairlead/api/config/v1alpha1"
	"fairlead.dev/fairlead/controllers"
	"fairlead.dev/fairlead/internal/config"
	"fairlead.dev/fairlead/internal/node"
)

func TestEveryPartCanBeLeftOut(t *testing.T) {
	for name, want := range map[string][]string{
		"only the controllers, writing EndpointSlices": {
			"ClusterRole/slices-fairlead-controller", "ClusterRoleBinding/slices-fairlead-controller",
			"ConfigMap/slices-fairlead-controller-config", "CustomResourceDefinition", "Deployment/slices-fairlead-controller",
			"ServiceAccount/slices-fairlead-controller",
		},
		"only load balancer addresses, for one class": {
			"ClusterRole/addresses-fairlead-controller", "ClusterRoleBinding/addresses-fairlead-controller",
			"ConfigMap/addresses-fairlead-controller-config", "CustomResourceDefinition", "Deployment/addresses-fairlead-controller",
			"PodDisruptionBudget/addresses-fairlead-controller",
			"Role/addresses-fairlead-leader-election", "RoleBinding/addresses-fairlead-leader-election",
			"ServiceAccount/addresses-fairlead-controller",
		},
		"only the dataplane, in the place of kube-proxy": {
			"ClusterRole/dataplane-fairlead-node", "ClusterRoleBinding/dataplane-fairlead-node",
			"ConfigMap/dataplane-fairlead-node-config", "DaemonSet/dataplane-fairlead-node", "ServiceAccount/dataplane-fairlead-node",
		},
	} {
		t.Run(name, func(t *testing.T) {
			var got []string
			for _, obj := range releases[name].render(t) {
				if obj.GetKind() == "CustomResourceDefinition" {
					got = append(got, obj.GetKind()) // how many there are is another test's matter
				} else {
					got = append(got, obj.GetKind()+"/"+obj.GetName())
				}
			}
			slices.Sort(got)
			if diff := cmp.Diff(want, slices.Compact(got)); diff != "" {
				t.Errorf("objects (-want +got):\n%s", diff)
			}
		})
	}
}

func TestValuesReachThePods(t *testing.T) {
	objs := releases["every knob turned"].render(t)
	for name, pod := range map[string]corev1.PodSpec{
		"controller": one[appsv1.Deployment](t, objs, "Deployment", "turned-controller").Spec.Template.Spec,
		"node":       one[appsv1.DaemonSet](t, objs, "DaemonSet", "turned-node").Spec.Template.Spec,
	} {
		t.Run(name, func(t *testing.T) {
			c := pod.Containers[0]
			const image = "example.com/fairlead@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
			if c.Image != image || c.ImagePullPolicy != corev1.PullAlways {
				t.Errorf("image is %s, %s", c.Image, c.ImagePullPolicy)
			}
			if c.LivenessProbe != nil || c.ReadinessProbe != nil || len(c.Ports) > 0 {
				t.Errorf("listeners are off, but there are probes or ports: %v %v %v", c.LivenessProbe, c.ReadinessProbe, c.Ports)
			}
			for _, arg := range []string{
				"--zap-log-level=4", "--zap-encoder=console", "--zap-stacktrace-level=panic", "--zap-time-encoding=iso8601",
			} {
				if !slices.Contains(c.Args, arg) {
					t.Errorf("%s is not in %q", arg, c.Args)
				}
			}
			for _, env := range []corev1.EnvVar{
				{Name: "KUBERNETES_SERVICE_HOST", Value: "192.0.2.1"}, {Name: "KUBERNETES_SERVICE_PORT", Value: "6443"},
			} {
				if !slices.Contains(c.Env, env) {
					t.Errorf("%v is not in %v", env, c.Env)
				}
			}
			if len(pod.ImagePullSecrets) != 1 || pod.Affinity == nil || len(pod.NodeSelector) != 1 ||
				len(pod.Tolerations) != 1 || pod.PriorityClassName != "" || c.Resources.Limits.Memory().String() != "1Gi" {
				t.Errorf("a value did not arrive: %+v", pod)
			}
		})
	}
}

func TestProbesFollowTheListener(t *testing.T) {
	objs := releases["only the dataplane, in the place of kube-proxy"].render(t)
	c := one[appsv1.DaemonSet](t, objs, "DaemonSet", "dataplane-fairlead-node").Spec.Template.Spec.Containers[0]
	for path, probe := range map[string]*corev1.Probe{"/livez": c.LivenessProbe, "/healthz": c.ReadinessProbe} {
		if got := probe.HTTPGet; got.Host != "::1" || got.Port.IntValue() != 10256 || got.Path != path {
			t.Errorf("%s is asked at %+v", path, got)
		}
	}
}

func TestConfigChangeRollsThePods(t *testing.T) {
	sums := map[string]string{}
	for _, mode := range []string{"Own", "Observe"} {
		r := release{name: "fairlead", namespace: "x", values: "controller: {config: {endpoints: {mode: " + mode + "}}}"}
		objs := r.render(t)
		sum := func(template corev1.PodTemplateSpec) string { return template.Annotations["checksum/config"] }
		sums["controller "+mode] = sum(one[appsv1.Deployment](t, objs, "Deployment", "fairlead-controller").Spec.Template)
		sums["node "+mode] = sum(one[appsv1.DaemonSet](t, objs, "DaemonSet", "fairlead-node").Spec.Template)
	}
	if sums["controller Own"] == sums["controller Observe"] {
		t.Error("another configuration of the controller has the same checksum")
	}
	if sums["node Own"] == "" || sums["node Own"] != sums["node Observe"] {
		t.Errorf("the node's configuration is the same, its checksum is not: %v", sums)
	}
}

func TestSchemaRefuses(t *testing.T) {
	for name, c := range map[string]struct{ values, want string }{
		"an unknown value":             {"contoller: {}", "additional properties 'contoller' not allowed"},
		"an unknown field of config":   {"controller: {config: {endpoint: {}}}", "at '/controller/config': additional properties 'endpoint' not allowed"},
		"an unknown mode":              {"controller: {config: {endpoints: {mode: own}}}", "at '/controller/config/endpoints/mode': value must be one of 'Own', 'Observe', 'Off', 'Auto'"},
		"too large slices":             {"controller: {config: {endpoints: {maxEndpointsPerSlice: 1001}}}", "maximum: got 1,001, want 1,000"},
		"a flag that is no logger's":   {"node: {logger: {v: 4}}", "at '/node/logger': additional properties 'v' not allowed"},
		"an unknown log level":         {"node: {logger: {level: verbose}}", "at '/node/logger/level'"},
		"a port that is none":          {"node: {config: {healthz: {bindAddress: '10256'}}}", "at '/node/config/healthz/bindAddress'"},
		"probes on localhost":          {"controller: {config: {healthProbe: {bindAddress: '127.0.0.1:8081'}}}", "at '/controller/config/healthProbe/bindAddress'"},
		"an address for a CIDR":        {"node: {config: {nodePortAddresses: [192.0.2.1]}}", "at '/node/config/nodePortAddresses/0'"},
		"no nodePortAddresses":         {"node: {config: {nodePortAddresses: []}}", "at '/node/config/nodePortAddresses': minItems"},
		"two ways to tell pods":        {"node: {config: {localTraffic: {bridge: cni0, nodeCIDR: true}}}", "at '/node/config/localTraffic': maxProperties"},
		"a name no interface can have": {"node: {config: {localTraffic: {bridge: a123456789012345}}}", "at '/node/config/localTraffic/bridge': maxLength"},
		"a duration without a unit":    {"node: {config: {conntrack: {udpTimeout: 30}}}", "at '/node/config/conntrack/udpTimeout': got number, want string"},
		"a negative bound":             {"node: {config: {conntrack: {min: -1}}}", "at '/node/config/conntrack/min': minimum"},
		"a digest without algorithm":   {"image: {digest: abc}", "at '/image/digest'"},
		"a word for a boolean":         {"controller: {enabled: 'yes'}", "at '/controller/enabled': got string, want boolean"},
		"no configuration":             {"node: {config: null}", "at '/node': missing property 'config'"},
		"two leaders": {
			"controller: {config: {leaderElection: {enabled: false}}}",
			"controller.replicas is 2, but without controller.config.leaderElection.enabled all of them would act",
		},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := release{name: "fairlead", namespace: "x", values: c.values}.template(t)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error is %v\nwant %s", err, c.want)
			}
		})
	}
}

// The files are those that the binary starts with, read by the code that reads them there.
func TestConfigLoads(t *testing.T) {
	sources := map[string][]*unstructured.Unstructured{"config/default": kustomize(t, "default")}
	for name, r := range releases {
		sources[name] = r.render(t)
	}
	for name, objs := range sources {
		t.Run(name, func(t *testing.T) {
			loaded := 0
			for _, obj := range objs {
				if obj.GetKind() == "ConfigMap" {
					load(t, obj)
					loaded++
				}
			}
			if loaded == 0 {
				t.Error("there is no ConfigMap")
			}
		})
	}
}

// Leaving config out and writing down what stands in values.yaml or in the base is the
// same thing, so that neither hides a default of the binary.
func TestConfigIsTheDefault(t *testing.T) {
	wantController, err := config.Controller("")
	if err != nil {
		t.Fatal(err)
	}
	wantNode, err := config.Node("")
	if err != nil {
		t.Fatal(err)
	}
	for name, objs := range map[string][]*unstructured.Unstructured{
		"chart": releases["defaults"].render(t), "config/default": kustomize(t, "default"),
	} {
		t.Run(name, func(t *testing.T) {
			seen := 0
			for _, obj := range objs {
				if obj.GetKind() != "ConfigMap" {
					continue
				}
				seen++
				var want any = wantNode
				got := load(t, obj)
				if _, ok := got.(*v1alpha1.ControllerConfiguration); ok {
					want = wantController
				}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("%s (-default +got):\n%s", obj.GetName(), diff)
				}
			}
			if seen != 2 {
				t.Errorf("there are %d ConfigMaps, want one for each process", seen)
			}
		})
	}
}

// load loads the configuration in a ConfigMap as the process that it is for does.
func load(t *testing.T, configMap *unstructured.Unstructured) any {
	t.Helper()
	file, ok, err := unstructured.NestedString(configMap.Object, "data", "config.yaml")
	if err != nil || !ok {
		t.Fatalf("ConfigMap %s has no config.yaml: %v", configMap.GetName(), err)
	}
	path := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	var cfg any
	if strings.Contains(file, "kind: "+v1alpha1.ControllerKind) {
		cfg, err = config.Controller(path)
	} else {
		cfg, err = config.Node(path)
	}
	if err != nil {
		t.Fatalf("loading ConfigMap %s: %v\n%s", configMap.GetName(), err, file)
	}
	return cfg
}

// Every argument is a flag of the subcommand that it is given to.
func TestArgumentsParse(t *testing.T) {
	check := func(t *testing.T, cmd *cobra.Command, args []string) {
		t.Helper()
		if args[0] != cmd.Name() {
			t.Fatalf("subcommand is %q, want %q", args[0], cmd.Name())
		}
		if err := cmd.ParseFlags(args[1:]); err != nil {
			t.Errorf("parsing %q: %v", args, err)
		}
		if path := cmd.Flag("config").Value.String(); path != "/etc/fairlead/config.yaml" {
			t.Errorf("--config is %q, the file is mounted elsewhere", path)
		}
	}
	for name, objs := range map[string][]*unstructured.Unstructured{
		"fairlead": releases["defaults"].render(t),
		"turned":   releases["every knob turned"].render(t),
	} {
		t.Run(name, func(t *testing.T) {
			deployment := one[appsv1.Deployment](t, objs, "Deployment", name+"-controller")
			check(t, controllers.Command(nil), deployment.Spec.Template.Spec.Containers[0].Args)
			daemonSet := one[appsv1.DaemonSet](t, objs, "DaemonSet", name+"-node")
			check(t, node.Command(), daemonSet.Spec.Template.Spec.Containers[0].Args)
		})
	}
}

// The bases are written by hand a second time; this is what keeps them the same.
func TestBasesAndChartAreTheSame(t *testing.T) {
	chart, bases := releases["defaults"].render(t), kustomize(t, "default")

	same := func(what string, a, b any) {
		t.Helper()
		if diff := cmp.Diff(a, b); diff != "" {
			t.Errorf("%s (-chart +bases):\n%s", what, diff)
		}
	}
	deployments, daemonSets := map[string]*appsv1.Deployment{}, map[string]*appsv1.DaemonSet{}
	for name, objs := range map[string][]*unstructured.Unstructured{"chart": chart, "bases": bases} {
		deployments[name] = one[appsv1.Deployment](t, objs, "Deployment", "fairlead-controller")
		daemonSets[name] = one[appsv1.DaemonSet](t, objs, "DaemonSet", "fairlead-node")
		neutral(&deployments[name].Spec.Template.Spec)
		neutral(&daemonSets[name].Spec.Template.Spec)
	}
	same("Deployment", deployments["chart"].Spec.Template.Spec, deployments["bases"].Spec.Template.Spec)
	same("replicas", deployments["chart"].Spec.Replicas, deployments["bases"].Spec.Replicas)
	same("DaemonSet", daemonSets["chart"].Spec.Template.Spec, daemonSets["bases"].Spec.Template.Spec)
	same("updateStrategy", daemonSets["chart"].Spec.UpdateStrategy, daemonSets["bases"].Spec.UpdateStrategy)
	same("roles", rules(t, chart), rules(t, bases))
	for name, spec := range specs(bases, "CustomResourceDefinition") {
		if !cmp.Equal(spec, specs(chart, "CustomResourceDefinition")[name]) {
			t.Errorf("%s is another one in the chart: run `make manifests`", name)
		}
	}
}

// neutral takes out what differs for a reason: the image's tag, the name of the
// ConfigMap, and the labels, of which the chart has more.
func neutral(pod *corev1.PodSpec) {
	pod.Containers[0].Image = ""
	for i := range pod.Volumes {
		if pod.Volumes[i].ConfigMap != nil {
			pod.Volumes[i].ConfigMap.Name = ""
		}
	}
	for i := range pod.TopologySpreadConstraints {
		pod.TopologySpreadConstraints[i].LabelSelector = nil
	}
}

func rules(t *testing.T, objs []*unstructured.Unstructured) map[string][]rbacv1.PolicyRule {
	t.Helper()
	found := map[string][]rbacv1.PolicyRule{}
	for _, obj := range objs {
		if kind := obj.GetKind(); kind == "ClusterRole" || kind == "Role" {
			found[kind+"/"+obj.GetName()] = one[rbacv1.ClusterRole](t, objs, kind, obj.GetName()).Rules
		}
	}
	return found
}

func specs(objs []*unstructured.Unstructured, kind string) map[string]any {
	found := map[string]any{}
	for _, obj := range objs {
		if obj.GetKind() == kind {
			found[obj.GetName()] = obj.Object["spec"]
		}
	}
	return found
}

func TestCRDsOutliveTheRelease(t *testing.T) {
	for values, want := range map[string]string{"": "keep", "crds: {keep: false}": ""} {
		seen := 0
		for _, obj := range (release{name: "fairlead", namespace: "x", values: values}).render(t) {
			if obj.GetKind() != "CustomResourceDefinition" {
				continue
			}
			seen++
			if got := obj.GetAnnotations()["helm.sh/resource-policy"]; got != want {
				t.Errorf("with %q, %s has policy %q, want %q", values, obj.GetName(), got, want)
			}
		}
		if seen == 0 {
			t.Errorf("with %q, there is no CRD", values)
		}
	}
}
