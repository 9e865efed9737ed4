package controllers

import (
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	fairleadv1alpha1 "fairlead.dev/fairlead/api/v1alpha1"
)

// provided is what a provider was asked for one Service last, and what it answered.
type provided struct {
	given     *corev1.Service // read-only: the provider may keep it
	nodes     string          // the key of the node set it was told
	ingress   []corev1.LoadBalancerIngress
	condition metav1.Condition
	// settled says that asking again brings the same answer, until the Service
	// changes or the provider says otherwise.
	settled bool
	// elsewhere says that the provider leaves the Service to another controller.
	elsewhere bool
	// announce says that an event is due also if nothing in the status changes.
	announce bool
	// published says that ingress was written, so that another one is not ours.
	published bool
	failure   string // of the last UpdateLoadBalancer
}

// shown returns the condition to publish. The load balancer of an update that failed is
// still there, so that the condition keeps its status.
func (p *provided) shown() metav1.Condition {
	c := p.condition
	if p.failure != "" {
		c.Message += "; updating its nodes failed: " + p.failure
	}
	return c
}

// sameDemand says whether the two are the same Service and ask for the same. All of the
// spec counts, and metadata but for what controllers write: providers read it all.
func sameDemand(a, b *corev1.Service) bool {
	return a.UID == b.UID &&
		equality.Semantic.DeepEqual(a.Spec, b.Spec) &&
		equality.Semantic.DeepEqual(a.Labels, b.Labels) &&
		sameAnnotations(a.Annotations, b.Annotations)
}

func sameAnnotations(a, b map[string]string) bool {
	covers := func(a, b map[string]string) bool {
		for k, v := range a {
			if k == fairleadv1alpha1.AnnotationProvider || k == fairleadv1alpha1.AnnotationProviderClass {
				continue
			}
			if other, ok := b[k]; !ok || other != v {
				return false
			}
		}
		return true
	}
	return covers(a, b) && covers(b, a)
}

// memory holds what was provided per Service. The zero value is empty.
type memory struct {
	mu       sync.Mutex
	provided map[types.NamespacedName]provided
	again    map[types.NamespacedName]bool
}

func (m *memory) get(key types.NamespacedName) (provided, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	p, ok := m.provided[key]
	return p, ok
}

func (m *memory) set(key types.NamespacedName, p provided) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.provided == nil {
		m.provided = map[types.NamespacedName]provided{}
	}
	m.provided[key] = p
}

func (m *memory) forget(key types.NamespacedName) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.provided, key)
	delete(m.again, key)
}

// disown notes that what was provided is being deleted, so that it has to be ensured again
// if the Service wants it back before all is done. It returns whether the provider left
// the Service to another controller.
func (m *memory) disown(key types.NamespacedName) (elsewhere bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	p, ok := m.provided[key]
	if ok {
		p.settled, p.published, p.announce = false, false, true
		m.provided[key] = p
	}
	return p.elsewhere
}

func (m *memory) keys() []types.NamespacedName {
	m.mu.Lock()
	defer m.mu.Unlock()
	keys := make([]types.NamespacedName, 0, len(m.provided))
	for key := range m.provided {
		keys = append(keys, key)
	}
	return keys
}

// askAgain notes that the next reconciliation has to ask the provider.
func (m *memory) askAgain(key types.NamespacedName) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.again == nil {
		m.again = map[types.NamespacedName]bool{}
	}
	m.again[key] = true
}

// takeAgain returns whether askAgain was called since the last takeAgain.
func (m *memory) takeAgain(key types.NamespacedName) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	again := m.again[key]
	delete(m.again, key)
	return again
}
