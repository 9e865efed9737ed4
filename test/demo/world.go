package main

import (
	"fmt"
	"net/netip"
	"slices"

	"fairlead.dev/fairlead/test/netlab"
)

// echoPort is where the pods answer, in TCP and UDP.
const echoPort = 8080

// plan is what the world is made of. Pods with app "echo" are what the Services of
// config/samples select; shell asks, and would answer if it were asked by mistake.
var plan = []struct {
	node, zone string
	pods       []podPlan
}{
	{"node1", "zone-a", []podPlan{{"echo-1", "echo"}, {"echo-2", "echo"}, {"shell", "shell"}}},
	{"node2", "zone-b", []podPlan{{"echo-3", "echo"}}},
}

type podPlan struct{ name, app string }

// world is the network with all hosts in it.
type world struct {
	lab    *netlab.Lab
	nodes  []*node
	pods   []*pod
	client *netlab.Host // outside the cluster
}

type node struct {
	*netlab.Node
	zone string
}

type pod struct {
	*netlab.Host
	node *node
	app  string
	echo *netlab.Echo
}

// populate adds nodes, pods with their echo servers, and a client to the lab.
func (w *world) populate() error {
	for _, np := range plan {
		added, err := w.lab.AddNode(np.node)
		if err != nil {
			return err
		}
		n := &node{Node: added, zone: np.zone}
		w.nodes = append(w.nodes, n)
		for _, pp := range np.pods {
			host, err := n.AddPod(pp.name)
			if err != nil {
				return err
			}
			p := &pod{Host: host, node: n, app: pp.app}
			if p.echo, err = netlab.StartEcho(host, pp.name, echoPort); err != nil {
				return err
			}
			w.pods = append(w.pods, p)
		}
	}
	var err error
	w.client, err = w.lab.AddClient("client")
	return err
}

// close ends the echo servers and takes the network away.
func (w *world) close() error {
	for _, p := range w.pods {
		if err := p.echo.Close(); err != nil {
			return fmt.Errorf("closing echo %s: %w", p.Name, err)
		}
	}
	return w.lab.Close()
}

// pod returns the pod of that name, which is in plan.
func (w *world) pod(name string) *pod {
	return w.pods[slices.IndexFunc(w.pods, func(p *pod) bool { return p.Name == name })]
}

// echoPods returns the pods behind the Services.
func (w *world) echoPods() []*pod {
	return slices.DeleteFunc(slices.Clone(w.pods), func(p *pod) bool { return p.app != "echo" })
}

// podCIDRs returns the networks of the pods of all nodes.
func (w *world) podCIDRs() []string {
	var out []string
	for _, n := range w.nodes {
		for _, c := range n.PodCIDRs {
			out = append(out, c.String())
		}
	}
	return out
}

// routeToNodes makes the client send packets for dst to the nodes, each connection to
// one of them.
func (w *world) routeToNodes(dst netip.Prefix) error {
	var via []netip.Addr
	for _, n := range w.nodes {
		via = append(via, addrOf(&n.Host, dst.Addr()))
	}
	return w.client.AddRoute(dst, via...)
}

// addrOf returns the address of h that has the family of like.
func addrOf(h *netlab.Host, like netip.Addr) netip.Addr {
	if like.Is4() {
		return h.IPv4
	}
	return h.IPv6
}
