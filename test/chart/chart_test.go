// Package chart_test renders the chart and the kustomize bases with the tools that users
// have, and installs what comes out into a real API server.
package chart_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"
)

const (
	root     = "../.."
	chartDir = root + "/charts/fairlead"

	// kubeVersion is said to Helm, which takes itself for 1.20 unless its own Makefile
	// links it. It is that of the API server in test/controlplane.
	kubeVersion = "1.36"
)

// release is one installation of the chart.
type release struct {
	name, namespace string
	values          string // YAML over the defaults
}

// releases install the chart as a whole and each part of it alone.
var releases = map[string]release{
	"defaults": {name: "fairlead", namespace: "kube-system"},
	"only the controllers, writing EndpointSlices": {
		name: "slices", namespace: "slices", values: `
node: {enabled: false}
controller:
  replicas: 1
  config:
    endpoints: {mode: Own, maxEndpointsPerSlice: 1000}
    loadBalancer: {provider: "", class: ""}
    leaderElection: {enabled: false}
  podDisruptionBudget: {enabled: false}
`},
	"only load balancer addresses, for one class": {
		name: "addresses", namespace: "addresses", values: `
node: {enabled: false}
controller:
  config:
    endpoints: {mode: "Off"}
    loadBalancer: {class: example.com/ours, default: false}
    leaderElection: {namespace: addresses-leases}
`},
	"only the dataplane, in the place of kube-proxy": {
		name: "dataplane", namespace: "dataplane", values: `
controller: {enabled: false}
crds: {enabled: false}
apiServer: {host: "fd00::1", port: 443}
node:
  config:
    localTraffic: {clusterCIDRs: [10.244.0.0/16, "fd00:10:244::/56"]}
    nodePortAddresses: [192.0.2.0/24, "2001:db8::/64"]
    healthz: {bindAddress: "[::1]:10256"}
  maxUnavailable: 3
`},
	"every knob turned": {
		name: "other", namespace: "other", values: `
fullnameOverride: turned
image:
  repository: example.com/fairlead
  digest: sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef
  pullPolicy: Always
  pullSecrets: [{name: pull}]
apiServer: {host: 192.0.2.1}
controller: &part
  config:
    metrics: {bindAddress: "0"}
    healthProbe: {bindAddress: "0"}
  logger: {level: 4, encoder: console, stacktraceLevel: panic, timeEncoding: iso8601}
  resources: {limits: {memory: 1Gi}}
  priorityClassName: ""
  nodeSelector: {kubernetes.io/os: linux}
  affinity:
    nodeAffinity:
      requiredDuringSchedulingIgnoredDuringExecution:
        nodeSelectorTerms: [{matchExpressions: [{key: kubernetes.io/arch, operator: In, values: [amd64]}]}]
  tolerations: [{key: a, operator: Equal, value: b, effect: NoExecute, tolerationSeconds: 5}]
  podAnnotations: {example.com/a: b}
  podLabels: {example.com/c: d}
node:
  <<: *part
  config:
    localTraffic: {interfacePrefix: veth}
    masqueradeAll: true
    counters: true
    conntrack: {maxPerCore: 0, min: 1, tcpEstablishedTimeout: 1h30m, tcpCloseWaitTimeout: "0", tcpBeLiberal: true, udpTimeout: 30s, udpStreamTimeout: 3m}
    kubeProxy: {allowRunning: true, removeLeftovers: true}
    metrics: {bindAddress: "0"}
    healthz: {bindAddress: "0"}
`},
}

// render renders the release, and fails t when Helm refuses.
func (r release) render(t *testing.T) []*unstructured.Unstructured {
	t.Helper()
	out, err := r.template(t)
	if err != nil {
		t.Fatalf("rendering the chart: %v", err)
	}
	return objects(t, out)
}

// template returns what Helm makes of the release, or what it has against it.
func (r release) template(t *testing.T) ([]byte, error) {
	t.Helper()
	return run(t, r.values, "HELM", "helm", "template", r.name, chartDir,
		"--namespace", r.namespace, "--kube-version", kubeVersion, "--values", "-")
}

// kustomize builds the base config/NAME.
func kustomize(t *testing.T, name string) []*unstructured.Unstructured {
	t.Helper()
	out, err := run(t, "", "KUSTOMIZE", "kustomize", "build", filepath.Join(root, "config", name))
	if err != nil {
		t.Fatalf("building config/%s: %v", name, err)
	}
	return objects(t, out)
}

// run runs the tool that env names, or else the one that `make` built into bin/tools.
// The error is what the tool said.
func run(t *testing.T, stdin, env, tool string, args ...string) ([]byte, error) {
	t.Helper()
	path := os.Getenv(env)
	if path == "" {
		path = filepath.Join(root, "bin", "tools", tool)
	}
	var stderr bytes.Buffer
	cmd := exec.CommandContext(t.Context(), path, args...)
	cmd.Stdin, cmd.Stderr = strings.NewReader(stdin), &stderr
	out, err := cmd.Output()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return out, nil
	case errors.As(err, &exit):
		return nil, errors.New(stderr.String())
	default:
		t.Fatalf("running %s: %v (`make generate` builds it)", tool, err)
		return nil, err
	}
}

// objects parses a stream of YAML documents. A repeated key is a fault.
func objects(t *testing.T, stream []byte) []*unstructured.Unstructured {
	t.Helper()
	var objs []*unstructured.Unstructured
	reader := utilyaml.NewDocumentDecoder(io.NopCloser(bytes.NewReader(stream)))
	buf := make([]byte, len(stream)+1)
	for {
		n, err := reader.Read(buf)
		if errors.Is(err, io.EOF) {
			return objs
		}
		if err != nil {
			t.Fatalf("splitting YAML: %v", err)
		}
		obj := &unstructured.Unstructured{}
		if err := yaml.UnmarshalStrict(buf[:n], &obj.Object); err != nil {
			t.Fatalf("parsing YAML: %v\n%s", err, buf[:n])
		}
		if len(obj.Object) > 0 {
			objs = append(objs, obj)
		}
	}
}

// one returns the only object of a kind, converted to T.
func one[T any](t *testing.T, objs []*unstructured.Unstructured, kind, name string) *T {
	t.Helper()
	var found *unstructured.Unstructured
	for _, obj := range objs {
		if obj.GetKind() == kind && obj.GetName() == name {
			if found != nil {
				t.Fatalf("%s %s is there twice", kind, name)
			}
			found = obj
		}
	}
	if found == nil {
		t.Fatalf("there is no %s %s", kind, name)
	}
	into := new(T)
	if err := runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(found.Object, into, true); err != nil {
		t.Fatalf("converting %s %s: %v", kind, name, err)
	}
	return into
}
