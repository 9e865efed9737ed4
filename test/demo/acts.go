package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"fairlead.dev/fairlead/internal/dataplane"
	"fairlead.dev/fairlead/test/netlab"
)

const (
	// victim is the pod that becomes unready for a while.
	victim = "echo-2"

	// requestsMoved is how many requests each route makes while victim is unready.
	requestsMoved = 4

	// repairLimit is within which the rules must be back after somebody deleted them.
	repairLimit = 2 * time.Second
)

// showUnready turns a pod unready and ready again, and shows how long that takes to
// reach the kernel and that requests follow.
func (d *demo) showUnready(ctx context.Context) error {
	p := d.world.pod(victim)
	rest := slices.DeleteFunc(d.ready(), func(name string) bool { return name == victim })
	if err := d.turn(ctx, p, false, rest); err != nil {
		return err
	}
	moved, err := d.askAll(ctx)
	if err != nil {
		return err
	}
	if err := judge(moved, rest, nil); err != nil {
		return fmt.Errorf("after %s became unready: %w", victim, err)
	}
	d.report.say("%s gets 0 of %d requests; %s", victim, moved.count(), counts(moved, rest))

	if err := d.turn(ctx, p, true, d.ready()); err != nil {
		return err
	}
	back, err := d.routes[0].ask(ctx, protocols[0], requestsPerRoute, d.ready())
	if err != nil {
		return err
	}
	if err := judge(back, d.ready(), d.routes[0].sources); err != nil {
		return fmt.Errorf("after %s became ready again: %w", victim, err)
	}
	d.report.say("%s takes part again: %s", victim, counts(back, d.ready()))
	return nil
}

// turn makes p ready or not, and waits until that has reached the rules of all nodes.
func (d *demo) turn(ctx context.Context, p *pod, ready bool, want []string) error {
	names := make([]string, len(d.world.nodes))
	for i, n := range d.world.nodes {
		names[i] = n.Name
	}
	state := map[bool]string{true: "ready", false: "unready"}[ready]
	count, err := d.countSlices(ctx, p)
	if err != nil {
		return err
	}
	before := d.events.mark()
	p.echo.SetReady(ready)
	// Only the memory is looked at first, since whatever else runs here is measured too.
	var way timeline
	if err := await(ctx, fmt.Sprintf("%s %s is seen everywhere", p.Name, state), func(context.Context) (err error) {
		way, err = measure(d.events.since(before), p.Name, count, names)
		return err
	}); err != nil {
		return err
	}
	if err := await(ctx, fmt.Sprintf("%s is %s everywhere", p.Name, state), func(ctx context.Context) error {
		return d.turned(ctx, p, ready, want)
	}); err != nil {
		return err
	}
	if way, err = measure(d.events.since(before), p.Name, count, names); err != nil {
		return err
	}
	d.report.say("%s %s: %s", p.Name, state, way.describe(names))
	return nil
}

// turned returns nil when the slices have exactly the pods in want ready, and the rules
// of every node name p or do not.
func (d *demo) turned(ctx context.Context, p *pod, ready bool, want []string) error {
	if err := d.slicesHave(ctx, want); err != nil {
		return err
	}
	for _, n := range d.world.nodes {
		if err := d.rulesName(ctx, n, p, ready); err != nil {
			return err
		}
	}
	return nil
}

// countSlices returns how many slices p is in.
func (d *demo) countSlices(ctx context.Context, p *pod) (int, error) {
	var list discoveryv1.EndpointSliceList
	if err := d.api.List(ctx, &list, client.InNamespace(podNamespace)); err != nil {
		return 0, fmt.Errorf("counting EndpointSlices: %w", err)
	}
	count := 0
	for i := range list.Items {
		if _, ok := podsOf(&list.Items[i])[p.Name]; ok {
			count++
		}
	}
	return count, nil
}

// rulesName returns nil when the rules of n name p, or do not.
func (d *demo) rulesName(ctx context.Context, n *node, p *pod, want bool) error {
	r, err := d.listRules(ctx, n)
	if err != nil {
		return err
	}
	for _, addr := range []netip.Addr{p.IPv4, p.IPv6} {
		if r.words[addr.String()] != want {
			return fmt.Errorf("the rules of %s name %s: %t, not %t", n.Name, addr, !want, want)
		}
	}
	return nil
}

// askAll makes requests on all routes, over TCP; and over UDP on routes of their own,
// since a datagram from a port that was used before belongs to that flow for as long as
// the kernel remembers it (nf_conntrack_udp_timeout is 30 s).
func (d *demo) askAll(ctx context.Context) (tally, error) {
	total := newTally()
	ask := func(r route, protocol string) error {
		t, err := r.ask(ctx, protocol, requestsMoved, nil)
		total = sum(total, tally{pods: t.pods}) // the sources were checked before
		return err
	}
	for _, r := range d.routes {
		if err := ask(r, "HTTP"); err != nil {
			return total, err
		}
	}
	for _, r := range d.unusedRoutes() {
		if err := ask(r, "UDP"); err != nil {
			return total, err
		}
	}
	return total, nil
}

// unusedRoutes lead to the ClusterIPs that the routes of the demo leave out.
func (d *demo) unusedRoutes() []route {
	var out []route
	for i := range d.services {
		svc := &d.services[i]
		if svc.Spec.Type == corev1.ServiceTypeNodePort || svc.Spec.Type == corev1.ServiceTypeLoadBalancer {
			for _, to := range addrPorts(svc.Spec.ClusterIPs, uint16(svc.Spec.Ports[0].Port)) {
				for _, from := range []*netlab.Host{d.world.pod("shell").Host, &d.world.nodes[0].Host} {
					out = append(out, route{from: from, kind: "ClusterIP", to: to})
				}
			}
		}
	}
	return out
}

// showRepair deletes fairlead's tables on a node, as somebody's script might, and shows
// when they are back.
func (d *demo) showRepair(ctx context.Context) error {
	n := d.world.nodes[0]
	tables, err := d.ownTables(ctx, n)
	if err != nil {
		return err
	}
	before := d.events.mark()
	deletes := make([]string, len(tables))
	for i, t := range tables {
		deletes[i] = "delete " + t
	}
	command := strings.Join(deletes, "; ") // one transaction
	if _, err := n.Output(ctx, d.bin.nft, command); err != nil {
		return err
	}
	var took time.Duration
	err = await(ctx, "the tables of "+n.Name+" are back", func(ctx context.Context) error {
		if took, err = repaired(d.events.since(before), n.Name, len(tables)); err != nil {
			return err
		}
		if err := d.nodeServes(ctx, n); err != nil {
			return err
		}
		return d.answered(ctx)
	})
	if err != nil {
		return err
	}
	if took > repairLimit {
		return fmt.Errorf("the tables of %s were away for %s, more than %s", n.Name, millis(took), repairLimit)
	}
	d.report.say("$ nft '%s'", command)
	d.report.say("somebody deleted fairlead's tables on %s: back and whole after %s", n.Name, millis(took))
	return nil
}

// ownTables returns "table ip fairlead" and so on, as nft lists them.
func (d *demo) ownTables(ctx context.Context, n *node) ([]string, error) {
	out, err := n.Output(ctx, d.bin.nft, "list", "tables")
	if err != nil {
		return nil, err
	}
	var own []string
	for line := range strings.Lines(string(out)) {
		if fields := strings.Fields(line); len(fields) == 3 && fields[2] == dataplane.TableName {
			own = append(own, strings.TrimSpace(line))
		}
	}
	if len(own) == 0 {
		return nil, errors.New("nft lists no table of fairlead on " + n.Name)
	}
	return own, nil
}

// repaired returns the time from the first table's deletion to the last one's return.
func repaired(events []event, node string, tables int) (time.Duration, error) {
	events = slices.DeleteFunc(slices.Clone(events), func(e event) bool { return e.place != node })
	gone := slices.IndexFunc(events, func(e event) bool { return e.kind == unmade })
	if gone < 0 {
		return 0, errors.New("the tables are still there")
	}
	var back []event
	for _, e := range events[gone:] {
		if e.kind == made {
			back = append(back, e)
		}
	}
	if len(back) < tables {
		return 0, fmt.Errorf("%d of %d tables are back", len(back), tables)
	}
	return back[len(back)-1].at.Sub(events[gone].at), nil
}
