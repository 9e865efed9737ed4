package baremetal

import (
	"context"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	servicehelper "k8s.io/cloud-provider/service/helpers"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"fairlead.dev/fairlead/api/v1alpha1"
)

// shelf is a cache that holds what a test puts there.
type shelf struct {
	cache.Cache
	services []corev1.Service
	pools    []v1alpha1.AddressPool
}

func (s *shelf) Get(_ context.Context, key client.ObjectKey, obj client.Object, _ ...client.GetOption) error {
	for i := range s.services {
		if out, ok := obj.(*corev1.Service); ok && client.ObjectKeyFromObject(&s.services[i]) == key {
			s.services[i].DeepCopyInto(out)
			return nil
		}
	}
	return apierrors.NewNotFound(corev1.Resource("services"), key.Name)
}

func (s *shelf) List(_ context.Context, list client.ObjectList, _ ...client.ListOption) error {
	switch out := list.(type) {
	case *corev1.ServiceList:
		out.Items = s.services
	case *v1alpha1.AddressPoolList:
		out.Items = s.pools
	}
	return nil
}

// serviceOf returns a Service that is age minutes younger than the oldest there can be.
func serviceOf(name string, age int, addresses ...string) corev1.Service {
	svc := corev1.Service{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "default", Name: name, UID: types.UID(name),
			CreationTimestamp: metav1.NewTime(epoch.Add(time.Duration(age) * time.Minute)),
			Finalizers:        []string{servicehelper.LoadBalancerCleanupFinalizer},
		},
		Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer, IPFamilies: []corev1.IPFamily{"IPv4"}},
	}
	for _, a := range addresses {
		svc.Status.LoadBalancer.Ingress = append(svc.Status.LoadBalancer.Ingress, corev1.LoadBalancerIngress{IP: a})
	}
	return svc
}

func loaded(t *testing.T, s *shelf) *Provider {
	t.Helper()
	wants := func(svc *corev1.Service) bool { return svc.Spec.Type == corev1.ServiceTypeLoadBalancer }
	p := New(s, wants, func(string) {})
	if err := p.load(t.Context(), func(types.NamespacedName) {}); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestAdoptingLeftovers(t *testing.T) {
	deleted := metav1.NewTime(epoch.Add(time.Hour))
	for name, edit := range map[string]func(*corev1.Service){
		"deleted and released, kept by another's finalizer": func(svc *corev1.Service) {
			svc.DeletionTimestamp, svc.Finalizers = &deleted, []string{"example.com/audit"}
		},
		"deleted, stopped between release and patch": func(svc *corev1.Service) { svc.DeletionTimestamp = &deleted },
		"of another type, stopped between release and patch": func(svc *corev1.Service) {
			svc.Spec.Type = corev1.ServiceTypeClusterIP
			svc.Annotations = map[string]string{v1alpha1.AnnotationProvider: Name}
		},
	} {
		t.Run(name, func(t *testing.T) {
			older, running := serviceOf("older", 0, "192.0.2.0"), serviceOf("running", 1, "192.0.2.0")
			edit(&older)
			p := loaded(t, &shelf{
				services: []corev1.Service{older, running},
				pools:    []v1alpha1.AddressPool{poolOf("blue", 0, "192.0.2.0/31")},
			})
			got, err := p.EnsureLoadBalancer(t.Context(), "", &running, nil)
			if err != nil || len(got.Ingress) != 1 || got.Ingress[0].IP != "192.0.2.0" {
				t.Errorf("the running Service has %v, %v, want 192.0.2.0", got, err)
			}
		})
	}
	t.Run("released ones hold nothing", func(t *testing.T) {
		gone := serviceOf("gone", 0, "192.0.2.0")
		gone.DeletionTimestamp, gone.Finalizers = &deleted, []string{"example.com/audit"}
		p := loaded(t, &shelf{services: []corev1.Service{gone}, pools: []v1alpha1.AddressPool{poolOf("blue", 0, "192.0.2.0/32")}})
		if r, _ := p.Report("blue"); r.Assigned.IPv4 != 0 {
			t.Errorf("%d addresses are assigned, want none", r.Assigned.IPv4)
		}
	})
}

func TestStaleEvent(t *testing.T) {
	for name, tc := range map[string]struct {
		now  func(*corev1.Service) // nil where it is gone
		want bool
	}{
		"gone":                 {want: false},
		"came back":            {now: func(*corev1.Service) {}, want: true},
		"another of that name": {now: func(svc *corev1.Service) { svc.UID = "other" }, want: false},
		"ours no longer":       {now: func(svc *corev1.Service) { svc.Spec.Type = corev1.ServiceTypeClusterIP }, want: false},
	} {
		t.Run(name, func(t *testing.T) {
			s := &shelf{pools: []v1alpha1.AddressPool{poolOf("blue", 0, "192.0.2.0/31")}}
			p := loaded(t, s)
			svc := serviceOf("web", 0)
			if _, err := p.EnsureLoadBalancer(t.Context(), "", &svc, nil); err != nil {
				t.Fatal(err)
			}
			if tc.now != nil {
				now := svc.DeepCopy()
				tc.now(now)
				s.services = []corev1.Service{*now}
			}
			between := svc.DeepCopy()
			between.Spec.Type = corev1.ServiceTypeClusterIP
			p.serviceHandler(t.Context()).OnUpdate(&svc, between)
			if _, has, err := p.GetLoadBalancer(t.Context(), "", &svc); has != tc.want || err != nil {
				t.Errorf("has an address: %v, %v, want %v", has, err, tc.want)
			}
		})
	}
}
