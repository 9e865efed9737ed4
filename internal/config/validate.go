package config

import (
	"math"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"fairlead.dev/fairlead/api/config/v1alpha1"
)

func validateController(c *v1alpha1.ControllerConfiguration) field.ErrorList {
	errs := validateKind(c.APIVersion, c.Kind, v1alpha1.ControllerKind)
	endpoints := field.NewPath("endpoints")
	switch c.Endpoints.Mode {
	case v1alpha1.EndpointsOwn, v1alpha1.EndpointsObserve, v1alpha1.EndpointsOff, v1alpha1.EndpointsAuto:
	default:
		errs = append(errs, field.NotSupported(endpoints.Child("mode"), c.Endpoints.Mode, []v1alpha1.EndpointsMode{
			v1alpha1.EndpointsOwn, v1alpha1.EndpointsObserve, v1alpha1.EndpointsOff, v1alpha1.EndpointsAuto,
		}))
	}
	if n := c.Endpoints.MaxEndpointsPerSlice; n < 1 || n > maxEndpointsPerSliceLimit {
		errs = append(errs, field.Invalid(endpoints.Child("maxEndpointsPerSlice"), n, "must be between 1 and 1000"))
	}
	class := field.NewPath("loadBalancer", "class")
	if c.LoadBalancer.Provider != "" && c.LoadBalancer.Class == "" {
		errs = append(errs, field.Required(class, "must be the loadBalancerClass to serve, such as "+DefaultLoadBalancerClass))
	} else if c.LoadBalancer.Class != "" {
		// The API server's own rule for spec.loadBalancerClass.
		for _, msg := range validation.IsQualifiedName(c.LoadBalancer.Class) {
			errs = append(errs, field.Invalid(class, c.LoadBalancer.Class, msg))
		}
	}
	errs = append(errs, validateServer(field.NewPath("metrics"), c.Metrics)...)
	return append(errs, validateServer(field.NewPath("healthProbe"), c.HealthProbe)...)
}

func validateNode(c *v1alpha1.NodeConfiguration) field.ErrorList {
	errs := validateKind(c.APIVersion, c.Kind, v1alpha1.NodeKind)
	errs = append(errs, validateLocalTraffic(field.NewPath("localTraffic"), c.LocalTraffic)...)
	path := field.NewPath("nodePortAddresses")
	switch {
	case len(c.NodePortAddresses) == 0:
		errs = append(errs, field.Required(path, `must be CIDRs, or "primary"`))
	case len(c.NodePortAddresses) == 1 && c.NodePortAddresses[0] == v1alpha1.NodePortPrimary:
	default:
		errs = append(errs, validateCIDRs(path, c.NodePortAddresses)...)
	}
	errs = append(errs, validateConntrack(field.NewPath("conntrack"), c.Conntrack)...)
	errs = append(errs, validateServer(field.NewPath("healthz"), c.Healthz)...)
	return append(errs, validateServer(field.NewPath("metrics"), c.Metrics)...)
}

func validateLocalTraffic(path *field.Path, l v1alpha1.LocalTraffic) field.ErrorList {
	errs := validateCIDRs(path.Child("clusterCIDRs"), l.ClusterCIDRs)
	var set []string
	for _, way := range []struct {
		name string
		set  bool
	}{
		{"clusterCIDRs", len(l.ClusterCIDRs) > 0}, {"nodeCIDR", l.NodeCIDR},
		{"bridge", l.Bridge != ""}, {"interfacePrefix", l.InterfacePrefix != ""},
	} {
		if way.set {
			set = append(set, way.name)
		}
	}
	if len(set) > 1 {
		errs = append(errs, field.Invalid(path, strings.Join(set, ", "), "must have at most one of its fields"))
	}
	errs = append(errs, validateInterface(path.Child("bridge"), l.Bridge)...)
	return append(errs, validateInterface(path.Child("interfacePrefix"), l.InterfacePrefix)...)
}

// validateInterface accepts what the kernel does (dev_valid_name in net/core/dev.c), and
// nothing at all.
func validateInterface(path *field.Path, name string) field.ErrorList {
	if len(name) >= unix.IFNAMSIZ {
		return field.ErrorList{field.Invalid(path, name, "must be at most 15 bytes, as names of interfaces are")}
	}
	if name == "." || name == ".." || strings.ContainsAny(name, "/: \t\n\v\f\r") {
		return field.ErrorList{field.Invalid(path, name, `must be part of an interface's name, without "/", ":" and spaces`)}
	}
	return nil
}

func validateConntrack(path *field.Path, c v1alpha1.Conntrack) field.ErrorList {
	var errs field.ErrorList
	for name, n := range map[string]int32{"maxPerCore": c.MaxPerCore, "min": c.Min} {
		if n < 0 {
			errs = append(errs, field.Invalid(path.Child(name), n, "must not be negative; 0 leaves it as it is"))
		}
	}
	for name, d := range map[string]metav1.Duration{
		"tcpEstablishedTimeout": c.TCPEstablishedTimeout, "tcpCloseWaitTimeout": c.TCPCloseWaitTimeout,
		"udpTimeout": c.UDPTimeout, "udpStreamTimeout": c.UDPStreamTimeout,
	} {
		switch {
		case d.Duration < 0:
			errs = append(errs, field.Invalid(path.Child(name), d.Duration.String(), "must not be negative; 0 leaves it as it is"))
		case d.Duration%time.Second != 0:
			errs = append(errs, field.Invalid(path.Child(name), d.Duration.String(), "must be whole seconds"))
		case d.Duration > math.MaxInt32*time.Second:
			errs = append(errs, field.Invalid(path.Child(name), d.Duration.String(), "must be at most 2147483647s, the kernel's limit"))
		}
	}
	return errs
}

func validateKind(apiVersion, kind, want string) field.ErrorList {
	var errs field.ErrorList
	if apiVersion != v1alpha1.APIVersion {
		errs = append(errs, field.NotSupported(field.NewPath("apiVersion"), apiVersion, []string{v1alpha1.APIVersion}))
	}
	if kind != want {
		errs = append(errs, field.NotSupported(field.NewPath("kind"), kind, []string{want}))
	}
	return errs
}

func validateCIDRs(path *field.Path, cidrs []string) field.ErrorList {
	var errs field.ErrorList
	for i, cidr := range cidrs {
		prefix, err := netip.ParsePrefix(cidr)
		switch {
		case err != nil:
			errs = append(errs, field.Invalid(path.Index(i), cidr, "must be a CIDR such as 10.244.0.0/16 or fd00:10:244::/56"))
		case prefix.Masked() != prefix:
			errs = append(errs, field.Invalid(path.Index(i), cidr, "has bits beyond its prefix length; did you mean "+prefix.Masked().String()+"?"))
		}
	}
	return errs
}

// validateServer accepts host:port with a literal address or no host, and "0".
func validateServer(path *field.Path, s v1alpha1.Server) field.ErrorList {
	if s.BindAddress == "0" {
		return nil
	}
	bad := func(msg string) field.ErrorList {
		return field.ErrorList{field.Invalid(path.Child("bindAddress"), s.BindAddress, msg)}
	}
	host, port, err := net.SplitHostPort(s.BindAddress)
	if err != nil {
		return bad(`must be host:port, :port, or "0" for off`)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return bad("must have a port between 1 and 65535")
	}
	if host == "" {
		return nil
	}
	if _, err := netip.ParseAddr(host); err != nil && host != "localhost" {
		return bad("must have an IP address or localhost as its host")
	}
	return nil
}
