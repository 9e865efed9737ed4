package node

import (
	"encoding/json"
	"net/http"
	"sync"
	"time"

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

// healthReport is the body of an answer.
type healthReport struct {
	LastUpdated  time.Time `json:"lastUpdated"`
	CurrentTime  time.Time `json:"currentTime"`
	NodeEligible *bool     `json:"nodeEligible,omitempty"`
}

// handler serves /healthz, which load balancers look at and which takes the Node into
// account, and /livez, which only asks whether this process does its work.
func (h *health) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) {
		report, live, eligible := h.report()
		report.NodeEligible = &eligible
		answer(w, report, live && eligible && !report.LastUpdated.IsZero())
	})
	mux.HandleFunc("/livez", func(w http.ResponseWriter, _ *http.Request) {
		report, live, _ := h.report()
		answer(w, report, live)
	})
	return mux
}

// report says whether no change has been waiting for too long. An agent that waits for
// its API server is live: to restart it helps nobody.
func (h *health) report() (report healthReport, live, eligible bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := h.clock.Now()
	live = h.pending.IsZero() || now.Sub(h.pending) < healthTimeout
	return healthReport{LastUpdated: h.lastUpdated, CurrentTime: now}, live, h.eligible
}

func answer(w http.ResponseWriter, report healthReport, healthy bool) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if !healthy {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	_ = json.NewEncoder(w).Encode(report) // the client has gone, nobody to tell
}
