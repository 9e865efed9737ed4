package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"fairlead.dev/fairlead/api/v1alpha1"
)

// requestsPerRoute is how many requests the table shows of each way and protocol.
const requestsPerRoute = 30

// applySamples applies the objects to show and waits for what fairlead makes of them.
func (d *demo) applySamples(ctx context.Context) error {
	objects := d.manifests.samples
	if err := applyAll(ctx, d.api, objects); err != nil {
		return err
	}
	applied := d.clock.Now()
	d.report.say("applied %s: %d objects", filepath.Clean(d.opts.samples), len(objects))
	if err := await(ctx, "the Services have slices, addresses and rules", d.served); err != nil {
		return err
	}
	f, err := frontendsOf(d.services)
	if err != nil {
		return err
	}
	d.routes = d.world.routes(f)
	if err := d.routeToPools(ctx); err != nil {
		return err
	}
	if err := await(ctx, "requests go through", d.answered); err != nil {
		return err
	}
	d.report.say("slices, addresses and rules are there and requests go through, %s after that",
		millis(d.clock.Since(applied)))
	return nil
}

// served returns nil when every ready pod is in the slices, the LoadBalancer Service has
// its addresses, and every node has the rules for exactly the Services there are.
func (d *demo) served(ctx context.Context) error {
	if err := d.listServices(ctx); err != nil {
		return err
	}
	if _, err := frontendsOf(d.services); err != nil {
		return err
	}
	if err := d.slicesHave(ctx, d.ready()); err != nil {
		return err
	}
	for _, n := range d.world.nodes {
		if err := d.nodeServes(ctx, n); err != nil {
			return err
		}
	}
	return nil
}

func (d *demo) listServices(ctx context.Context) error {
	var list corev1.ServiceList
	if err := d.api.List(ctx, &list); err != nil {
		return fmt.Errorf("listing Services: %w", err)
	}
	d.services = list.Items
	return nil
}

// slicesHave returns nil when exactly pods are ready in the slices of every Service.
func (d *demo) slicesHave(ctx context.Context, pods []string) error {
	var list discoveryv1.EndpointSliceList
	if err := d.api.List(ctx, &list, client.InNamespace(podNamespace)); err != nil {
		return fmt.Errorf("listing EndpointSlices: %w", err)
	}
	return settled(d.services, list.Items, pods)
}

// nodeServes returns nil when n has rules for exactly the Services there are.
func (d *demo) nodeServes(ctx context.Context, n *node) error {
	r, err := d.listRules(ctx, n)
	if err != nil {
		return err
	}
	if err := difference(virtualIPs(d.services), r.frontends); err != nil {
		return fmt.Errorf("on %s: %w", n.Name, err)
	}
	return nil
}

// ready returns the names of the pods that should get requests, in order.
func (d *demo) ready() []string {
	var out []string
	for _, p := range d.world.echoPods() {
		out = append(out, p.Name)
	}
	slices.Sort(out)
	return out
}

// routeToPools gives the client a way to the pool's addresses.
func (d *demo) routeToPools(ctx context.Context) error {
	var pools v1alpha1.AddressPoolList
	if err := d.api.List(ctx, &pools); err != nil {
		return fmt.Errorf("listing AddressPools: %w", err)
	}
	prefixes, err := poolPrefixes(pools.Items)
	if err != nil {
		return err
	}
	for _, p := range prefixes {
		if err := d.world.routeToNodes(p); err != nil {
			return err
		}
	}
	d.report.say("the client has static routes to the pool's addresses via both nodes: announcing them by ARP, NDP and BGP")
	d.report.say("is a later part of fairlead; it has no route to ClusterIPs, as nobody outside a cluster has")
	return nil
}

// answered returns nil when every route answers.
func (d *demo) answered(ctx context.Context) error {
	for _, r := range d.routes {
		for _, protocol := range protocols {
			if err := r.askOnce(ctx, protocol, newTally()); err != nil {
				return fmt.Errorf("%s over %s: %w", r, protocol, err)
			}
		}
	}
	return nil
}

// showObjects prints what kubectl says.
func (d *demo) showObjects(ctx context.Context) error {
	for _, args := range [][]string{
		{"get", "services", "-o", "wide"},
		{"get", "endpointslices"},
		{"get", "addresspools"},
	} {
		flags := []string{"--kubeconfig", d.kubeconfig, "--cache-dir", d.plane.file("kubectl")}
		out, err := d.world.lab.Gateway().Output(ctx, d.bin.kubectl, slices.Concat(args, flags)...)
		if err != nil {
			return err
		}
		d.report.say("$ kubectl %s", strings.Join(args, " "))
		d.report.show(string(out))
	}
	return nil
}

// showTraffic makes requests on all routes, checks every answer, and prints the spread.
func (d *demo) showTraffic(ctx context.Context) error {
	pods := d.ready()
	rows := [][]string{{"from", "to", "", "HTTP", "UDP", "source the pods see"}}
	total := newTally()
	for _, r := range d.routes {
		row := []string{r.from.Name, r.kind, r.to.String()}
		var tallies []tally
		for _, protocol := range protocols {
			t, err := r.ask(ctx, protocol, requestsPerRoute, pods)
			if err != nil {
				return err
			}
			if err := judge(t, pods, r.sources); err != nil {
				return fmt.Errorf("%s over %s: %w", r, protocol, err)
			}
			tallies = append(tallies, t)
			row = append(row, spread(t, pods))
		}
		total = sum(append(tallies, total)...)
		rows = append(rows, append(row, seen(r, tallies...)))
	}
	d.report.say("%d requests, each over a connection of its own, answered by %s:", total.count(), strings.Join(pods, " + "))
	d.report.show(table(rows))
	return nil
}

// showAbsence checks that nodes have no rules for what has no address of its own.
func (d *demo) showAbsence(ctx context.Context) error {
	var without []string
	for i := range d.services {
		svc := &d.services[i]
		switch {
		case svc.Spec.Type == corev1.ServiceTypeExternalName:
			without = append(without, svc.Name+" (ExternalName)")
		case svc.Spec.ClusterIP == corev1.ClusterIPNone:
			without = append(without, svc.Name+" (headless)")
		}
	}
	if len(without) == 0 {
		return errors.New("the samples have no headless and no ExternalName Service")
	}
	for _, n := range d.world.nodes {
		if err := d.nodeServes(ctx, n); err != nil {
			return err
		}
	}
	d.report.say("%d addresses and ports have rules on each node; %s have none", len(virtualIPs(d.services)), strings.Join(without, " and "))
	return nil
}
