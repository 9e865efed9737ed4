// Package config loads, defaults and validates the configuration files of
// fairlead, and turns what the command line says into a client configuration.
package config

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	"k8s.io/apimachinery/pkg/util/validation/field"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"

	"fairlead.dev/fairlead/api/config/v1alpha1"
)

const (
	// defaultMaxEndpointsPerSlice and maxEndpointsPerSliceLimit are those of
	// kube-controller-manager (pkg/controller/endpointslice/config).
	defaultMaxEndpointsPerSlice = 100
	maxEndpointsPerSliceLimit   = 1000

	// DefaultLoadBalancerClass is the class the bare-metal provider serves.
	DefaultLoadBalancerClass = "fairlead.dev/baremetal"
	// DefaultProvider is the name of the bare-metal provider.
	DefaultProvider = "baremetal"

	// The settings of connection tracking are kube-proxy's
	// (pkg/proxy/apis/config/v1alpha1).
	defaultConntrackMaxPerCore = 32 * 1024
	defaultConntrackMin        = 128 * 1024
	defaultTCPEstablished      = 24 * time.Hour
	defaultTCPCloseWait        = time.Hour
)

// Controller returns the configuration of `fairlead controller` in the file at
// path, or the defaults where path is empty. All faults of the file are reported
// in one error, each with its path.
func Controller(path string) (*v1alpha1.ControllerConfiguration, error) {
	cfg := &v1alpha1.ControllerConfiguration{
		Endpoints: v1alpha1.Endpoints{
			Mode: v1alpha1.EndpointsAuto, MaxEndpointsPerSlice: defaultMaxEndpointsPerSlice,
		},
		LoadBalancer:   v1alpha1.LoadBalancer{Provider: DefaultProvider, Class: DefaultLoadBalancerClass, Default: true},
		LeaderElection: v1alpha1.LeaderElection{Enabled: true},
		Metrics:        v1alpha1.Server{BindAddress: ":8080"},
		HealthProbe:    v1alpha1.Server{BindAddress: ":8081"},
	}
	if path == "" {
		cfg.APIVersion, cfg.Kind = v1alpha1.APIVersion, v1alpha1.ControllerKind
	}
	return cfg, load(path, cfg, func() field.ErrorList { return validateController(cfg) })
}

// Node returns the configuration of `fairlead node` in the file at path, or the
// defaults where path is empty. The ports are those of kube-proxy, because that is
// where probes and dashboards look.
func Node(path string) (*v1alpha1.NodeConfiguration, error) {
	cfg := &v1alpha1.NodeConfiguration{
		NodePortAddresses: []string{v1alpha1.NodePortPrimary},
		Conntrack: v1alpha1.Conntrack{
			MaxPerCore: defaultConntrackMaxPerCore, Min: defaultConntrackMin,
			TCPEstablishedTimeout: metav1.Duration{Duration: defaultTCPEstablished},
			TCPCloseWaitTimeout:   metav1.Duration{Duration: defaultTCPCloseWait},
		},
		Healthz: v1alpha1.Server{BindAddress: ":10256"},
		Metrics: v1alpha1.Server{BindAddress: "127.0.0.1:10249"},
	}
	if path == "" {
		cfg.APIVersion, cfg.Kind = v1alpha1.APIVersion, v1alpha1.NodeKind
	}
	return cfg, load(path, cfg, func() field.ErrorList { return validateNode(cfg) })
}

func load(path string, into any, validate func() field.ErrorList) error {
	if path == "" {
		return nil
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("reading configuration: %w", err)
	}
	faults, err := decode(raw, into)
	if err != nil {
		// On one line, as the YAML parser's errors are not.
		return fmt.Errorf("parsing %s: %s", path, strings.Join(strings.Fields(err.Error()), " "))
	}
	for _, e := range validate() {
		faults = append(faults, e)
	}
	if len(faults) == 0 {
		return nil
	}
	slices.SortStableFunc(faults, func(a, b error) int { return cmp.Compare(a.Error(), b.Error()) })
	return fmt.Errorf("validating %s: %w", path, utilerrors.NewAggregate(faults))
}

// decode lays the file over the defaults already in into. It returns every unknown
// or repeated field and every value of a wrong type as a fault, and an error only
// when raw is no YAML mapping at all.
func decode(raw []byte, into any) (faults []error, err error) {
	var tree map[string]any
	if err := yaml.UnmarshalStrict(raw, &tree); err != nil {
		return nil, err
	}
	faults = takeDurations(tree, reflect.TypeOf(into).Elem(), nil)
	// A value of a wrong type hides the faults behind it: take it out and look again.
	for {
		data, err := json.Marshal(tree)
		if err != nil {
			return nil, err
		}
		strict, err := kjson.UnmarshalStrict(data, into)
		var typeErr *json.UnmarshalTypeError
		if !errors.As(err, &typeErr) || !remove(tree, strings.Split(typeErr.Field, ".")) {
			return append(faults, strict...), err
		}
		faults = append(faults, fmt.Errorf("%s: Invalid value: %s, must be a %s", typeErr.Field, typeErr.Value, typeErr.Type))
	}
}

// takeDurations takes out of tree every value that is no duration where typ has one, and
// returns it as a fault: the decoder would say neither where it is nor what else is wrong.
func takeDurations(tree map[string]any, typ reflect.Type, path *field.Path) (faults []error) {
	for f := range typ.Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		value, ok := tree[name]
		switch {
		case !ok || f.Type.Kind() != reflect.Struct:
		case f.Type == reflect.TypeFor[metav1.Duration]():
			text, isText := value.(string)
			if _, err := time.ParseDuration(text); !isText || err != nil {
				faults = append(faults, field.Invalid(child(path, name), value, "must be a duration such as 1h or 30s"))
				delete(tree, name)
			}
		default:
			if sub, isMap := value.(map[string]any); isMap {
				faults = append(faults, takeDurations(sub, f.Type, child(path, name))...)
			}
		}
	}
	return faults
}

func child(path *field.Path, name string) *field.Path {
	if path == nil {
		return field.NewPath(name)
	}
	return path.Child(name)
}

// remove deletes the value at path and says whether there was one.
func remove(tree map[string]any, path []string) bool {
	child, ok := tree[path[0]]
	if len(path) > 1 {
		if sub, isMap := child.(map[string]any); isMap {
			return remove(sub, path[1:])
		}
	}
	delete(tree, path[0])
	return ok
}
