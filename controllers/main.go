package controllers

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"sync/atomic"

	"github.com/go-logr/logr"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/rest"
	cloudprovider "k8s.io/cloud-provider"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"fairlead.dev/fairlead/api/config/v1alpha1"
	"fairlead.dev/fairlead/internal/config"
)

// leaderElectionID is the name of the Lease.
const leaderElectionID = "fairlead-controller"

// Main runs `fairlead controller` with provider in the place of the built-in ones
// and does not return. It is all that a cloud provider's own main has to call.
func Main(provider cloudprovider.Interface) {
	if err := Command(provider).ExecuteContext(ctrl.SetupSignalHandler()); err != nil {
		fmt.Fprintln(os.Stderr, "Error:", err)
		os.Exit(1)
	}
}

// Command returns the subcommand `controller`. A nil provider means the one that the
// configuration names.
func Command(provider cloudprovider.Interface) *cobra.Command {
	var flags config.Flags
	cmd := &cobra.Command{
		Use:           "controller",
		Short:         "Run the endpoint, address and load balancer controllers",
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := config.Controller(flags.Config)
			if err != nil {
				return err
			}
			restConfig, err := flags.REST()
			if err != nil {
				return err
			}
			return Run(cmd.Context(), cfg, restConfig, provider, flags.Logger())
		},
	}
	flags.Bind(cmd)
	return cmd
}

// Run runs the controllers until ctx ends. It waits for an API server that is not
// there yet.
func Run(ctx context.Context, cfg *v1alpha1.ControllerConfiguration, restConfig *rest.Config,
	provider cloudprovider.Interface, logger logr.Logger) error {
	if err := config.CanListen(ctx, "metrics.bindAddress", cfg.Metrics.BindAddress); err != nil {
		return err
	}
	// Health is served from the start: a process that waits for its API server is well,
	// and killing it helps nobody.
	var ready atomic.Bool
	group, ctx := errgroup.WithContext(ctx)
	if err := config.Serve(ctx, group, "healthProbe.bindAddress", cfg.HealthProbe.BindAddress, probes(&ready)); err != nil {
		return err
	}
	group.Go(func() error { return manage(ctx, cfg, restConfig, provider, logger, &ready) })
	return group.Wait()
}

// probes serves /healthz, which answers while the process runs, and /readyz, which
// answers once the controllers are set up.
func probes(ready *atomic.Bool) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/healthz", healthz.CheckHandler{Checker: healthz.Ping})
	mux.Handle("/readyz", healthz.CheckHandler{Checker: func(*http.Request) error {
		if !ready.Load() {
			return errors.New("the controllers are not set up yet")
		}
		return nil
	}})
	return mux
}

// manage sets up the controllers once the API server answers, and runs them.
func manage(ctx context.Context, cfg *v1alpha1.ControllerConfiguration, restConfig *rest.Config,
	provider cloudprovider.Interface, logger logr.Logger, ready *atomic.Bool) error {
	if err := config.WaitForAPIServer(ctx, restConfig, logger); err != nil && ctx.Err() == nil {
		return err
	}
	select {
	case <-ctx.Done():
		return nil // told to stop
	default:
	}
	scheme, err := NewScheme()
	if err != nil {
		return err
	}
	mgr, err := ctrl.NewManager(restConfig, ctrl.Options{
		Scheme:                        scheme,
		Logger:                        logger,
		Metrics:                       metricsserver.Options{BindAddress: cfg.Metrics.BindAddress},
		HealthProbeBindAddress:        "0", // ours are there already
		LeaderElection:                cfg.LeaderElection.Enabled,
		LeaderElectionID:              leaderElectionID,
		LeaderElectionNamespace:       leaseNamespace(cfg),
		LeaderElectionReleaseOnCancel: true, // nothing runs after Start returns
	})
	if err != nil {
		return fmt.Errorf("building the controller manager: %w", err)
	}
	if err := Setup(mgr, cfg, provider); err != nil {
		return err
	}
	ready.Store(true)
	return mgr.Start(ctx)
}

func leaseNamespace(cfg *v1alpha1.ControllerConfiguration) string {
	if cfg.LeaderElection.Namespace != "" {
		return cfg.LeaderElection.Namespace
	}
	return config.Namespace()
}
