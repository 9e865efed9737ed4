package node

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
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
	// decode takes what the model needs out of an object and returns what that does to
	// the model. It runs in the watch's goroutine, so that the object itself, mostly
	// fields that nobody reads, is garbage at once.
	decode func(T) func(*model)
	remove func(*model, types.NamespacedName)
	names  func(*model) []types.NamespacedName
}

// feed is the store of a reflector: it hands everything on.
type feed[T metav1.Object] struct {
	in *intake
	kind[T]
	listed bool // only the reflector looks at it
}

// decoded is an object of a listing, as the model needs it.
type decoded struct {
	name  types.NamespacedName
	apply func(*model)
}

// Transformer decodes the objects of a streamed listing as they come in, see
// cache.TransformingStore: there are never all of them in memory.
func (f *feed[T]) Transformer() cache.TransformFunc {
	return func(obj any) (any, error) {
		t, ok := obj.(T)
		if !ok {
			return nil, fmt.Errorf("listing delivered a %T", obj)
		}
		return decoded{nameOf(t), f.decode(t)}, nil
	}
}

func (f *feed[T]) Add(obj any) error {
	t, ok := obj.(T)
	if !ok {
		return fmt.Errorf("watch delivered a %T", obj)
	}
	f.in.pushChanges(false, change{f.decode(t), arrivalOf(obj, false, f.in.clock.Now())})
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

// Replace takes a full listing, of objects or of what Transformer made of them: what it
// does not name is gone.
func (f *feed[T]) Replace(list []any, _ string) error {
	objs := make([]decoded, 0, len(list))
	for i, obj := range list {
		list[i] = nil // garbage as soon as it is decoded
		d, ok := obj.(decoded)
		if !ok {
			t, ok := obj.(T)
			if !ok {
				return fmt.Errorf("listing delivered a %T", obj)
			}
			d = decoded{nameOf(t), f.decode(t)}
		}
		objs = append(objs, d)
	}
	first := !f.listed
	f.listed = true
	f.in.push(first, func(m *model) {
		listed := make(map[types.NamespacedName]bool, len(objs))
		for _, d := range objs {
			listed[d.name] = true
			d.apply(m)
		}
		for _, name := range f.names(m) {
			if !listed[name] {
				f.remove(m, name)
			}
		}
	})
	return nil
}

// forgo says whether err means that there is nothing to list: the API server does not
// have the resource, or does not let us see it. The first listing is an empty one then,
// so that nothing waits for it, and it is tried on. A listing from before stays.
func (f *feed[T]) forgo(err error) bool {
	if !apierrors.IsNotFound(err) && !apierrors.IsForbidden(err) {
		return false
	}
	return f.listed || f.Replace(nil, "") == nil
}

func (f *feed[T]) Resync() error { return nil }

func nameOf(o metav1.Object) types.NamespacedName {
	return types.NamespacedName{Namespace: o.GetNamespace(), Name: o.GetName()}
}

// What the watches need:
//
// +kubebuilder:rbac:groups="",resources=services;nodes,verbs=get;list;watch
// +kubebuilder:rbac:groups=discovery.k8s.io,resources=endpointslices,verbs=get;list;watch
// +kubebuilder:rbac:groups=networking.k8s.io,resources=servicecidrs,verbs=get;list;watch

// rewatch is the wait between tries to watch. The promise is that the rules are right
// within 2 s after the API server is back, and client-go's own waits grow to a minute. A
// node has four watches, so it makes some three tries a second; what is too much for an
// API server that is back, its priority and fairness holds up (KEP-1040).
var rewatch = wait.Backoff{Duration: 200 * time.Millisecond, Factor: 2, Jitter: 0.5, Steps: 4, Cap: time.Second}

// source is where the objects of a kind come from.
type source[T metav1.Object] struct {
	rest     cache.Getter
	resource string
	example  runtime.Object
	options  func(*metav1.ListOptions)
	// optional is a resource that an API server may not have.
	optional bool
}

// watch starts the watches of everything the node's rules depend on.
func (in *intake) watch(ctx context.Context, client kubernetes.Interface, node string, logger logr.Logger) {
	in.unsynced = 4
	all := func(*metav1.ListOptions) {}
	// Headless Services and their slices make no rules; the API server need not send
	// the slices at all (KEP-2447 has the same selector in kube-proxy).
	noHeadless := func(o *metav1.ListOptions) {
		o.LabelSelector = "!" + corev1.IsHeadlessService + ",!service.kubernetes.io/service-proxy-name"
	}
	onlyThis := func(o *metav1.ListOptions) {
		o.FieldSelector = fields.OneTermEqualSelector(metav1.ObjectNameField, node).String()
	}
	core := client.CoreV1().RESTClient()
	start(ctx, in, logger, services(), source[*corev1.Service]{
		rest: core, resource: "services", example: &corev1.Service{}, options: all})
	start(ctx, in, logger, endpointSlices(node), source[*discoveryv1.EndpointSlice]{
		rest: client.DiscoveryV1().RESTClient(), resource: "endpointslices", example: &discoveryv1.EndpointSlice{}, options: noHeadless})
	start(ctx, in, logger, nodes(node), source[*corev1.Node]{
		rest: core, resource: "nodes", example: &corev1.Node{}, options: onlyThis})
	start(ctx, in, logger, serviceCIDRs(), source[*networkingv1.ServiceCIDR]{
		rest: client.NetworkingV1().RESTClient(), resource: "servicecidrs", example: &networkingv1.ServiceCIDR{}, options: all,
		optional: true}) // it is there from Kubernetes 1.33 on
}

func start[T metav1.Object](ctx context.Context, in *intake, logger logr.Logger, k kind[T], from source[T]) {
	lw := cache.NewFilteredListWatchFromClient(from.rest, from.resource, metav1.NamespaceAll, from.options)
	say := &spokesman{logger: logger.WithValues("resource", from.resource)}
	store := &feed[T]{in: in, kind: k}
	failed := func(ctx context.Context, err error) {
		if from.optional && store.forgo(err) && apierrors.IsNotFound(err) {
			return
		}
		say.failure(ctx, err)
	}
	list, watch := lw.ListWithContextFunc, lw.WatchFuncWithContext
	lw.ListWithContextFunc = func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
		out, err := list(ctx, o)
		failed(ctx, err)
		return out, err
	}
	lw.WatchFuncWithContext = func(ctx context.Context, o metav1.ListOptions) (apiwatch.Interface, error) {
		out, err := watch(ctx, o)
		failed(ctx, err)
		if err == nil {
			say.success()
		}
		return out, err
	}
	// Every client here can stream listings, but for API servers that cannot.
	backoff := rewatch
	reflector := cache.NewReflectorWithOptions(lw, from.example, store, cache.ReflectorOptions{Name: from.resource, Backoff: &backoff})
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
