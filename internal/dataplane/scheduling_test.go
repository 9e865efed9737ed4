package dataplane_test

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	discoveryv1 "k8s.io/api/discovery/v1"

	"fairlead.dev/fairlead/api/v1alpha1"
	"fairlead.dev/fairlead/internal/dataplane"
	"fairlead.dev/fairlead/internal/ipfamily"
	"fairlead.dev/fairlead/test/netlab"
)

// TestRoundRobin shows that endpoints take exact turns, each Service port its own, at
// whichever of its addresses.
func TestRoundRobin(t *testing.T) {
	s := newScene(t, 2, byCIDRs)
	webs := s.webs(t, 5)
	s.apply(numbered(1, webs...).with(inTurn), numbered(2, webs[:3]...).with(inTurn), numbered(3, webs...).with(inTurn, externalLocal))
	each(t, "", func(t *testing.T, ask request, f ipfamily.Family, _ string) {
		turns := map[int][]string{}
		for n := range 20 {
			for i := 1; i <= 2; i++ {
				turns[i] = append(turns[i], s.answers(t, ask, s.pod, f, vipKinds[n%len(vipKinds)], i))
			}
		}
		// Under policy Local, those outside have turns of their own.
		for range 20 {
			turns[3] = append(turns[3], s.answers(t, ask, s.pod, f, clusterIP, 3))
			turns[4] = append(turns[4], s.answers(t, ask, s.client, f, loadBalancerIP, 3))
		}
		for i, period := range map[int]int{1: 5, 2: 3, 3: 5, 4: 3} {
			got := turns[i]
			round := slices.Compact(slices.Sorted(slices.Values(got[:period])))
			if len(round) != period {
				t.Errorf("the first round of %d is %v", i, got[:period])
			}
			for n := period; n < len(got); n++ {
				if got[n] != got[n-period] {
					t.Errorf("the turns of %d are %v", i, got)
					break
				}
			}
		}
	})
}

// TestWeightedTurns shows that an endpoint of weight 3 gets three of four turns.
func TestWeightedTurns(t *testing.T) {
	s := newScene(t, 1, byCIDRs)
	webs := s.webs(t, 2)
	weighted := numbered(1, webs...).with(inTurn)
	weighted.editSlices = append(weighted.editSlices, func(slice *discoveryv1.EndpointSlice) {
		slice.Annotations = map[string]string{v1alpha1.AnnotationWeights: fmt.Sprintf(`{"%s":3,"%s":3}`, webs[1].IPv4, webs[1].IPv6)}
	})
	s.apply(weighted)
	each(t, "", func(t *testing.T, ask request, f ipfamily.Family, _ string) {
		count := map[string]int{}
		for range 12 {
			count[s.answers(t, ask, s.client, f, externalIP, 1)]++
		}
		if count["web-1"] != 3 || count["web-2"] != 9 {
			t.Errorf("12 turns went to %v, want 3 to web-1 and 9 to web-2", count)
		}
	})
}

// manyClients is how many addresses the client outside asks from.
const manyClients = 64

// census asks the i-th Service from many addresses and returns who answers each.
func (s *scene) census(t *testing.T, f ipfamily.Family, i int) (out []string) {
	t.Helper()
	for n := range manyClients {
		// Another port each time, so that no flow of before shows the way.
		s.asked++
		name, err := askFrom(t, s.client, netip.AddrPortFrom(manyAddr(f, n), s.asked), s.vip(f, s.client, loadBalancerIP, i))
		must(t, err)
		out = append(out, name)
	}
	return out
}

func manyAddr(f ipfamily.Family, n int) netip.Addr {
	return netip.MustParseAddr(fmt.Sprintf([...]string{ipfamily.IPv4: "172.18.0.%d", ipfamily.IPv6: "fd00:172:18::1:%d"}[f], 128+n))
}

// askFrom asks over UDP from an address and port of the host.
func askFrom(t *testing.T, h *netlab.Host, source, vip netip.AddrPort) (string, error) {
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	conn, err := h.ListenPacket(ctx, "udp", source.String())
	if err != nil {
		return "", err
	}
	defer func() { _ = conn.Close() }() // nothing was written that could be lost
	if _, err := conn.WriteTo([]byte("?"), udpAddr(vip)); err != nil {
		return "", err
	}
	must(t, conn.SetReadDeadline(time.Now().Add(testTimeout)))
	reply := make([]byte, 512)
	n, _, err := conn.ReadFrom(reply)
	name, _, _ := strings.Cut(string(reply[:n]), " ")
	return name, err
}

// TestHashing shows that a client always meets the same endpoint while the endpoints are
// the same, that many clients meet them all, and that with maglev few move to another
// when one goes.
func TestHashing(t *testing.T) {
	s := newScene(t, 2, byCIDRs)
	webs := s.webs(t, 4)
	for _, f := range ipfamily.All {
		for n := range manyClients {
			must(t, s.client.AddAddr(netip.PrefixFrom(manyAddr(f, n), map[ipfamily.Family]int{ipfamily.IPv4: 24, ipfamily.IPv6: 64}[f])))
		}
	}
	services := func(endpoints []*netlab.Host) []svc {
		return []svc{
			numbered(1, endpoints...).with(scheduler(v1alpha1.SchedulerSourceHash)),
			numbered(2, endpoints...).with(scheduler(v1alpha1.SchedulerMaglev)),
		}
	}
	s.apply(services(webs)...)
	before := map[string][]string{}
	for i, name := range []string{1: "source-hash", 2: "maglev"} {
		if i == 0 {
			continue
		}
		each(t, name, func(t *testing.T, ask request, f ipfamily.Family, _ string) {
			for _, client := range []*netlab.Host{s.pod, s.client} {
				first := s.answers(t, ask, client, f, clusterIP, i)
				for n := range 12 {
					if got := s.answers(t, ask, client, f, vipKinds[n%len(vipKinds)], i); got != first {
						t.Errorf("%s answers %s, want %s again", got, client.Name, first)
					}
				}
			}
		})
		for _, f := range ipfamily.All {
			key := fmt.Sprint(name, " ", f)
			before[key] = s.census(t, f, i)
			if all := slices.Compact(slices.Sorted(slices.Values(before[key]))); len(all) != len(webs) {
				t.Errorf("%s: %d clients met %v, want all of four", key, manyClients, all)
			}
		}
	}
	s.apply(services(without(webs, "web-1"))...)
	for i, name := range []string{1: "source-hash", 2: "maglev"} {
		for _, f := range ipfamily.All {
			if i == 0 {
				continue
			}
			key := fmt.Sprint(name, " ", f)
			moved, stayed := 0, 0
			for n, now := range s.census(t, f, i) {
				switch was := before[key][n]; {
				case now == "web-1":
					t.Fatalf("%s: web-1 answers when it is no endpoint any more", key)
				case was == "web-1":
				case was != now:
					moved++
				default:
					stayed++
				}
			}
			// Of 1021 slots, one of four endpoints that goes moves a few percent of the
			// others' (section 5.3 of the paper on maglev); a plain hash moves one in three.
			if name == "maglev" && moved > stayed/5 {
				t.Errorf("%s: %d clients of the other endpoints moved and %d stayed", key, moved, stayed)
			}
		}
	}
}

// TestTurnsOfOthers: when a new agent starts, the turns of a set that went meanwhile, or
// has another number of endpoints, go as they do while one runs.
func TestTurnsOfOthers(t *testing.T) {
	w := newWorld(t, 1)
	turns := func(i, n int) svc {
		s := svc{name: fmt.Sprint("s", i), clusterIPs: []string{fmt.Sprint("10.96.0.", i+1)}, port: 80, target: 80}.with(inTurn)
		for e := range n {
			s.endpoints = append(s.endpoints, fmt.Sprintf("10.1.%d.%d", i, e+1))
		}
		return s
	}
	w.on(t, 0).apply(snapshot(nil, turns(0, 3), turns(1, 3), turns(2, 3)))
	sink := w.on(t, 0)
	if wrote := sink.apply(snapshot(nil, turns(0, 3), turns(1, 4))); wrote.Installed {
		t.Errorf("a new agent wrote %+v", wrote)
	}
	// One for TCP and one for UDP of each.
	if n := sink.Program().Ruleset.Classes.Len(); n != 4 {
		t.Errorf("there are %d chains for turns, want 4:\n%s", n, sink.nft("list", "chains"))
	}
	if wrote := w.on(t, 0).apply(snapshot(nil, turns(0, 3), turns(1, 4))); wrote != (dataplane.Written{}) {
		t.Errorf("another one wrote %+v", wrote)
	}
}
