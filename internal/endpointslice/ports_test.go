package endpointslice_test

import (
	"fmt"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

func servicePorts(ports ...corev1.ServicePort) func(*corev1.Service) {
	return func(s *corev1.Service) { s.Spec.Ports = ports }
}

func named(name, target string, protocol corev1.Protocol) corev1.ServicePort {
	return corev1.ServicePort{Name: name, Port: 80, Protocol: protocol, TargetPort: intstr.FromString(target)}
}

func container(name string, number int32, protocol corev1.Protocol) corev1.Container {
	return corev1.Container{Ports: []corev1.ContainerPort{{Name: name, ContainerPort: number, Protocol: protocol}}}
}

func containers(c ...corev1.Container) func(*corev1.Pod) {
	return func(p *corev1.Pod) { p.Spec.Containers = c }
}

func initContainers(policy *corev1.ContainerRestartPolicy, c ...corev1.Container) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		for i := range c {
			c[i].RestartPolicy = policy
		}
		p.Spec.InitContainers = c
	}
}

func TestPorts(t *testing.T) {
	always := new(corev1.ContainerRestartPolicyAlways)
	http := func(number int32) []string { return []string{fmt.Sprintf("http/%d/TCP", number)} }
	byName := servicePorts(named("http", "web", corev1.ProtocolTCP))
	for name, tc := range map[string]struct {
		svc  func(*corev1.Service)
		pod  func(*corev1.Pod)
		want []string
	}{
		"a number": {func(*corev1.Service) {}, func(*corev1.Pod) {}, http(8080)},
		"a name":   {byName, containers(container("web", 8081, corev1.ProtocolTCP)), http(8081)},
		"a name in the second container": {byName, containers(
			container("x", 1, corev1.ProtocolTCP), container("web", 8082, corev1.ProtocolTCP)), http(8082)},
		"a name of another protocol":  {byName, containers(container("web", 8081, corev1.ProtocolUDP)), nil},
		"a name that nobody has":      {byName, containers(container("x", 8081, corev1.ProtocolTCP)), nil},
		"a name in a sidecar":         {byName, initContainers(always, container("web", 9, corev1.ProtocolTCP)), http(9)},
		"a name in an init container": {byName, initContainers(nil, container("web", 9, corev1.ProtocolTCP)), nil},
		"a regular container before a sidecar": {byName, func(p *corev1.Pod) {
			initContainers(always, container("web", 9, corev1.ProtocolTCP))(p)
			containers(container("web", 10, corev1.ProtocolTCP))(p)
		}, http(10)},
		"one of two names": {
			servicePorts(named("http", "web", corev1.ProtocolTCP), named("dns", "dns", corev1.ProtocolUDP)),
			containers(container("dns", 53, corev1.ProtocolUDP)), []string{"dns/53/UDP"},
		},
		"appProtocol": {servicePorts(corev1.ServicePort{
			Name: "http", Port: 80, Protocol: corev1.ProtocolTCP, TargetPort: intstr.FromInt32(80), AppProtocol: new("kubernetes.io/h2c"),
		}), func(*corev1.Pod) {}, []string{"http/80/TCP/kubernetes.io/h2c"}},
		"no ports on a headless Service": {func(s *corev1.Service) { headless(s); s.Spec.Ports = nil }, func(*corev1.Pod) {}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(dualStack(tc.svc), pod(1, tc.pod))
			w.sync(t)
			for _, family := range families {
				slice := w.only(t, family)
				diff(t, "ports", tc.want, portStrings(slice))
				diff(t, "endpoints", []string{"pod-001"}, podNames(slice.Endpoints))
				if slice.Ports == nil {
					t.Error("ports are null, not an empty list")
				}
			}
		})
	}
}

func portStrings(slice *discoveryv1.EndpointSlice) []string {
	var out []string
	for _, p := range slice.Ports {
		s := fmt.Sprintf("%s/%d/%s", *p.Name, *p.Port, *p.Protocol)
		if p.AppProtocol != nil {
			s += "/" + *p.AppProtocol
		}
		out = append(out, s)
	}
	return out
}

func TestPodsThatResolveANameDifferentlyAreApart(t *testing.T) {
	w := newWorld(dualStack(singleStack, servicePorts(named("http", "web", corev1.ProtocolTCP))),
		pod(1, containers(container("web", 81, corev1.ProtocolTCP))),
		pod(2, containers(container("web", 82, corev1.ProtocolTCP))),
		pod(3, containers(container("web", 81, corev1.ProtocolTCP))),
		pod(4))
	w.sync(t)
	got := map[string][]string{}
	for _, slice := range w.slices {
		got[fmt.Sprint(portStrings(slice))] = podNames(slice.Endpoints)
	}
	diff(t, "slices", map[string][]string{
		"[http/81/TCP]": {"pod-001", "pod-003"}, "[http/82/TCP]": {"pod-002"}, "[]": {"pod-004"},
	}, got)
}

func TestOrderOfPortsDoesNotMatter(t *testing.T) {
	second := corev1.ServicePort{Name: "admin", Port: 81, Protocol: corev1.ProtocolTCP, TargetPort: intstr.FromInt32(81)}
	w := newWorld(dualStack(func(s *corev1.Service) { s.Spec.Ports = append(s.Spec.Ports, second) }), pods(0, 3)...)
	w.sync(t)
	slices.Reverse(w.svc.Spec.Ports)
	slices.Reverse(w.slices[0].Ports)
	if plan := w.plan(); !plan.Empty() {
		t.Errorf("plan = %v, want none", counts(plan))
	}
}

func TestChangedPortIsAnUpdateInPlace(t *testing.T) {
	w := newWorld(dualStack(), pods(0, 150)...)
	w.sync(t)
	w.svc.Spec.Ports[0].TargetPort = intstr.FromInt32(9090)
	diff(t, "plan", [3]int{0, 4, 0}, counts(w.sync(t)))
	for _, slice := range w.slices {
		diff(t, "ports", []string{"http/9090/TCP"}, portStrings(slice))
	}
}
