package node

import (
	"context"
	"fmt"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/utils/clock"

	"fairlead.dev/fairlead/api/config/v1alpha1"
	"fairlead.dev/fairlead/internal/kubeproxy"
	"fairlead.dev/fairlead/internal/service"
)

// leftoversRetry is the wait before what could not be removed is tried once more: by
// then a kube-proxy that was on its way out is gone.
const leftoversRetry = time.Minute

// begun is an agent that has the node for itself.
type begun struct {
	cfg    *v1alpha1.NodeConfiguration
	clock  clock.Clock
	logger logr.Logger
	unlock func()

	beside string // how a live kube-proxy was found at the start, empty for none
	tune   func()
	remove func(context.Context) (kubeproxy.Report, error)
}

// prepare is what comes before the first port is opened and the first rule written: it
// waits until no other agent runs here, and refuses to start beside a kube-proxy. It
// returns ctx's error when that ends first. The caller unlocks at the end.
func prepare(ctx context.Context, cfg *v1alpha1.NodeConfiguration, logger logr.Logger) (*begun, error) {
	unlock, err := takeLock(ctx, logger)
	if err != nil {
		return nil, err
	}
	// Who answers like kube-proxy is not us: nothing of ours listens yet.
	beside, err := kubeproxy.Running(ctx)
	if err == nil && beside != "" && !cfg.KubeProxy.AllowRunning {
		err = fmt.Errorf("a kube-proxy runs on this node (%s), and both would serve the same Services: "+
			"remove it, or set kubeProxy.allowRunning", beside)
	}
	if err != nil {
		unlock()
		return nil, err
	}
	if beside != "" {
		logger.Info("A kube-proxy runs on this node too, as kubeProxy.allowRunning lets it; what it wrote stays", "found", beside)
	}
	return &begun{
		cfg: cfg, clock: clock.RealClock{}, logger: logger, unlock: unlock, beside: beside, remove: kubeproxy.Remove,
		tune: func() { tuneConntrack(cfg.Conntrack, sysctlDir(), processors(), logger) },
	}, nil
}

// firstWrite are rules that tell of their first write, by closing done.
type firstWrite struct {
	rules
	once sync.Once
	done chan struct{}
}

// Apply is that of rules.
func (f *firstWrite) Apply(ctx context.Context, s *service.Snapshot) error {
	err := f.rules.Apply(ctx, s)
	if err == nil {
		f.once.Do(func() { close(f.done) })
	}
	return err
}

// settle is what comes after the first write, which it waits for: our rules serve then,
// and the kernel has loaded what they need. What cannot be done is logged, and no reason
// to end.
func (b *begun) settle(ctx context.Context, written <-chan struct{}) {
	select {
	case <-ctx.Done():
		return
	case <-written:
	}
	// Reading and compiling everything at once took several times what is kept: at 10,000
	// Services 270 MiB for 60. The Go runtime would give it back within minutes.
	debug.FreeOSMemory()
	b.tune()
	if !b.cfg.KubeProxy.RemoveLeftovers || b.beside != "" || b.removeLeftovers(ctx, "will try once more") {
		return
	}
	select {
	case <-ctx.Done():
	case <-b.clock.After(leftoversRetry):
		b.removeLeftovers(ctx, "fairlead node --cleanup=kube-proxy does it by hand")
	}
}

// removeLeftovers removes what kube-proxy left, and says whether that worked.
func (b *begun) removeLeftovers(ctx context.Context, otherwise string) bool {
	report, err := b.remove(ctx)
	if len(report.Removed) > 0 {
		b.logger.Info("Removed what kube-proxy left", "removed", strings.Join(report.Removed, "; "))
	}
	if len(report.Kept) > 0 {
		b.logger.Info("Kept what others use of what kube-proxy left", "kept", strings.Join(report.Kept, "; "))
	}
	if err != nil && ctx.Err() == nil {
		b.logger.Error(err, "Removing what kube-proxy left failed", "otherwise", otherwise)
	}
	return err == nil
}
