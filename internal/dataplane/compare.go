package dataplane

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"fairlead.dev/fairlead/internal/service"
)

// Wanted returns what would be installed of svc, were it alone on a node with the
// addresses, with the ids that in has for it.
func (in Installed) Wanted(svc *service.Service, nodeAddrs []netip.Addr) Installed {
	s := &service.Snapshot{NodeAddrs: nodeAddrs, NodePortAddrs: in.NodePortAddrs()}
	for _, r := range in.members(podSet) {
		s.PodCIDRs = append(s.PodCIDRs, r...)
	}
	edit := s.Services.Edit()
	edit.Set(svc.Name, svc)
	s.Services = edit.Map()
	return Installed{Config: in.Config, Ruleset: Compile(Adopt(in.Ruleset, s), s).Ruleset, Ours: true, Counts: in.Counts}
}

// Differences says in words in what have, from the kernel, is not want, from the API.
func Differences(have, want Explanation, names map[netip.Addr]string) (out []string) {
	if have.Kind != want.Kind {
		return []string{fmt.Sprintf("%s: the API makes it a %s, in the kernel it is: %s", have.Title(), want.Kind, have.Kind)}
	}
	for _, local := range []bool{false, true} {
		for _, text := range differentEndpoints(have.endpoints(local), want.endpoints(local), names) {
			if local {
				text += " (of the endpoints on this node)"
			}
			out = append(out, have.Title()+": "+text)
		}
	}
	for _, w := range want.Paths {
		i := slices.IndexFunc(have.Paths, func(p Path) bool { return p.From == w.From })
		if i < 0 {
			out = append(out, fmt.Sprintf("%s: nothing in the kernel is of its own for packets %s, the API wants them %s",
				have.Title(), want.sender(w.From), want.fate(w)))
		} else if p := have.Paths[i]; !p.alike(w) {
			out = append(out, fmt.Sprintf("%s: %s the kernel has %q, the API wants %q", have.Title(), want.sender(w.From), have.fate(p), want.fate(w)))
		}
	}
	return out
}

// alike says whether both do the same, but for which endpoints there are.
func (p Path) alike(o Path) bool {
	p.Class.Slots, p.Class.Owner, o.Class.Slots, o.Class.Owner = 0, 0, 0, 0
	return p.Fate == o.Fate && p.Class == o.Class && p.Masqueraded == o.Masqueraded &&
		p.Fenced == o.Fenced && slices.Equal(p.Ranges, o.Ranges) && p.ID&1 == o.ID&1
}

// endpoints returns those of the cluster or of this node that e leads to.
func (e Explanation) endpoints(local bool) map[netip.AddrPort]Endpoint {
	out := map[netip.AddrPort]Endpoint{}
	for _, s := range e.Sets {
		for _, ep := range s.Endpoints {
			if s.Local() == local {
				out[ep.Addr] = ep
			}
		}
	}
	return out
}

func differentEndpoints(have, want map[netip.AddrPort]Endpoint, names map[netip.Addr]string) (out []string) {
	all := slices.AppendSeq(slices.Collect(maps.Keys(have)), maps.Keys(want))
	slices.SortFunc(all, netip.AddrPort.Compare)
	for _, a := range slices.Compact(all) {
		called := a.String()
		if name := names[a.Addr()]; name != "" {
			called += " (" + name + ")"
		}
		h, inKernel := have[a]
		w, inAPI := want[a]
		switch {
		case !inKernel:
			out = append(out, "endpoint "+called+" is in the API, not in the kernel")
		case !inAPI:
			out = append(out, "endpoint "+called+" is in the kernel, not in the API")
		case h.Slots != w.Slots && len(have) == len(want):
			out = append(out, fmt.Sprintf("endpoint %s has %d slots in the kernel, %d by the API", called, h.Slots, w.Slots))
		}
	}
	return out
}
