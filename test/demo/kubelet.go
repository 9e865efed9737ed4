package main

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

const (
	// probePeriod is shorter than a kubelet's least, 1 s, so that the demo is short.
	// What it measures begins when a probe fails, and does not depend on it.
	probePeriod  = 200 * time.Millisecond
	probeTimeout = time.Second // the default of timeoutSeconds

	podNamespace = "default"
	appLabel     = "app"
)

// kubelet plays its part for the nodes and pods of the world: it registers them, runs
// real readiness probes from the node, and writes the pods' conditions.
type kubelet struct {
	api    client.Client
	clock  clock.WithTicker
	events *recorder
	failed func(error) // is called when the API server refuses a condition
}

// register makes the Node object of n, and its status.
func (k *kubelet) register(ctx context.Context, n *node) error {
	object := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: n.Name, Labels: map[string]string{
			corev1.LabelHostname:     n.Name,
			corev1.LabelTopologyZone: n.zone,
			corev1.LabelOSStable:     "linux",
		}},
	}
	for _, cidr := range n.PodCIDRs {
		object.Spec.PodCIDRs = append(object.Spec.PodCIDRs, cidr.String())
	}
	object.Spec.PodCIDR = object.Spec.PodCIDRs[0]
	if err := k.api.Create(ctx, object); err != nil {
		return fmt.Errorf("registering node %s: %w", n.Name, err)
	}
	object.Status.Addresses = []corev1.NodeAddress{
		{Type: corev1.NodeInternalIP, Address: n.IPv4.String()},
		{Type: corev1.NodeInternalIP, Address: n.IPv6.String()},
		{Type: corev1.NodeHostName, Address: n.Name},
	}
	object.Status.Conditions = []corev1.NodeCondition{{
		Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "KubeletReady",
		LastTransitionTime: metav1.NewTime(k.clock.Now()), LastHeartbeatTime: metav1.NewTime(k.clock.Now()),
	}}
	if err := k.api.Status().Update(ctx, object); err != nil {
		return fmt.Errorf("writing the status of node %s: %w", n.Name, err)
	}
	return nil
}

// run binds a Pod object for p to its node and probes it until ctx ends.
func (k *kubelet) run(ctx context.Context, p *pod) error {
	object := podObject(p)
	if err := k.api.Create(ctx, object); err != nil {
		return fmt.Errorf("creating pod %s: %w", p.Name, err)
	}
	if err := k.api.Status().Update(ctx, withStatus(object, p, false, k.clock.Now())); err != nil {
		return fmt.Errorf("writing the status of pod %s: %w", p.Name, err)
	}
	go k.probe(ctx, p, object)
	return nil
}

func podObject(p *pod) *corev1.Pod {
	port := func(name string, protocol corev1.Protocol) corev1.ContainerPort {
		return corev1.ContainerPort{Name: name, Protocol: protocol, ContainerPort: echoPort}
	}
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: podNamespace, Name: p.Name, Labels: map[string]string{appLabel: p.app}},
		Spec: corev1.PodSpec{
			NodeName: p.node.Name,
			Containers: []corev1.Container{{
				Name: "echo", Image: "netlab/echo",
				Ports: []corev1.ContainerPort{port("http", corev1.ProtocolTCP), port("udp", corev1.ProtocolUDP)},
				ReadinessProbe: &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{
					Path: "/readyz", Port: intstr.FromInt32(echoPort),
				}}},
			}},
		},
	}
}

// withStatus returns object with the status of a running pod.
func withStatus(object *corev1.Pod, p *pod, ready bool, now time.Time) *corev1.Pod {
	condition := func(t corev1.PodConditionType, is bool) corev1.PodCondition {
		status := corev1.ConditionFalse
		if is {
			status = corev1.ConditionTrue
		}
		return corev1.PodCondition{Type: t, Status: status, LastTransitionTime: metav1.NewTime(now)}
	}
	started := metav1.NewTime(now)
	object = object.DeepCopy()
	object.Status = corev1.PodStatus{
		Phase: corev1.PodRunning, StartTime: &started,
		HostIP: p.node.IPv4.String(), HostIPs: []corev1.HostIP{{IP: p.node.IPv4.String()}, {IP: p.node.IPv6.String()}},
		PodIP: p.IPv4.String(), PodIPs: []corev1.PodIP{{IP: p.IPv4.String()}, {IP: p.IPv6.String()}},
		Conditions: []corev1.PodCondition{
			condition(corev1.PodScheduled, true), condition(corev1.PodInitialized, true),
			condition(corev1.ContainersReady, ready), condition(corev1.PodReady, ready),
		},
		ContainerStatuses: []corev1.ContainerStatus{{
			Name: "echo", Image: "netlab/echo", Ready: ready, Started: new(true),
			State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: started}},
		}},
	}
	return object
}

// probe asks the pod whether it is ready, and writes its condition when that changes.
func (k *kubelet) probe(ctx context.Context, p *pod, object *corev1.Pod) {
	httpClient := &http.Client{
		Timeout:   probeTimeout,
		Transport: &http.Transport{DialContext: p.node.DialContext, DisableKeepAlives: true},
	}
	url := fmt.Sprintf("http://%s/readyz", netip.AddrPortFrom(p.IPv4, echoPort))
	ticker := k.clock.NewTicker(probePeriod)
	defer ticker.Stop()
	was := false
	for {
		if ready := probeOnce(ctx, httpClient, url); ready != was && ctx.Err() == nil {
			k.events.add(event{kind: probed, pod: p.Name})
			if err := k.write(ctx, p, object, ready); err != nil {
				k.failed(err)
				return
			}
			was = ready
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C():
		}
	}
}

// probeOnce says what a kubelet would: any answer from 200 to 399 is success.
func probeOnce(ctx context.Context, httpClient *http.Client, url string) bool {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return false
	}
	response, err := httpClient.Do(request)
	if err != nil {
		return false
	}
	_ = response.Body.Close() // nothing was asked of it
	return response.StatusCode >= http.StatusOK && response.StatusCode < http.StatusBadRequest
}

func (k *kubelet) write(ctx context.Context, p *pod, object *corev1.Pod, ready bool) error {
	patch := client.StrategicMergeFrom(withStatus(object, p, !ready, object.CreationTimestamp.Time))
	if err := k.api.Status().Patch(ctx, withStatus(object, p, ready, k.clock.Now()), patch); err != nil && ctx.Err() == nil {
		return fmt.Errorf("writing the status of pod %s: %w", p.Name, err)
	}
	k.events.add(event{kind: written, pod: p.Name})
	return nil
}
