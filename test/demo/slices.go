package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// watchSlices records changes of endpoints until ctx ends. It returns once the watch
// stands. A watch that the API server ends is a failure: one lasts longer than the demo
// measures (--min-request-timeout is 30 minutes).
func watchSlices(ctx context.Context, api client.WithWatch, events *recorder, failed func(error)) error {
	w, err := api.Watch(ctx, &discoveryv1.EndpointSliceList{}, client.InNamespace(podNamespace))
	if err != nil {
		return fmt.Errorf("watching EndpointSlices: %w", err)
	}
	go func() {
		defer w.Stop()
		readiness := map[string]map[string]bool{} // slice -> pod -> ready
		for e := range w.ResultChan() {
			slice, ok := e.Object.(*discoveryv1.EndpointSlice)
			if !ok {
				continue
			}
			now := map[string]bool{}
			if e.Type != watch.Deleted {
				now = podsOf(slice)
			}
			for _, pod := range changed(readiness[slice.Name], now) {
				events.add(event{kind: sliced, pod: pod, place: slice.Name})
			}
			readiness[slice.Name] = now
		}
		if ctx.Err() == nil {
			failed(errors.New("the API server has ended the watch of EndpointSlices"))
		}
	}()
	return nil
}

// podsOf returns the pods in a slice, and whether they are ready there.
func podsOf(slice *discoveryv1.EndpointSlice) map[string]bool {
	out := map[string]bool{}
	for _, e := range slice.Endpoints {
		if e.TargetRef != nil && e.TargetRef.Kind == "Pod" {
			out[e.TargetRef.Name] = e.Conditions.Ready == nil || *e.Conditions.Ready
		}
	}
	return out
}

// changed returns the pods whose readiness differs, one that is not there being unready.
func changed(before, after map[string]bool) []string {
	pods := slices.AppendSeq(slices.Collect(maps.Keys(before)), maps.Keys(after))
	slices.Sort(pods)
	return slices.DeleteFunc(slices.Compact(pods), func(p string) bool { return before[p] == after[p] })
}

// settled returns nil when every Service with a selector has one slice for each of its
// families, with exactly the ready pods ready.
func settled(services []corev1.Service, list []discoveryv1.EndpointSlice, ready []string) error {
	for i := range services {
		svc := &services[i]
		if len(svc.Spec.Selector) == 0 {
			continue
		}
		for _, family := range svc.Spec.IPFamilies {
			if err := settledFamily(svc.Name, discoveryv1.AddressType(family), list, ready); err != nil {
				return err
			}
		}
	}
	return nil
}

func settledFamily(service string, family discoveryv1.AddressType, list []discoveryv1.EndpointSlice, ready []string) error {
	var have []string
	for i := range list {
		if list[i].Labels[discoveryv1.LabelServiceName] != service || list[i].AddressType != family {
			continue
		}
		for pod, isReady := range podsOf(&list[i]) {
			if isReady {
				have = append(have, pod)
			}
		}
	}
	slices.Sort(have)
	if !slices.Equal(have, ready) {
		return fmt.Errorf("the %s slices of %s have %v ready, not %v", family, service, have, ready)
	}
	return nil
}
