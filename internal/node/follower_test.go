package node

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"fairlead.dev/fairlead/internal/service"
)

// reluctant is a Sink that fails when told to.
type reluctant struct {
	mu    sync.Mutex
	err   error
	seen  []*service.Snapshot
	tries int
}

// be lets it fail with err from now on, or no longer, and returns what it was given
// until now and how often it was tried.
func (r *reluctant) be(err error) (seen []*service.Snapshot, tries int) {
	synctest.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.err = err
	return r.seen, r.tries
}

func (r *reluctant) Apply(_ context.Context, s *service.Snapshot) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tries++
	if r.err == nil {
		r.seen = append(r.seen, s)
	}
	return r.err
}

// TestFollowers get what is in the rules and nothing else, and their failures are their
// own.
func TestFollowers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, r, svcs := startAgent(t)
		noLuck := errors.New("no luck")
		other := &reluctant{err: noLuck}
		a.others = append(a.others, &follower{Sink: other, name: "other"})
		must(t, svcs.Replace([]any{clusterIP("a", "10.0.0.1")}, ""))
		r.want(t, 1, 1)
		time.Sleep(time.Minute)
		if _, tries := other.be(noLuck); tries < 10 || tries > 40 {
			t.Errorf("%d tries in a minute", tries)
		}
		must(t, svcs.Add(clusterIP("b", "10.0.0.2")))
		r.want(t, 2, 2) // the rules do not wait for it

		other.be(nil)
		time.Sleep(2 * retry.Cap)
		if seen, _ := other.be(nil); len(seen) != 1 || seen[0] != r.applied[1] {
			t.Fatalf("saw %v, want the one Snapshot that is in the rules", seen)
		}
		r.setFailing(true)
		must(t, svcs.Add(clusterIP("c", "10.0.0.3")))
		time.Sleep(time.Minute)
		if seen, _ := other.be(nil); len(seen) != 1 {
			t.Error("saw what is not in the rules")
		}
		if live := a.health.live(); live {
			t.Error("healthy, though a change has been waiting for a minute")
		}
		r.setFailing(false)
		time.Sleep(2 * retry.Cap)
		if seen, _ := other.be(nil); len(seen) != 2 || !a.health.live() {
			t.Errorf("saw %d Snapshots, healthy %t", len(seen), a.health.live())
		}
	})
}

// TestMetricsServer answers what kube-proxy's does.
func TestMetricsServer(t *testing.T) {
	handler := newMetrics().handler()
	for path, want := range map[string]struct{ body, contentType string }{
		"/proxyMode": {"nftables", "text/plain; charset=utf-8"},
		"/healthz":   {"ok", "text/plain; charset=utf-8"},
		"/metrics":   {`fairlead_dataplane_programming_duration_seconds_count{since="trigger"} 0`, "text/plain; version=0.0.4"},
	} {
		rec := httptest.NewRecorder()
		handler.ServeHTTP(rec, httptest.NewRequest(http.MethodGet, path, nil))
		if rec.Code != http.StatusOK || !strings.HasPrefix(rec.Header().Get("Content-Type"), want.contentType) ||
			!strings.Contains(rec.Body.String(), want.body) || path != "/metrics" && rec.Body.String() != want.body {
			t.Errorf("%s: %d, %v, %s", path, rec.Code, rec.Header(), rec.Body)
		}
	}
}
