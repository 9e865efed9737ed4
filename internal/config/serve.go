package config

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"golang.org/x/sync/errgroup"
)

// shutdownTimeout is how long requests for health and metrics may take to begin and to
// end.
const shutdownTimeout = 2 * time.Second

// Serve listens on address until ctx ends; "0" is off. An address that cannot be had is
// an error that names the field.
func Serve(ctx context.Context, group *errgroup.Group, field, address string, handler http.Handler) error {
	if address == "0" {
		return nil
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	if err != nil {
		return fmt.Errorf("%s %q: %w", field, address, err)
	}
	server := &http.Server{Handler: handler, ReadHeaderTimeout: shutdownTimeout}
	group.Go(func() error {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serving %s %q: %w", field, address, err)
		}
		return nil
	})
	group.Go(func() error {
		<-ctx.Done()
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
		defer cancel()
		if err := server.Shutdown(end); err != nil && !errors.Is(err, context.DeadlineExceeded) {
			return fmt.Errorf("ending %s %q: %w", field, address, err)
		}
		return nil // a client that does not let go is no failure
	})
	return nil
}

// CanListen returns an error that names field where nothing can listen on address now;
// "0" is off. It is for servers of libraries that name no field.
func CanListen(ctx context.Context, field, address string) error {
	if address == "0" {
		return nil
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	if err != nil {
		return fmt.Errorf("%s %q: %w", field, address, err)
	}
	return listener.Close()
}
