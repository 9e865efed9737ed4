// Package node is the agent on each node: it watches the Kubernetes API, decodes what it
// sees into a service.Snapshot, and hands that to the dataplane, paced.
package node

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"strings"

	"github.com/go-logr/logr"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"fairlead.dev/fairlead/api/config/v1alpha1"
	"fairlead.dev/fairlead/internal/config"
	"fairlead.dev/fairlead/internal/dataplane"
)

// Command returns the subcommand `node`.
func Command() *cobra.Command {
	var flags config.Flags
	var name string
	cmd := &cobra.Command{
		Use:           "node",
		Short:         "Run the dataplane of this node",
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := config.Node(flags.Config)
			if err != nil {
				return err
			}
			restConfig, err := flags.REST()
			if err != nil {
				return err
			}
			if name, err = nodeName(name); err != nil {
				return err
			}
			return Run(cmd.Context(), cfg, restConfig, name, flags.Logger())
		},
	}
	flags.Bind(cmd)
	cmd.Flags().StringVar(&name, "node-name", "", "name of the Node this runs on (default: $NODE_NAME, else the host's name)")
	return cmd
}

// nodeName returns the name from the flag, $NODE_NAME or the host, the last as the
// kubelet makes it: in lower case.
func nodeName(flag string) (string, error) {
	if flag != "" {
		return flag, nil
	}
	if env := os.Getenv("NODE_NAME"); env != "" {
		return env, nil
	}
	host, err := os.Hostname()
	if err != nil {
		return "", fmt.Errorf("finding the node's name (set --node-name): %w", err)
	}
	return strings.ToLower(host), nil
}

// Run keeps the rules of the network namespace it was started in until ctx ends. The
// rules stay. It returns an error at once where it has no right to write rules or
// cannot listen; it waits for an API server that is not there yet.
func Run(ctx context.Context, cfg *v1alpha1.NodeConfiguration, restConfig *rest.Config, node string, logger logr.Logger) error {
	logger = logger.WithValues("node", node)
	sink := dataplane.NewSink(dataplane.Config{PodCIDRs: prefixes(cfg.LocalTraffic.ClusterCIDRs)})
	if err := sink.Probe(); err != nil {
		return err
	}
	restConfig = rest.CopyConfig(restConfig)
	restConfig.ContentType = "application/vnd.kubernetes.protobuf"
	client, err := kubernetes.NewForConfig(restConfig)
	if err != nil {
		return fmt.Errorf("building a client for %s: %w", restConfig.Host, err)
	}
	group, ctx := errgroup.WithContext(ctx)
	recorder, err := newRecorder(ctx, client)
	if err != nil {
		return err
	}
	a := newAgent(node, sink, recorder, logger)
	a.model.configure(cfg)
	if err := config.Serve(ctx, group, "healthz.bindAddress", cfg.Healthz.BindAddress, a.health.handler()); err != nil {
		return err
	}
	if err := config.Serve(ctx, group, "metrics.bindAddress", cfg.Metrics.BindAddress, a.metrics.handler()); err != nil {
		return err
	}
	group.Go(func() error {
		if err := config.WaitForAPIServer(ctx, restConfig, logger); err != nil && ctx.Err() == nil {
			return err
		}
		if err := watchAddrs(ctx, a.intake, logger); err != nil {
			return err
		}
		a.intake.watch(ctx, client, node, logger)
		a.run(ctx)
		return nil
	})
	return group.Wait()
}

func nodePortCIDRs(addresses []string) []netip.Prefix {
	if len(addresses) == 1 && addresses[0] == v1alpha1.NodePortPrimary {
		return nil
	}
	return prefixes(addresses)
}

// prefixes parses what validation has let through.
func prefixes(cidrs []string) []netip.Prefix {
	out := make([]netip.Prefix, 0, len(cidrs))
	for _, c := range cidrs {
		if p, err := netip.ParsePrefix(c); err == nil {
			out = append(out, p.Masked())
		}
	}
	return out
}
