package main

import (
	"context"
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"
)

const (
	// pollPeriod is how often a condition is looked at that nobody announces.
	pollPeriod = 25 * time.Millisecond

	// patience is how long one may take to come true. On two idle cores it is 4 s for
	// the API server and below 1 s for all others; CI machines are not idle.
	patience = 60 * time.Second
)

// await returns when missing returns nil, which says what the condition still lacks.
// An error of await carries the last such word, or what has ended ctx.
func await(ctx context.Context, what string, missing func(context.Context) error) error {
	var last error
	err := wait.PollUntilContextTimeout(ctx, pollPeriod, patience, true, func(ctx context.Context) (bool, error) {
		if err := missing(ctx); err != nil {
			if ctx.Err() == nil || last == nil {
				last = err
			}
			return false, nil
		}
		return true, nil
	})
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	}
	return fmt.Errorf("waited %s until %s: %w", patience, what, last)
}
