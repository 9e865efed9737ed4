package node

import (
	"context"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/utils/clock"

	"fairlead.dev/fairlead/internal/service"
)

// retry is the wait after failed writes: what is there goes on working.
var retry = wait.Backoff{Duration: 100 * time.Millisecond, Factor: 2, Jitter: 0.1, Steps: 7, Cap: 5 * time.Second}

// failure is why something does not work at present. The zero value is none.
type failure struct {
	reason  string // empty for none
	retryAt time.Time
	backoff wait.Backoff
}

// note takes in that it failed once more, and says whether the reason is news.
func (f *failure) note(err error, now time.Time) (news bool) {
	if f.reason == "" {
		f.backoff = retry
	}
	f.retryAt = now.Add(f.backoff.Step())
	news = err.Error() != f.reason
	f.reason = err.Error()
	return news
}

// over takes in that it worked, and says whether that is news.
func (f *failure) over() (news bool) {
	news = f.reason != ""
	f.reason = ""
	return news
}

// due says whether it should be tried again.
func (f *failure) due(now time.Time) bool { return f.reason != "" && !now.Before(f.retryAt) }

// follower is a Sink that gets what is in the rules. Its failures are its own.
type follower struct {
	Sink
	name    string // for the log
	failure failure
}

// apply gives it s, and says once for each reason what does not work.
func (f *follower) apply(ctx context.Context, s *service.Snapshot, c clock.PassiveClock, logger logr.Logger) {
	switch err := f.Apply(ctx, s); {
	case ctx.Err() != nil:
	case err == nil:
		if f.failure.over() {
			logger.Info("Works again", "sink", f.name)
		}
	case f.failure.note(err, c.Now()):
		logger.Error(err, "Failed, will try again; the rules are not concerned", "sink", f.name)
	}
}
