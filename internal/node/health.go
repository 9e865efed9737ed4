package node

import (
	"encoding/json"
	"net/http"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/clock"
)

// healthTimeout is how long a change may wait to be written before the node counts as
// unhealthy: twice the sync period of kube-proxy, as there (pkg/proxy/healthcheck).
const healthTimeout = 60 * time.Second

// health answers what kube-proxy's health server answers, for the probes and load
// balancers that were made for it.
type health struct {
	clock clock.PassiveClock

	mu          sync.Mutex
	lastUpdated time.Time
	pending     time.Time // since when a change has been waiting, zero for none
	eligible    bool
}

func (h *health) queued(now time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.pending.IsZero() {
		h.pending = now
	}
}

func (h *health) updated(now time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.lastUpdated, h.pending = now, time.Time{}
}

func (h *health) setEligible(eligible bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.eligible = eligible
}

// healthReport is the body of an answer, field by field that of kube-proxy.
type healthReport struct {
	// LastUpdated is the last write; where all is well it is the present time, since
	// older kube-proxies wrote all the time and clients came to expect a recent one.
	LastUpdated  time.Time `json:"lastUpdated"`
	CurrentTime  time.Time `json:"currentTime"`
	NodeEligible *bool     `json:"nodeEligible,omitempty"`
	Healthy      bool      `json:"healthy"`
	// Status is by family there, whose rules are written apart; ours are not.
	Status map[corev1.IPFamily]familyHealth `json:"status,omitempty"`
}

type familyHealth struct {
	LastUpdated time.Time `json:"lastUpdated"`
	Healthy     bool      `json:"healthy"`
}

// handler serves /healthz, which load balancers look at and which takes the Node into
// account, and /livez, which only asks whether this process does its work. Before the
// first write /healthz says no, where kube-proxy would not be listening yet: it waits for
// its Node first.
func (h *health) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) {
		report, written, eligible := h.report()
		report.NodeEligible = &eligible
		answer(w, report, report.Healthy && eligible && written)
	})
	mux.HandleFunc("/livez", func(w http.ResponseWriter, _ *http.Request) {
		report, _, _ := h.report()
		answer(w, report, report.Healthy)
	})
	return mux
}

// live says whether no change has been waiting for too long. An agent that waits for
// its API server is live: to restart it helps nobody.
func (h *health) live() bool {
	report, _, _ := h.report()
	return report.Healthy
}

// report returns the state, whether rules were written yet, and whether the Node should
// get traffic.
func (h *health) report() (report healthReport, written, eligible bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := h.clock.Now()
	report = healthReport{LastUpdated: h.lastUpdated, CurrentTime: now,
		Healthy: h.pending.IsZero() || now.Sub(h.pending) < healthTimeout}
	if written = !h.lastUpdated.IsZero(); written {
		state := familyHealth{h.lastUpdated, report.Healthy}
		report.Status = map[corev1.IPFamily]familyHealth{corev1.IPv4Protocol: state, corev1.IPv6Protocol: state}
	}
	return report, written, h.eligible
}

func answer(w http.ResponseWriter, report healthReport, good bool) {
	status := http.StatusServiceUnavailable
	if good {
		status, report.LastUpdated = http.StatusOK, report.CurrentTime
	}
	answerJSON(w, status, report)
}

func answerJSON(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // the client has gone, nobody to tell
}
