package node

import (
	"context"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/events"
	"k8s.io/klog/v2"

	"fairlead.dev/fairlead/api/v1alpha1"
	"fairlead.dev/fairlead/internal/service"
)

// What Events need:
//
// +kubebuilder:rbac:groups=events.k8s.io,resources=events,verbs=create;patch

// noteLimit is what the API server takes (pkg/apis/core/validation NoteLengthLimit).
const noteLimit = 1024

// newRecorder returns a recorder of Events that are sent until ctx ends. Events are
// best effort: what cannot be sent, or not for long, is in the log.
func newRecorder(ctx context.Context, client kubernetes.Interface) (events.EventRecorder, error) {
	broadcaster := events.NewBroadcaster(&events.EventSinkImpl{Interface: client.EventsV1()})
	// It would log every try that fails, with the whole Event.
	quiet := klog.NewContext(ctx, logr.Discard())
	if err := broadcaster.StartRecordingToSinkWithContext(quiet); err != nil {
		return nil, fmt.Errorf("recording events: %w", err)
	}
	context.AfterFunc(ctx, broadcaster.Shutdown)
	return broadcaster.NewRecorder(scheme.Scheme, "fairlead-node"), nil
}

// serviceEvent is a warning about a Service.
type serviceEvent struct{ reason, action, note string }

// eventHealthCheckFailed says why the health check port of svc is not served, or not
// everywhere. Reason and action are kube-proxy's.
func eventHealthCheckFailed(node string, svc *service.Service, why string) serviceEvent {
	return serviceEvent{v1alpha1.ReasonFailedToStartServiceHealthcheck, "Listen",
		fmt.Sprintf("node %s failed to start healthcheck %q on port %d: %s", node, svc.Name, svc.HealthCheckNodePort, why)}
}

// eventPartlyServed says what of svc has no rules.
func eventPartlyServed(node string, why error) serviceEvent {
	return serviceEvent{v1alpha1.ReasonPartlyServed, "WriteRules", fmt.Sprintf("node %s serves only part of this Service: %s", node, why)}
}

// eventInvalidValues says which values of a Service are left out. Each fault names its
// field and value.
func eventInvalidValues(node string, faults []string) serviceEvent {
	return serviceEvent{v1alpha1.ReasonInvalidValue, "ReadService",
		fmt.Sprintf("node %s serves this Service without what it cannot use: %s", node, strings.Join(faults, "; "))}
}

// record sends e about svc. The version in the reference keeps the recorder from taking
// what an edit brought for a repetition of what was before: it does not compare notes.
func record(recorder events.EventRecorder, svc *service.Service, e serviceEvent) {
	recorder.Eventf(&corev1.ObjectReference{
		APIVersion: "v1", Kind: "Service", Namespace: svc.Name.Namespace, Name: svc.Name.Name,
		UID: svc.UID, ResourceVersion: svc.ResourceVersion,
	}, nil, corev1.EventTypeWarning, e.reason, e.action, "%s", cut(e.note, noteLimit))
}

// cut returns the start of s, limit bytes at most, without half a character at its end.
func cut(s string, limit int) string {
	if len(s) <= limit {
		return s
	}
	for limit > 0 && !utf8.RuneStart(s[limit]) {
		limit--
	}
	return s[:limit]
}
