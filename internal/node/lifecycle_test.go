package node

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-logr/logr/funcr"
	"k8s.io/utils/clock"

	"fairlead.dev/fairlead/api/config/v1alpha1"
	"fairlead.dev/fairlead/internal/kubeproxy"
	"fairlead.dev/fairlead/internal/service"
)

// TestSettle: what kube-proxy left goes after the first write that worked, and what
// cannot be removed then is tried once more.
func TestSettle(t *testing.T) {
	for name, tc := range map[string]struct {
		cfg    v1alpha1.KubeProxy
		beside string
		errs   []error // of the removals in turn
		want   int     // removals
		says   string
	}{
		"not asked for":              {},
		"beside a live one":          {cfg: v1alpha1.KubeProxy{RemoveLeftovers: true, AllowRunning: true}, beside: "process 1"},
		"works":                      {cfg: v1alpha1.KubeProxy{RemoveLeftovers: true}, errs: []error{nil}, want: 1, says: "link kube-ipvs0"},
		"works the second time":      {cfg: v1alpha1.KubeProxy{RemoveLeftovers: true}, errs: []error{errors.New("busy"), nil}, want: 2, says: "will try once more"},
		"does not work at all":       {cfg: v1alpha1.KubeProxy{RemoveLeftovers: true}, errs: []error{errors.New("busy"), errors.New("no")}, want: 2, says: "--cleanup=kube-proxy"},
		"works, and others use some": {cfg: v1alpha1.KubeProxy{RemoveLeftovers: true}, errs: []error{nil}, want: 1, says: "chain X"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var log strings.Builder
				removals, tunes := 0, 0
				b := &begun{
					cfg: &v1alpha1.NodeConfiguration{KubeProxy: tc.cfg}, clock: clock.RealClock{}, beside: tc.beside,
					logger: funcr.New(func(_, args string) { log.WriteString(args + "\n") }, funcr.Options{}),
					tune:   func() { tunes++ },
					remove: func(context.Context) (kubeproxy.Report, error) {
						removals++
						return kubeproxy.Report{Removed: []string{"link kube-ipvs0"}, Kept: []string{"chain X"}}, tc.errs[removals-1]
					},
				}
				r := &firstWrite{rules: &recorder{failing: true}, done: make(chan struct{})}
				done := make(chan struct{})
				go func() { b.settle(t.Context(), r.done); close(done) }()
				if err := r.Apply(t.Context(), &service.Snapshot{}); err == nil {
					t.Fatal("the write worked")
				}
				time.Sleep(time.Hour)
				if removals+tunes != 0 {
					t.Error("did something before the first write that worked")
				}
				r.rules.(*recorder).setFailing(false)
				must(t, r.Apply(t.Context(), &service.Snapshot{}))
				must(t, r.Apply(t.Context(), &service.Snapshot{}))
				<-done
				if removals != tc.want || tunes != 1 {
					t.Errorf("%d removals, want %d; tuned %d times, want once", removals, tc.want, tunes)
				}
				if !strings.Contains(log.String(), tc.says) {
					t.Errorf("no %q in\n%s", tc.says, log.String())
				}
			})
		})
	}
}
