package node

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/go-logr/logr"
	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"

	"fairlead.dev/fairlead/internal/dataplane"
	"fairlead.dev/fairlead/internal/ipfamily"
	"fairlead.dev/fairlead/internal/persistent"
	"fairlead.dev/fairlead/internal/service"
)

// book is a ledger with the program that is entered next.
type book struct {
	*ledger
	t        *testing.T
	recorder *events.FakeRecorder
	services persistent.Map[types.NamespacedName, *service.Service]
	refused  persistent.Map[types.NamespacedName, error]
}

func newBook(t *testing.T) *book {
	recorder := events.NewFakeRecorder(100)
	return &book{t: t, recorder: recorder, ledger: &ledger{node: "node1", events: recorder, logger: logr.Discard()}}
}

func (b *book) set(s service.Service) {
	edit := b.services.Edit()
	edit.Set(s.Name, &s)
	b.services = edit.Map()
}

func (b *book) refuse(name types.NamespacedName, why string) {
	edit := b.refused.Edit()
	if edit.Delete(name); why != "" {
		edit.Set(name, errors.New(why))
	}
	b.refused = edit.Map()
}

// want enters what was set, and fails unless it is said by these Events and no other.
func (b *book) want(changed int, want totals, notes ...string) {
	b.t.Helper()
	n := b.enter(dataplane.Program{Snapshot: &service.Snapshot{Services: b.services}, Refused: b.refused})
	if diff := cmp.Diff(want, b.totals, cmp.AllowUnexported(totals{})); n != changed || diff != "" {
		b.t.Errorf("%d changed, want %d; totals mismatch (-want +got):\n%s", n, changed, diff)
	}
	for _, note := range notes {
		select {
		case got := <-b.recorder.Events:
			if got != note {
				b.t.Errorf("event %q, want %q", got, note)
			}
		default:
			b.t.Errorf("no event %q", note)
		}
	}
	select {
	case got := <-b.recorder.Events:
		b.t.Errorf("unwanted event %q", got)
	default:
	}
}

// TestLedger: it counts what there is, and says once what of it cannot be served.
func TestLedger(t *testing.T) {
	web := types.NamespacedName{Namespace: "default", Name: "web"}
	port := service.Port{Protocol: service.TCP, Port: 80, NodePort: 30080}
	port.Cluster[ipfamily.IPv4] = make([]service.Backend, 3)
	port.Cluster[ipfamily.IPv6] = make([]service.Backend, 1)
	svc := service.Service{Name: web, ClusterIPs: make([]netip.Addr, 2), ExternalIPs: make([]netip.Addr, 1), Ports: []service.Port{port, port}}
	whole := totals{endpoints: 8, frontends: 8}

	b := newBook(t)
	b.want(0, totals{})
	b.set(svc)
	b.want(1, whole)
	b.want(0, whole)

	svc.Faults = []string{`spec.externalIPs[1]: Invalid value: "x": must be an IP address`}
	b.set(svc)
	whole.faults = 1
	b.want(1, whole, `Warning InvalidValue node node1 serves this Service without what it cannot use: `+
		`spec.externalIPs[1]: Invalid value: "x": must be an IP address`)
	b.set(svc) // another change, the fault is known
	b.want(1, whole)
	svc.Faults = append(svc.Faults, "second", "third")
	b.set(svc)
	whole.faults = 3
	b.want(1, whole, "Warning InvalidValue node node1 serves this Service without what it cannot use: second; third")

	b.refuse(web, "port 80: too many endpoints")
	b.want(0, whole, "Warning PartlyServed node node1 serves only part of this Service: port 80: too many endpoints")
	b.refuse(web, "port 80: too many endpoints")
	b.want(0, whole)
	b.refuse(web, "")
	b.want(0, whole)
	b.refuse(web, "port 80: too many endpoints")
	b.want(0, whole, "Warning PartlyServed node node1 serves only part of this Service: port 80: too many endpoints")

	b.refuse(web, "")
	b.services = persistent.Map[types.NamespacedName, *service.Service]{}
	b.want(1, totals{})
}

// TestLongNotes: the API server refuses notes of more than 1024 bytes.
func TestLongNotes(t *testing.T) {
	recorder := events.NewFakeRecorder(1)
	record(recorder, &service.Service{}, eventInvalidValues("node1", []string{strings.Repeat("ä", 1000)}))
	if got := <-recorder.Events; len(got) > noteLimit+len("Warning InvalidValue ") || strings.ToValidUTF8(got, "?") != got {
		t.Errorf("%d bytes: %s", len(got), got)
	}
}
