package controllers_test

import (
	"context"
	"fmt"
	"sync"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	cloudprovider "k8s.io/cloud-provider"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrlconfig "sigs.k8s.io/controller-runtime/pkg/config"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	configv1alpha1 "fairlead.dev/fairlead/api/config/v1alpha1"
	"fairlead.dev/fairlead/api/v1alpha1"
	"fairlead.dev/fairlead/controllers"
)

// patience is how long a spec may take: some hundred times what it does take, because the
// machine may be busy.
const patience = 30 * time.Second

const cleanupFinalizer = "service.kubernetes.io/load-balancer-cleanup"

// lbEnv is one manager with the LoadBalancer lifecycle of one class, and one namespace.
type lbEnv struct {
	class    string
	ns       string
	client   client.Client
	config   *rest.Config
	provider cloudprovider.Interface
	stop     func()
}

// newLBEnv returns an lbEnv whose manager is not started yet. What is made through it is
// gone when the container that called it is done.
func newLBEnv(ctx context.Context, class string, c client.Client, cfg *rest.Config) *lbEnv {
	GinkgoHelper()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "lb-"}}
	Expect(c.Create(ctx, ns)).To(Succeed())
	e := &lbEnv{class: "test.fairlead.dev/" + class, ns: ns.Name, client: c, config: cfg, stop: func() {}}
	DeferCleanup(NodeTimeout(patience), func(ctx SpecContext) {
		e.stop()
		e.start() // finalizers want somebody to remove them
		Expect(e.client.DeleteAllOf(ctx, &corev1.Service{}, client.InNamespace(e.ns))).To(Succeed())
		Eventually(ctx, e.services).Should(BeEmpty())
		e.stop()
	})
	return e
}

func (e *lbEnv) services(ctx context.Context) ([]corev1.Service, error) {
	var list corev1.ServiceList
	err := e.client.List(ctx, &list, client.InNamespace(e.ns))
	return list.Items, err
}

// start runs a manager until stop is called.
func (e *lbEnv) start() {
	GinkgoHelper()
	scheme, err := controllers.NewScheme()
	Expect(err).NotTo(HaveOccurred())
	mgr, err := ctrl.NewManager(e.config, ctrl.Options{
		Scheme:     scheme,
		Metrics:    metricsserver.Options{BindAddress: "0"},
		Controller: ctrlconfig.Controller{SkipNameValidation: new(true)},
	})
	Expect(err).NotTo(HaveOccurred())
	Expect(controllers.Setup(mgr, &configv1alpha1.ControllerConfiguration{
		Endpoints:    configv1alpha1.Endpoints{Mode: configv1alpha1.EndpointsOff},
		LoadBalancer: configv1alpha1.LoadBalancer{Provider: "baremetal", Class: e.class},
	}, e.provider)).To(Succeed())
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- mgr.Start(ctx) }()
	e.stop = sync.OnceFunc(func() {
		cancel()
		Expect(<-done).To(Succeed())
	})
}

// pool makes an AddressPool that is gone after the current spec.
func (e *lbEnv) pool(ctx context.Context, name string, addresses ...v1alpha1.AddressRange) *v1alpha1.AddressPool {
	GinkgoHelper()
	p := &v1alpha1.AddressPool{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.AddressPoolSpec{Addresses: addresses}}
	Expect(e.client.Create(ctx, p)).To(Succeed())
	DeferCleanup(NodeTimeout(patience), func(ctx SpecContext) {
		Expect(client.IgnoreNotFound(e.client.Delete(ctx, p))).To(Succeed())
	})
	return p
}

// service makes a Service of our class, after edit, that is gone after the current spec.
func (e *lbEnv) service(ctx context.Context, name string, edit ...func(*corev1.Service)) *corev1.Service {
	GinkgoHelper()
	svc := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: e.ns, Annotations: map[string]string{}},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeLoadBalancer, LoadBalancerClass: &e.class,
			AllocateLoadBalancerNodePorts: new(false),
			Ports:                         []corev1.ServicePort{{Port: 80}},
		},
	}
	for _, f := range edit {
		f(svc)
	}
	Expect(e.client.Create(ctx, svc)).To(Succeed())
	DeferCleanup(NodeTimeout(patience), func(ctx SpecContext) { e.remove(ctx, svc) })
	return svc
}

// remove deletes svc and waits until it is gone.
func (e *lbEnv) remove(ctx context.Context, svc *corev1.Service) {
	GinkgoHelper()
	Expect(client.IgnoreNotFound(e.client.Delete(ctx, svc))).To(Succeed())
	Eventually(ctx, func() error {
		return client.IgnoreNotFound(e.client.Get(ctx, client.ObjectKeyFromObject(svc), &corev1.Service{}))
	}).Should(Succeed())
	Eventually(ctx, func(g Gomega) {
		g.Expect(e.client.Get(ctx, client.ObjectKeyFromObject(svc), &corev1.Service{})).To(MatchError(ContainSubstring("not found")))
	}).Should(Succeed())
}

// edit changes svc in the API with f.
func (e *lbEnv) edit(ctx context.Context, obj client.Object, f func()) {
	GinkgoHelper()
	Eventually(ctx, func() error {
		if err := e.client.Get(ctx, client.ObjectKeyFromObject(obj), obj); err != nil {
			return err
		}
		f()
		return e.client.Update(ctx, obj)
	}).Should(Succeed())
}

func (e *lbEnv) fetch(ctx context.Context, svc *corev1.Service) *corev1.Service {
	GinkgoHelper()
	got := &corev1.Service{}
	Expect(e.client.Get(ctx, client.ObjectKeyFromObject(svc), got)).To(Succeed())
	return got
}

// ips returns a poll for the addresses in the status of svc.
func (e *lbEnv) ips(ctx context.Context, svc *corev1.Service) func() []string {
	return func() []string {
		var out []string
		for _, i := range e.fetch(ctx, svc).Status.LoadBalancer.Ingress {
			out = append(out, i.IP)
		}
		return out
	}
}

// told returns a poll for the condition of svc as "Status Reason: message".
func (e *lbEnv) told(ctx context.Context, svc *corev1.Service) func() string {
	return func() string {
		c := apimeta.FindStatusCondition(e.fetch(ctx, svc).Status.Conditions, v1alpha1.ConditionAddressAssigned)
		if c == nil {
			return ""
		}
		return fmt.Sprintf("%s %s: %s", c.Status, c.Reason, c.Message)
	}
}

// events returns a poll for the reasons of the events about svc, each as often as it
// was sent.
func (e *lbEnv) events(ctx context.Context, svc *corev1.Service) func() ([]string, error) {
	return func() ([]string, error) {
		var list eventsv1.EventList
		err := e.client.List(ctx, &list, client.InNamespace(svc.Namespace))
		var reasons []string
		for _, ev := range list.Items {
			if ev.Regarding.UID != svc.UID {
				continue
			}
			times := 1
			if ev.Series != nil {
				times = int(ev.Series.Count)
			}
			for range times {
				reasons = append(reasons, ev.Reason)
			}
		}
		return reasons, err
	}
}

func annotated(key, value string) func(*corev1.Service) {
	return func(svc *corev1.Service) { svc.Annotations[key] = value }
}
