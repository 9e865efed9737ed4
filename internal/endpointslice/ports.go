package endpointslice

import (
	"cmp"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// portKey is an EndpointPort as a value that can be compared. The API reads no number
// as "all ports", so that is different from 0; no name is the same as an empty one.
type portKey struct {
	name        string
	protocol    corev1.Protocol
	number      int32
	hasNumber   bool
	appProtocol string
}

func (k portKey) compare(other portKey) int {
	return cmp.Or(
		strings.Compare(k.name, other.name),
		strings.Compare(string(k.protocol), string(other.protocol)),
		cmp.Compare(k.number, other.number),
		strings.Compare(k.appProtocol, other.appProtocol),
	)
}

// portsOf returns the ports that pod serves svc on, in the order of svc. A named
// target port that pod does not have is left out.
func portsOf(svc *corev1.Service, pod *corev1.Pod) []portKey {
	var keys []portKey
	for i := range svc.Spec.Ports {
		port := &svc.Spec.Ports[i]
		if number, ok := targetPort(pod, port); ok {
			keys = append(keys, portKey{
				name: port.Name, protocol: port.Protocol, number: number, hasNumber: true,
				appProtocol: deref(port.AppProtocol, ""),
			})
		}
	}
	return keys
}

// targetPort returns the number of port in pod. A name is looked up among the ports of
// the same protocol, in the regular containers first, then in the restartable init
// containers (sidecars, KEP-753); other init containers have ended.
func targetPort(pod *corev1.Pod, port *corev1.ServicePort) (int32, bool) {
	if port.TargetPort.Type == intstr.Int {
		return port.TargetPort.IntVal, true
	}
	if number, ok := namedPort(pod.Spec.Containers, port); ok {
		return number, true
	}
	for i := range pod.Spec.InitContainers {
		if deref(pod.Spec.InitContainers[i].RestartPolicy, "") != corev1.ContainerRestartPolicyAlways {
			continue
		}
		if number, ok := namedPort(pod.Spec.InitContainers[i:i+1], port); ok {
			return number, true
		}
	}
	return 0, false
}

func namedPort(containers []corev1.Container, port *corev1.ServicePort) (int32, bool) {
	for i := range containers {
		for _, candidate := range containers[i].Ports {
			if candidate.Name == port.TargetPort.StrVal && candidate.Protocol == port.Protocol {
				return candidate.ContainerPort, true
			}
		}
	}
	return 0, false
}

func portKeys(ports []discoveryv1.EndpointPort) []portKey {
	keys := make([]portKey, 0, len(ports))
	for _, p := range ports {
		keys = append(keys, portKey{
			name: deref(p.Name, ""), protocol: deref(p.Protocol, corev1.ProtocolTCP),
			number: deref(p.Port, 0), hasNumber: p.Port != nil,
			appProtocol: deref(p.AppProtocol, ""),
		})
	}
	return keys
}

// endpointPorts is the reverse of portKeys. It never returns nil, because the API wants
// a list.
func endpointPorts(keys []portKey) []discoveryv1.EndpointPort {
	ports := make([]discoveryv1.EndpointPort, 0, len(keys))
	for _, k := range keys {
		port := discoveryv1.EndpointPort{Name: &k.name, Protocol: &k.protocol}
		if k.hasNumber {
			port.Port = &k.number
		}
		if k.appProtocol != "" {
			port.AppProtocol = &k.appProtocol
		}
		ports = append(ports, port)
	}
	return ports
}

// portSets numbers sets of ports: equal sets, in whatever order, get the same number.
// The zero value is ready. It is a trie, so that nothing has to be hashed or printed.
type portSets struct {
	next map[portStep]int
}

// portStep leads from a set to that set with one port more.
type portStep struct {
	set  int
	port portKey
}

func (s *portSets) id(ports []portKey) int {
	if s.next == nil {
		s.next = map[portStep]int{}
	}
	set := 0
	for _, port := range sortedPorts(ports) {
		step := portStep{set, port}
		if s.next[step] == 0 {
			s.next[step] = len(s.next) + 1
		}
		set = s.next[step]
	}
	return set
}

func sortedPorts(ports []portKey) []portKey {
	if slices.IsSortedFunc(ports, portKey.compare) {
		return ports
	}
	return slices.SortedFunc(slices.Values(ports), portKey.compare)
}
