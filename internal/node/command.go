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
	var name, clean string
	cmd := &cobra.Command{
		Use:           "node",
		Short:         "Run the dataplane of this node",
		Args:          noArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cmd.Flags().Changed("cleanup") {
				return cleanup(cmd.Context(), clean, cmd.OutOrStdout())
			}
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
	cmd.Flags().StringVar(&clean, "cleanup", "",
		"instead of running, remove the rules of `whom`: fairlead, kube-proxy (what one left), or all; a value needs the \"=\"")
	cmd.Flags().Lookup("cleanup").NoOptDefVal = cleanupOwn
	cmd.AddCommand(rulesCommand())
	return cmd
}

// noArgs is cobra.NoArgs, but for the value of --cleanup without its "=".
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 && cmd.Flags().Changed("cleanup") {
		return fmt.Errorf(`--cleanup %s: a value needs "=", as in --cleanup=%s`, args[0], cleanupAll)
	}
	return cobra.NoArgs(cmd, args)
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
// rules stay. It returns an error at once where it has no right to write rules, a
// kube-proxy runs or it cannot listen; it waits for another agent to end, and for an
// API server that is not there yet.
func Run(ctx context.Context, cfg *v1alpha1.NodeConfiguration, restConfig *rest.Config, node string, logger logr.Logger) error {
	logger = logger.WithValues("node", node)
	sink := dataplane.NewSink(dataplane.Config{Local: localTraffic(cfg.LocalTraffic), MasqueradeAll: cfg.MasqueradeAll, Counters: cfg.Counters})
	if err := sink.Probe(); err != nil {
		return err
	}
	begun, err := prepare(ctx, cfg, logger)
	if err != nil && ctx.Err() != nil {
		return nil // told to end while it waited
	}
	if err != nil {
		return err
	}
	defer begun.unlock()
	return begun.serve(ctx, restConfig, node, sink)
}

// serve runs the agent, on a node that it has for itself.
func (b *begun) serve(ctx context.Context, restConfig *rest.Config, node string, sink rules) error {
	cfg, logger := b.cfg, b.logger
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
	rules := &firstWrite{rules: sink, done: make(chan struct{})}
	a := newAgent(node, rules, recorder, logger)
	a.model.configure(cfg)
	if cfg.Counters {
		a.metrics.registry.MustRegister(a.counters)
	}
	if err := config.Serve(ctx, group, "healthz.bindAddress", cfg.Healthz.BindAddress, a.health.handler()); err != nil {
		return err
	}
	if err := config.Serve(ctx, group, "metrics.bindAddress", cfg.Metrics.BindAddress, a.metrics.handler()); err != nil {
		return err
	}
	group.Go(func() error {
		b.settle(ctx, rules.done)
		return nil
	})
	group.Go(func() error {
		if err := config.WaitForAPIServer(ctx, restConfig, logger); err != nil && ctx.Err() == nil {
			return err
		}
		if err := watchAddrs(ctx, a.intake, logger); err != nil {
			return err
		}
		a.intake.watch(ctx, client, node, logger)
		group.Go(func() error { a.flows.Run(ctx); return nil })
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

// localTraffic says how the rules tell pods.
func localTraffic(l v1alpha1.LocalTraffic) dataplane.LocalTraffic {
	return dataplane.LocalTraffic{
		CIDRs:  l.NodeCIDR || len(l.ClusterCIDRs) > 0,
		Bridge: l.Bridge, InterfacePrefix: l.InterfacePrefix,
	}
}
