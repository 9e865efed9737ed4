package parity_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"

	"fairlead.dev/fairlead/internal/ipfamily"
	"fairlead.dev/fairlead/test/netlab"
)

// silence is how long an answer may take. What is silent is asked twice.
const silence = 300 * time.Millisecond

// question is who asks where. Both sides are asked the same ones.
type question struct {
	spec     *spec
	client   string
	kind     kind
	family   ipfamily.Family
	protocol corev1.Protocol
	port     uint16 // of the Service
	index    int    // of the port in the Service
}

func (q question) String() string {
	return fmt.Sprintf("%s to %s of s%d, %s port %d, %s", q.client, q.kind, q.spec.number, q.protocol, q.port, q.family)
}

// clients in the order they are asked in.
var clients = []string{"pod", "endpoint", "node", "remote pod", "outside"}

// questions are all that can be asked of a Service.
func (s *spec) questions() (out []question) {
	kinds := []kind{clusterIP, otherPort}
	if s.service.Type == corev1.ServiceTypeNodePort || s.service.Type == corev1.ServiceTypeLoadBalancer {
		kinds = append(kinds, nodePort)
	}
	if s.ingress {
		kinds = append(kinds, loadBalancerIP)
	}
	if s.external {
		kinds = append(kinds, externalIP)
	}
	for _, f := range ipfamily.All {
		if !s.has(f) {
			continue
		}
		for i, p := range s.service.Ports {
			for _, k := range kinds {
				if k == otherPort && i > 0 {
					continue
				}
				for _, client := range clients {
					out = append(out, question{s, client, k, f, p.Protocol, uint16(p.Port), i})
				}
			}
		}
	}
	return out
}

// at is where the question goes on a side. nodePorts are those of the side's Service.
func (q question) at(s *side, nodePorts []int32) netip.AddrPort {
	switch q.kind {
	case nodePort:
		return netip.AddrPortFrom(addrOf(&s.node.Host, q.family), uint16(nodePorts[q.index]))
	case otherPort:
		return netip.AddrPortFrom(s.address(clusterIP, q.family, q.spec.number), 7)
	default:
		return netip.AddrPortFrom(s.address(q.kind, q.family, q.spec.number), q.port)
	}
}

// answers are what tries of one question gave, without repetition, in order: a backend
// with the source that it saw, or how it failed.
type answers []string

// ask asks up to tries times. A Service with affinity is asked for which of its
// endpoints it sticks to, which is left to chance.
func (s *side) ask(q question, at netip.AddrPort, tries int, patience time.Duration) answers {
	seen := map[string]bool{}
	silent := 0
	for range tries {
		a := s.try(q, at, patience)
		seen[a] = true
		if a == "silence" {
			silent++
		}
		if silent == 2 || a == "refused" || a == "stopped" {
			break
		}
	}
	out := make(answers, 0, len(seen))
	for a := range seen {
		out = append(out, a)
	}
	slices.Sort(out)
	if q.spec.service.SessionAffinity == corev1.ServiceAffinityClientIP && len(out) == 1 {
		if _, source, found := strings.Cut(out[0], " sees "); found && q.client != "endpoint" {
			return answers{"always the same, sees " + source}
		} else if found {
			return answers{"always the same"}
		}
	}
	return out
}

func (s *side) try(q question, at netip.AddrPort, patience time.Duration) string {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	ask := (*netlab.Host).HTTP
	if q.protocol == corev1.ProtocolUDP {
		ask = (*netlab.Host).UDP
	}
	client := s.clients[q.client]
	name, source, err := ask(client, ctx, at)
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return "refused"
	case errors.Is(err, syscall.EPERM):
		return "stopped" // a packet of the client's own kernel, dropped or rejected
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EHOSTUNREACH):
		// What no rule takes up ends at the lab's gateway, which says so from time to time.
		return "silence"
	case err != nil:
		return err.Error()
	case source.Addr() == addrOf(client, q.family):
		return name + " sees the client"
	case source.Addr() == addrOf(&s.node.Host, q.family):
		return name + " sees the node"
	default:
		return fmt.Sprintf("%s sees %s", name, source.Addr())
	}
}

// askAll asks all questions of one side, those of each client one after the other.
func (s *side) askAll(questions []question, ports map[*spec][]int32) []answers {
	out := make([]answers, len(questions))
	var group sync.WaitGroup
	for _, client := range clients {
		group.Go(func() {
			for i, q := range questions {
				if q.client == client {
					out[i] = s.ask(q, q.at(s, ports[q.spec]), 6, silence)
				}
			}
		})
	}
	group.Wait()
	return out
}
