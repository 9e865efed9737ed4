package endpointslice_test

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"fairlead.dev/fairlead/internal/endpointslice"
)

func TestWhichPods(t *testing.T) {
	phase := func(phase corev1.PodPhase) func(*corev1.Pod) {
		return func(p *corev1.Pod) { p.Status.Phase = phase }
	}
	noAddress := func(p *corev1.Pod) { p.Status.PodIP, p.Status.PodIPs = "", nil }
	unknownNode := func(p *corev1.Pod) { p.Spec.NodeName = "node-z" }
	labels := func(labels map[string]string) func(*corev1.Pod) {
		return func(p *corev1.Pod) { p.Labels = labels }
	}
	none := []string(nil)
	one := []string{"pod-001"}
	for name, tc := range map[string]struct {
		svc  *corev1.Service
		pods []*corev1.Pod
		want []string
	}{
		"no pods":                                     {dualStack(), nil, none},
		"a running pod":                               {dualStack(), pods(1, 2), one},
		"a pending pod that has its address":          {dualStack(), pods(1, 2, phase(corev1.PodPending)), one},
		"a pod without an address":                    {dualStack(), pods(1, 2, noAddress), none},
		"a failed pod":                                {dualStack(), pods(1, 2, phase(corev1.PodFailed)), none},
		"a succeeded pod":                             {dualStack(), pods(1, 2, phase(corev1.PodSucceeded)), none},
		"a failed pod, not ready published":           {dualStack(publishNotReady), pods(1, 2, phase(corev1.PodFailed)), none},
		"a pod without an address, published":         {dualStack(publishNotReady), pods(1, 2, noAddress), none},
		"a pod that is not ready":                     {dualStack(), pods(1, 2, notReady), one},
		"a terminating pod":                           {dualStack(), pods(1, 2, terminating), one},
		"a pod on an unknown node beside a known one": {dualStack(), []*corev1.Pod{pod(0, unknownNode), pod(1)}, one},
		"a pod on an unknown node, published":         {dualStack(publishNotReady), pods(1, 2, unknownNode), one},
		"a host-network pod": {dualStack(), pods(1, 2, func(p *corev1.Pod) {
			p.Spec.HostNetwork = true
		}), one},
		"two pods with one address": {dualStack(), []*corev1.Pod{pod(1), pod(2, func(p *corev1.Pod) {
			p.Status = *pod(1).Status.DeepCopy()
		})}, []string{"pod-001", "pod-002"}},
		"a pod with more labels than the selector": {dualStack(), pods(1, 2, labels(map[string]string{"app": "web", "x": "y"})), one},
		"a pod with another value":                 {dualStack(), pods(1, 2, labels(map[string]string{"app": "db"})), none},
		"a pod with one pair of two": {dualStack(func(s *corev1.Service) {
			s.Spec.Selector = map[string]string{"app": "web", "tier": "front"}
		}), pods(1, 2), none},
		"a pair with an empty value that the pod lacks": {dualStack(func(s *corev1.Service) {
			s.Spec.Selector = map[string]string{"tier": ""}
		}), pods(1, 2), none},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(tc.svc, tc.pods...)
			w.sync(t)
			for _, family := range families {
				diff(t, "endpoints", tc.want, podNames(w.endpoints(family)))
			}
		})
	}
}

func TestServicesThatAreNotOurs(t *testing.T) {
	for name, edit := range map[string]func(*corev1.Service){
		"a nil selector":                  func(s *corev1.Service) { s.Spec.Selector = nil },
		"an empty selector":               func(s *corev1.Service) { s.Spec.Selector = map[string]string{} },
		"an ExternalName with a selector": func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeExternalName },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(dualStack(edit), pod(1))
			if plan := w.plan(); !plan.Empty() {
				t.Errorf("plan = %v, want none", counts(plan))
			}
		})
	}
}

func TestConditions(t *testing.T) {
	noCondition := func(p *corev1.Pod) { p.Status.Conditions = nil }
	for name, tc := range map[string]struct {
		svc                         *corev1.Service
		pod                         *corev1.Pod
		ready, serving, terminating bool
	}{
		"ready":                               {dualStack(), pod(1), true, true, false},
		"not ready":                           {dualStack(), pod(1, notReady), false, false, false},
		"without the condition":               {dualStack(), pod(1, noCondition), false, false, false},
		"terminating but serving":             {dualStack(), pod(1, terminating), false, true, true},
		"terminating and not serving":         {dualStack(), pod(1, terminating, notReady), false, false, true},
		"not ready, published":                {dualStack(publishNotReady), pod(1, notReady), true, false, false},
		"terminating, published":              {dualStack(publishNotReady), pod(1, terminating), true, true, true},
		"terminating, not serving, published": {dualStack(publishNotReady), pod(1, terminating, notReady), true, false, true},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(tc.svc, tc.pod)
			w.sync(t)
			for _, family := range families {
				want := discoveryv1.EndpointConditions{Ready: &tc.ready, Serving: &tc.serving, Terminating: &tc.terminating}
				diff(t, "conditions", want, w.endpoints(family)[0].Conditions)
			}
		})
	}
}

func TestWhatAnEndpointSays(t *testing.T) {
	for _, family := range families {
		plain := discoveryv1.Endpoint{
			Addresses: []string{address(1, family)},
			Conditions: discoveryv1.EndpointConditions{
				Ready: new(true), Serving: new(true), Terminating: new(false),
			},
			TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: "shop", Name: "pod-001", UID: "pod-uid-1"},
			NodeName:  new("node-a"),
			Zone:      new("zone-a"),
		}
		with := func(edit func(*discoveryv1.Endpoint)) discoveryv1.Endpoint {
			e := plain.DeepCopy()
			edit(e)
			return *e
		}
		for name, tc := range map[string]struct {
			svc  func(*corev1.Service)
			pod  func(*corev1.Pod)
			want discoveryv1.Endpoint
		}{
			"address, target, node and zone": {want: plain},
			"no zone from a node without the label": {
				pod:  func(p *corev1.Pod) { p.Spec.NodeName = "node-c" },
				want: with(func(e *discoveryv1.Endpoint) { e.NodeName, e.Zone = new("node-c"), nil }),
			},
			"no zone from an unknown node": {
				svc:  publishNotReady,
				pod:  func(p *corev1.Pod) { p.Spec.NodeName = "node-z" },
				want: with(func(e *discoveryv1.Endpoint) { e.NodeName, e.Zone = new("node-z"), nil }),
			},
			"no node before the pod is scheduled": {
				svc:  publishNotReady,
				pod:  func(p *corev1.Pod) { p.Spec.NodeName = "" },
				want: with(func(e *discoveryv1.Endpoint) { e.NodeName, e.Zone = nil, nil }),
			},
			"hostname in the subdomain of the Service": {
				pod:  func(p *corev1.Pod) { p.Spec.Hostname, p.Spec.Subdomain = "web-0", "web" },
				want: with(func(e *discoveryv1.Endpoint) { e.Hostname = new("web-0") }),
			},
			"no hostname in another subdomain": {
				pod:  func(p *corev1.Pod) { p.Spec.Hostname, p.Spec.Subdomain = "web-0", "db" },
				want: plain,
			},
			"no hostname from a subdomain alone": {
				pod:  func(p *corev1.Pod) { p.Spec.Subdomain = "web" },
				want: plain,
			},
			"one address of each family": {
				pod: func(p *corev1.Pod) {
					p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: "10.9.9.9"}, corev1.PodIP{IP: "fd99::9"})
				},
				want: plain,
			},
			"addresses in canonical form": {
				pod: func(p *corev1.Pod) {
					p.Status.PodIPs = []corev1.PodIP{{IP: "::ffff:10.0.0.1"}, {IP: "FD00:0:0:0::2"}}
				},
				want: plain,
			},
		} {
			t.Run(string(family)+" "+name, func(t *testing.T) {
				w := newWorld(dualStack(), pod(1))
				w.nodes["node-c"] = &corev1.Node{}
				if tc.svc != nil {
					tc.svc(w.svc)
				}
				if tc.pod != nil {
					tc.pod(w.pods[0])
				}
				w.sync(t)
				diff(t, "endpoints", []discoveryv1.Endpoint{tc.want}, w.endpoints(family))
			})
		}
	}
}

func TestPodOfTheOtherFamily(t *testing.T) {
	w := newWorld(dualStack(), pod(1, func(p *corev1.Pod) { p.Status.PodIPs = p.Status.PodIPs[:1] }))
	w.sync(t)
	diff(t, "IPv4", []int{1}, w.sizes(discoveryv1.AddressTypeIPv4))
	diff(t, "IPv6", []int{0}, w.sizes(discoveryv1.AddressTypeIPv6))
}

func TestHints(t *testing.T) {
	zones := &discoveryv1.EndpointHints{ForZones: []discoveryv1.ForZone{{Name: "zone-a"}}}
	zonesAndNodes := &discoveryv1.EndpointHints{
		ForZones: []discoveryv1.ForZone{{Name: "zone-a"}}, ForNodes: []discoveryv1.ForNode{{Name: "node-a"}},
	}
	annotated := func(key, value string) func(*corev1.Service) {
		return func(s *corev1.Service) { s.Annotations = map[string]string{key: value} }
	}
	for name, tc := range map[string]struct {
		distribution string
		svc          func(*corev1.Service)
		pod          func(*corev1.Pod)
		want         *discoveryv1.EndpointHints
	}{
		"none by default":                  {},
		"PreferClose":                      {distribution: "PreferClose", want: zones},
		"PreferSameZone":                   {distribution: "PreferSameZone", want: zones},
		"PreferSameNode":                   {distribution: "PreferSameNode", want: zonesAndNodes},
		"none for one that is not ready":   {distribution: "PreferSameNode", pod: notReady},
		"none for one that terminates":     {distribution: "PreferSameNode", pod: terminating},
		"also for one published not ready": {distribution: "PreferClose", pod: notReady, svc: publishNotReady, want: zones},
		"an unknown distribution":          {distribution: "PreferMoon"},
		"topology-mode Auto wins":          {distribution: "PreferClose", svc: annotated(corev1.AnnotationTopologyMode, "Auto")},
		"topology-mode Disabled loses": {
			distribution: "PreferClose", svc: annotated(corev1.AnnotationTopologyMode, "Disabled"), want: zones,
		},
		"the older annotation wins too": {
			distribution: "PreferClose", svc: annotated(corev1.DeprecatedAnnotationTopologyAwareHints, "auto"),
		},
		"no zone, no zone hint": {
			distribution: "PreferClose", pod: func(p *corev1.Pod) { p.Spec.NodeName = "node-c" },
		},
		"no zone, but a node": {
			distribution: "PreferSameNode", pod: func(p *corev1.Pod) { p.Spec.NodeName = "node-c" },
			want: &discoveryv1.EndpointHints{ForNodes: []discoveryv1.ForNode{{Name: "node-c"}}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(dualStack(), pod(1))
			w.nodes["node-c"] = &corev1.Node{}
			w.sync(t) // hints must come and go on slices that are there
			if tc.distribution != "" {
				w.svc.Spec.TrafficDistribution = &tc.distribution
			}
			if tc.svc != nil {
				tc.svc(w.svc)
			}
			if tc.pod != nil {
				tc.pod(w.pods[0])
			}
			w.sync(t)
			for _, family := range families {
				diff(t, "hints", tc.want, w.endpoints(family)[0].Hints)
			}
			w.svc.Spec.TrafficDistribution = nil
			w.sync(t)
			if h := w.endpoints(families[0])[0].Hints; h != nil {
				t.Errorf("hints = %v after the distribution was removed", h)
			}
		})
	}
}

func TestPodChanged(t *testing.T) {
	for name, tc := range map[string]struct {
		edit func(*corev1.Pod)
		want bool
	}{
		"nothing":           {func(*corev1.Pod) {}, false},
		"a heartbeat":       {func(p *corev1.Pod) { p.ResourceVersion = "2"; p.Annotations = map[string]string{"a": "b"} }, false},
		"readiness":         {notReady, true},
		"deletion":          {terminating, true},
		"a label":           {func(p *corev1.Pod) { p.Labels = nil }, true},
		"its node":          {func(p *corev1.Pod) { p.Spec.NodeName = "node-b" }, true},
		"its end":           {func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed }, true},
		"its start":         {func(p *corev1.Pod) { p.Status.Phase = corev1.PodPending }, false},
		"an address":        {func(p *corev1.Pod) { p.Status.PodIPs = p.Status.PodIPs[:1] }, true},
		"another of a name": {func(p *corev1.Pod) { p.UID = "other" }, true},
	} {
		t.Run(name, func(t *testing.T) {
			if got := endpointslice.PodChanged(pod(1), pod(1, tc.edit)); got != tc.want {
				t.Errorf("PodChanged() = %t, want %t", got, tc.want)
			}
		})
	}
}
