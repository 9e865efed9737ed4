package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"

	"fairlead.dev/fairlead/internal/config"
	"fairlead.dev/fairlead/test/netlab"
)

// systemNamespace is where fairlead's ServiceAccounts are, and its Lease.
const systemNamespace = "fairlead-system"

// processPrefix begins the names of fairlead's processes and, with the subcommand behind
// it, is the name of its ServiceAccount.
const processPrefix = "fairlead-"

func isFairlead(process string) bool { return strings.HasPrefix(process, processPrefix) }

// startFairlead starts one controller beside the API server and one node agent on each
// node, with the rights of their own ServiceAccounts and nothing more.
func (d *demo) startFairlead(ctx context.Context) error {
	controllerConfig, err := config.Controller("")
	if err != nil {
		return err
	}
	nodeConfig, err := config.Node("")
	if err != nil {
		return err
	}
	nodeConfig.LocalTraffic.ClusterCIDRs = d.world.podCIDRs()
	if err := d.startOne(ctx, d.world.lab.Gateway(), processPrefix+"controller", "controller", controllerConfig); err != nil {
		return err
	}
	for _, n := range d.world.nodes {
		if err := d.startOne(ctx, &n.Host, processPrefix+n.Name, "node", nodeConfig, "--node-name", n.Name); err != nil {
			return err
		}
	}
	return nil
}

// startOne starts a subcommand of fairlead on host, as its own ServiceAccount.
func (d *demo) startOne(ctx context.Context, host *netlab.Host, process, subcommand string, cfg any, args ...string) error {
	account := processPrefix + subcommand
	kubeconfig, err := d.plane.kubeconfigFor(ctx, d.api, types.NamespacedName{Namespace: systemNamespace, Name: account})
	if err != nil {
		return err
	}
	data, err := yaml.Marshal(cfg)
	if err != nil {
		return fmt.Errorf("writing the configuration of %s: %w", account, err)
	}
	file := d.plane.file(account + ".yaml")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		return fmt.Errorf("writing the configuration of %s: %w", account, err)
	}
	cmd := exec.Command(d.bin.fairlead, append([]string{subcommand, "--kubeconfig", kubeconfig, "--config", file}, args...)...)
	cmd.Env = append(os.Environ(), "POD_NAMESPACE="+systemNamespace) // as the Deployment sets it
	return d.procs.start(host, process, cmd)
}
