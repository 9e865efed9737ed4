package node

import (
	"context"
	"fmt"
	"sync"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	apiwatch "k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
	"k8s.io/utils/clock"

	"fairlead.dev/fairlead/internal/config"
)

// intake collects what the API server's watches say until the agent takes it. There is
// no second copy of the objects: they are decoded into the model and dropped.
type intake struct {
	mu       sync.Mutex
	clock    clock.PassiveClock
	events   []change
	unsynced int // watches that have not delivered their first full listing

	// wake has a value when there is something to take.
	wake chan struct{}
}

func newIntake(c clock.PassiveClock) *intake {
	return &intake{clock: c, wake: make(chan struct{}, 1)}
}

func (in *intake) push(first bool, events ...func(*model)) {
	changes := make([]change, len(events))
	for i, e := range events {
		changes[i].apply = e
	}
	in.pushChanges(first, changes...)
}

func (in *intake) pushChanges(first bool, changes ...change) {
	in.mu.Lock()
	in.events = append(in.events, changes...)
	if first {
		in.unsynced--
	}
	in.mu.Unlock()
	select {
	case in.wake <- struct{}{}:
	default: // it is awake already
	}
}

// take returns the events since the last take in order, and whether every watch has
// delivered its first listing by then.
func (in *intake) take() (events []change, synced bool) {
	in.mu.Lock()
	defer in.mu.Unlock()
	events, in.events = in.events, nil
	return events, in.unsynced == 0
}

// kind says what one type of objects does to the model.
type kind[T metav1.Object] struct {
	set    func(*model, T)
	remove func(*model, types.NamespacedName)
	names  func(*model) []types.NamespacedName
}

// feed is the store of a reflector: it hands everything on.
type feed[T metav1.Object] struct {
	in *intake
	kind[T]
	listed bool // only the reflector's goroutine looks at it
}

func (f *feed[T]) Add(obj any) error {
	t, ok := obj.(T)
	if !ok {
		return fmt.Errorf("watch delivered a %T", obj)
	}
	f.in.pushChanges(false, change{func(m *model) { f.set(m, t) }, arrivalOf(obj, false, f.in.clock.Now())})
	return nil
}

func (f *feed[T]) Update(obj any) error { return f.Add(obj) }

func (f *feed[T]) Delete(obj any) error {
	t, ok := obj.(T)
	if !ok {
		return fmt.Errorf("watch delivered a deleted %T", obj)
	}
	name := nameOf(t)
	f.in.pushChanges(false, change{func(m *model) { f.remove(m, name) }, arrivalOf(obj, true, f.in.clock.Now())})
	return nil
}

// Replace takes a full listing: what it does not name is gone.
func (f *feed[T]) Replace(list []any, _ string) error {
	objs := make([]T, 0, len(list))
	for _, obj := range list {
		t, ok := obj.(T)
		if !ok {
			return fmt.Errorf("listing delivered a %T", obj)
		}
		objs = append(objs, t)
	}
	first := !f.listed
	f.listed = true
	f.in.push(first, func(m *model) {
		listed := make(map[types.NamespacedName]bool, len(objs))
		for _, t := range objs {
			listed[nameOf(t)] = true
			f.set(m, t)
		}
		for _, name := range f.names(m) {
			if !listed[name] {
				f.remove(m, name)
			}
		}
	})
	return nil
}

func (f *feed[T]) Resync() error { return nil }

func nameOf(o metav1.Object) types.NamespacedName {
	return types.NamespacedName{Namespace: o.GetNamespace(), Name: o.GetName()}
}

// What the watches need:
//
// +kubebuilder:rbac:groups="",resources=services;nodes,verbs=get;list;watch
// +kubebuilder:rbac:groups=discovery.k8s.io,resources=endpointslices,verbs=get;list;watch

// watch starts the watches of everything the node's rules depend on.
func (in *intake) watch(ctx context.Context, client kubernetes.Interface, node string, logger logr.Logger) {
	in.unsynced = 3
	// Headless Services and their slices make no rules; the API server need not send
	// the slices at all (KEP-2447 has the same selector in kube-proxy).
	noHeadless := "!" + corev1.IsHeadlessService + ",!service.kubernetes.io/service-proxy-name"
	start(ctx, in, client.CoreV1().RESTClient(), "services", &corev1.Service{}, logger, client,
		func(*metav1.ListOptions) {}, kind[*corev1.Service]{
			set:    func(m *model, s *corev1.Service) { m.store.SetService(s) },
			remove: func(m *model, n types.NamespacedName) { m.store.DeleteService(n) },
			names:  func(m *model) []types.NamespacedName { return m.store.ServiceNames() },
		})
	start(ctx, in, client.DiscoveryV1().RESTClient(), "endpointslices", &discoveryv1.EndpointSlice{}, logger, client,
		func(o *metav1.ListOptions) { o.LabelSelector = noHeadless }, kind[*discoveryv1.EndpointSlice]{
			set:    func(m *model, s *discoveryv1.EndpointSlice) { m.store.SetSlice(s) },
			remove: func(m *model, n types.NamespacedName) { m.store.DeleteSlice(n) },
			names:  func(m *model) []types.NamespacedName { return m.store.SliceNames() },
		})
	start(ctx, in, client.CoreV1().RESTClient(), "nodes", &corev1.Node{}, logger, client,
		func(o *metav1.ListOptions) {
			o.FieldSelector = fields.OneTermEqualSelector(metav1.ObjectNameField, node).String()
		}, kind[*corev1.Node]{
			set:    func(m *model, n *corev1.Node) { m.setNode(n) },
			remove: func(m *model, _ types.NamespacedName) { m.setNode(nil) },
			names:  func(*model) []types.NamespacedName { return []types.NamespacedName{{Name: node}} },
		})
}

func start[T metav1.Object](ctx context.Context, in *intake, rest cache.Getter, resource string, example runtime.Object,
	logger logr.Logger, client kubernetes.Interface, options func(*metav1.ListOptions), k kind[T]) {
	lw := cache.NewFilteredListWatchFromClient(rest, resource, metav1.NamespaceAll, options)
	say := &spokesman{logger: logger.WithValues("resource", resource)}
	list, watch := lw.ListWithContextFunc, lw.WatchFuncWithContext
	lw.ListWithContextFunc = func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
		out, err := list(ctx, o)
		say.failure(ctx, err)
		return out, err
	}
	lw.WatchFuncWithContext = func(ctx context.Context, o metav1.ListOptions) (apiwatch.Interface, error) {
		out, err := watch(ctx, o)
		say.failure(ctx, err)
		if err == nil {
			say.success()
		}
		return out, err
	}
	reflector := cache.NewReflectorWithOptions(cache.ToListWatcherWithWatchListSemantics(lw, client), example,
		&feed[T]{in: in, kind: k}, cache.ReflectorOptions{Name: resource})
	// The reflector would say the same at every try.
	go reflector.RunWithContext(klog.NewContext(ctx, logr.Discard()))
}

// spokesman says what keeps a watch from working, once for each reason, and when it
// works again. Only the reflector's goroutine uses it.
type spokesman struct {
	logger logr.Logger
	last   string
}

func (s *spokesman) failure(ctx context.Context, err error) {
	if err == nil || ctx.Err() != nil || apierrors.IsResourceExpired(err) || apierrors.IsGone(err) {
		return // the last two are a history too old, after which the reflector lists anew
	}
	// Listing and watching fail in turn, for the same reason in other words.
	reason := string(apierrors.ReasonForError(err))
	if reason == "" {
		reason = config.RootCause(err)
	}
	if reason == s.last {
		return
	}
	s.last = reason
	s.logger.Info("Cannot watch, will keep trying; the rules stay as they are", "reason", config.RootCause(err))
}

func (s *spokesman) success() {
	if s.last != "" {
		s.last = ""
		s.logger.Info("Watching works again")
	}
}
