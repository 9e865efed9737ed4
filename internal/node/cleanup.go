package node

import (
	"context"
	"errors"
	"fmt"
	"io"

	"fairlead.dev/fairlead/internal/dataplane"
	"fairlead.dev/fairlead/internal/kubeproxy"
)

// The values of --cleanup. Without a value it removes our own rules.
const (
	cleanupOwn       = "fairlead"
	cleanupKubeProxy = "kube-proxy"
	cleanupAll       = "all"
)

// cleanup removes rules from the network namespace of the calling thread and says on out
// what it removed. It refuses where somebody is at work who needs them.
func cleanup(ctx context.Context, what string, out io.Writer) error {
	own := what == cleanupOwn || what == cleanupAll
	others := what == cleanupKubeProxy || what == cleanupAll
	if !own && !others {
		return fmt.Errorf("--cleanup=%s: must be %s, %s or %s", what, cleanupOwn, cleanupKubeProxy, cleanupAll)
	}
	unlock, err := tryLock(ctx)
	if err != nil {
		return fmt.Errorf("cleaning up: %w", err)
	}
	defer unlock()
	if others {
		found, err := kubeproxy.Running(ctx)
		if err != nil {
			return err
		}
		if found != "" {
			return fmt.Errorf("cleaning up: a kube-proxy runs on this node (%s) and needs its rules: remove it first", found)
		}
	}
	var report kubeproxy.Report
	var errs []error
	if own {
		tables, err := dataplane.Remove()
		for _, t := range tables {
			report.Removed = append(report.Removed, "table "+t)
		}
		errs = append(errs, err)
	}
	if others {
		left, err := kubeproxy.Remove(ctx)
		report.Removed = append(report.Removed, left.Removed...)
		report.Kept = left.Kept
		errs = append(errs, err)
	}
	err = errors.Join(errs...)
	return errors.Join(err, say(out, report, err == nil))
}

// say prints a report, a line for each thing.
func say(out io.Writer, report kubeproxy.Report, complete bool) error {
	var errs []error
	line := func(format string, args ...any) {
		_, err := fmt.Fprintf(out, format+"\n", args...)
		errs = append(errs, err)
	}
	for _, r := range report.Removed {
		line("removed %s", r)
	}
	for _, k := range report.Kept {
		line("kept %s", k)
	}
	if len(errs) == 0 && complete {
		line("nothing to remove")
	}
	return errors.Join(errs...)
}
