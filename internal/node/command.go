// Package node is the agent on each node: Kubernetes API -> Snapshot -> sinks.
package node

import (
	"github.com/spf13/cobra"

	"fairlead.dev/fairlead/internal/config"
)

// Command returns the subcommand `node`.
func Command() *cobra.Command {
	var flags config.Flags
	cmd := &cobra.Command{
		Use:           "node",
		Short:         "Run the dataplane of this node",
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	flags.Bind(cmd)
	return cmd
}
