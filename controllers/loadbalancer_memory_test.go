package controllers

import (
	"testing"

	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
)

func TestMemoryOfAServiceThatIsGoneIsEmpty(t *testing.T) {
	r := &LoadBalancerReconciler{Client: fake.NewClientBuilder().Build()}
	gone := types.NamespacedName{Namespace: "default", Name: "gone"}
	r.memory.askAgain(gone) // the provider is told of deletions when we are, not before
	if _, err := r.Reconcile(t.Context(), ctrl.Request{NamespacedName: gone}); err != nil {
		t.Fatal(err)
	}
	if len(r.memory.again) > 0 {
		t.Errorf("remembers %v", r.memory.again)
	}
}
