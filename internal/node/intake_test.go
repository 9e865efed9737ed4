package node

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-logr/logr/funcr"
	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/utils/clock"

	"fairlead.dev/fairlead/api/config/v1alpha1"
)

// TestListingsAreDecodedAsTheyStream: what the reflector keeps of a listing is not the
// objects, and means the same as they do.
func TestListingsAreDecodedAsTheyStream(t *testing.T) {
	node := nodeWith("10.0.0.9")
	node.ManagedFields, node.Status.Images = []metav1.ManagedFieldsEntry{{}}, []corev1.ContainerImage{{SizeBytes: 1}}
	node.Spec.PodCIDRs, node.Spec.Taints = []string{"10.244.1.0/24"}, []corev1.Taint{{Key: taintToBeDeleted}}
	m, in := newModel(v1alpha1.LocalTraffic{NodeCIDR: true}), newIntake(clock.RealClock{})
	in.unsynced = 3
	replace := func(transform func(any) (any, error), store func([]any, string) error, obj any) {
		t.Helper()
		kept, err := transform(obj)
		must(t, err)
		if _, ok := kept.(decoded); !ok {
			t.Errorf("a %T is kept", kept)
		}
		must(t, store([]any{kept}, ""))
		if _, err := transform(&corev1.Pod{}); err == nil {
			t.Error("a pod goes for one")
		}
		if err := store([]any{&corev1.Pod{}}, ""); err == nil {
			t.Error("a pod goes for one in a listing")
		}
	}
	svcs := &feed[*corev1.Service]{in: in, kind: services()}
	slices := &feed[*discoveryv1.EndpointSlice]{in: in, kind: endpointSlices("node1")}
	all := &feed[*corev1.Node]{in: in, kind: nodes("node1")}
	replace(svcs.Transformer(), svcs.Replace, clusterIP("web", "10.0.0.1"))
	replace(slices.Transformer(), slices.Replace, sliceOf("web", "10.1.0.1", time.Unix(1, 0)))
	replace(all.Transformer(), all.Replace, node)
	events, synced := in.take()
	for _, e := range events {
		e.apply(m)
	}
	if !synced {
		t.Error("not synced after all listings")
	}
	snapshot := m.store.Snapshot()
	if svc, ok := snapshot.Services.Get(nameOf(clusterIP("web", ""))); !ok || len(svc.Ports[0].Cluster[0]) != 1 {
		t.Errorf("web is %+v, want one endpoint", svc)
	}
	wantSame(t, "NodeAddrs", addrs("10.0.0.9"), snapshot.NodeAddrs)
	wantSame(t, "PodCIDRs", cidrs("10.244.1.0/24"), snapshot.PodCIDRs)
	if m.eligible() || len(m.node.ManagedFields)+len(m.node.Status.Images) > 0 {
		t.Errorf("the Node is eligible, or not slim: %+v", m.node)
	}
}

// TestAPIServerWithoutServiceCIDRs: nothing waits for them, nothing is said, and they
// count when they appear. One that refuses to tell them is worth a word.
func TestAPIServerWithoutServiceCIDRs(t *testing.T) {
	for name, tc := range map[string]struct {
		code int
		says bool
	}{"that does not know them": {http.StatusNotFound, false}, "that refuses to tell": {http.StatusForbidden, true}} {
		t.Run(name, func(t *testing.T) {
			lo, err := netlink.LinkByName("lo")
			must(t, err)
			must(t, netlink.LinkSetUp(lo))
			api := &oldAPI{code: tc.code}
			server := httptest.NewServer(api)
			ctx, cancel := context.WithCancel(t.Context())
			t.Cleanup(func() { cancel(); server.CloseClientConnections(); server.Close() })
			client, err := kubernetes.NewForConfig(&rest.Config{Host: server.URL})
			must(t, err)
			var said atomic.Bool
			logger := funcr.New(func(_, args string) { said.Store(said.Load() || strings.Contains(args, "servicecidrs")) }, funcr.Options{})
			m, in := newModel(v1alpha1.LocalTraffic{}), newIntake(clock.RealClock{})
			in.watch(ctx, client, "node1", logger)
			until := func(done func(synced bool) bool) {
				t.Helper()
				for {
					select {
					case <-in.wake:
					case <-time.After(time.Minute):
						t.Fatalf("after a minute: ServiceCIDRs %v", m.store.Snapshot().ServiceCIDRs)
					}
					events, synced := in.take()
					for _, e := range events {
						e.apply(m)
					}
					if done(synced) {
						return
					}
				}
			}
			until(func(synced bool) bool { return synced })
			wantSame(t, "ServiceCIDRs", cidrs(), m.store.Snapshot().ServiceCIDRs)
			if said.Load() != tc.says {
				t.Errorf("it was said: %t, want %t", said.Load(), tc.says)
			}
			api.upgraded.Store(true)
			until(func(bool) bool { return m.store.Pending() })
			wantSame(t, "ServiceCIDRs", cidrs("10.96.0.0/16"), m.store.Snapshot().ServiceCIDRs)
		})
	}
}

// oldAPI is an API server that has nothing but, once upgraded, one ServiceCIDR.
type oldAPI struct {
	code     int
	upgraded atomic.Bool
}

func (a *oldAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	cidrs := strings.Contains(r.URL.Path, "servicecidrs")
	var answer any
	switch {
	case cidrs && !a.upgraded.Load():
		w.WriteHeader(a.code)
		reason := map[int]metav1.StatusReason{http.StatusNotFound: metav1.StatusReasonNotFound, http.StatusForbidden: metav1.StatusReasonForbidden}[a.code]
		answer = &metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusFailure, Code: int32(a.code), Reason: reason}
	case r.URL.Query().Get("sendInitialEvents") == "true": // not known to it
		w.WriteHeader(http.StatusUnprocessableEntity)
		answer = &metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusFailure, Code: http.StatusUnprocessableEntity, Reason: metav1.StatusReasonInvalid}
	case r.URL.Query().Get("watch") == "true":
		w.WriteHeader(http.StatusOK)
		w.(http.Flusher).Flush()
		<-r.Context().Done()
		return
	case cidrs:
		answer = &networkingv1.ServiceCIDRList{
			TypeMeta: metav1.TypeMeta{Kind: "ServiceCIDRList", APIVersion: "networking.k8s.io/v1"}, ListMeta: metav1.ListMeta{ResourceVersion: "1"},
			Items: []networkingv1.ServiceCIDR{{ObjectMeta: metav1.ObjectMeta{Name: "kubernetes"}, Spec: networkingv1.ServiceCIDRSpec{CIDRs: []string{"10.96.0.0/16"}}}},
		}
	default:
		answer = emptyList(r.URL.Path)
	}
	_ = json.NewEncoder(w).Encode(answer) // the client's trouble if it is gone
}

func emptyList(path string) runtime.Object {
	meta := metav1.ListMeta{ResourceVersion: "1"}
	switch {
	case strings.HasSuffix(path, "/services"):
		return &corev1.ServiceList{TypeMeta: metav1.TypeMeta{Kind: "ServiceList", APIVersion: "v1"}, ListMeta: meta}
	case strings.HasSuffix(path, "/nodes"):
		return &corev1.NodeList{TypeMeta: metav1.TypeMeta{Kind: "NodeList", APIVersion: "v1"}, ListMeta: meta}
	default:
		return &discoveryv1.EndpointSliceList{TypeMeta: metav1.TypeMeta{Kind: "EndpointSliceList", APIVersion: "discovery.k8s.io/v1"}, ListMeta: meta}
	}
}
