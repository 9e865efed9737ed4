package endpointslice

import (
	"encoding/json"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"fairlead.dev/fairlead/api/v1alpha1"
)

// maxBadWeight bounds what a pod can put into a slice that is no weight, in bytes.
const maxBadWeight = 32

// weightsOf returns what the slices say of the weights of pods, by name: numbers, and
// strings for what is none, which the nodes report. A pod of weight 1 asks for nothing.
func weightsOf(pods []*corev1.Pod) map[string]any {
	var weights map[string]any
	for _, pod := range pods {
		text, ok := pod.Annotations[v1alpha1.AnnotationWeights]
		weight, err := strconv.Atoi(text)
		if !ok || weight == 1 {
			continue
		}
		if weights == nil {
			weights = map[string]any{}
		}
		if weights[pod.Name] = weight; err != nil || weight < 1 || weight > v1alpha1.MaxWeight {
			weights[pod.Name] = text[:min(len(text), maxBadWeight)]
		}
	}
	return weights
}

// weightsIn returns the annotation with the weights of endpoints, empty for none.
func (b *builder) weightsIn(endpoints []discoveryv1.Endpoint) string {
	if b.weights == nil {
		return ""
	}
	byAddress := map[string]any{}
	for i := range endpoints {
		if weight, ok := b.weights[keyOf(&endpoints[i]).name]; ok {
			byAddress[endpoints[i].Addresses[0]] = weight
		}
	}
	if len(byAddress) == 0 {
		return ""
	}
	text, err := json.Marshal(byAddress)
	if err != nil {
		return "" // cannot be: numbers and strings by string
	}
	return string(text)
}

// misweighted says whether a slice that is there has other weights than it should.
func (b *builder) misweighted(d *draft) bool {
	have, ok := d.old.Annotations[v1alpha1.AnnotationWeights]
	want := b.weightsIn(d.endpoints)
	return have != want || ok && want == ""
}

func (b *builder) annotateWeights(slice *discoveryv1.EndpointSlice) {
	weights := b.weightsIn(slice.Endpoints)
	if weights == "" {
		delete(slice.Annotations, v1alpha1.AnnotationWeights)
		return
	}
	if slice.Annotations == nil {
		slice.Annotations = map[string]string{}
	}
	slice.Annotations[v1alpha1.AnnotationWeights] = weights
}
