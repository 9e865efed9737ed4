package dataplane

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"fairlead.dev/fairlead/internal/ipfamily"
	"fairlead.dev/fairlead/internal/service"
)

// Title names what e is about: 10.96.0.10:80/TCP.
func (e Explanation) Title() string {
	if e.Protocol == 0 {
		return e.At.String()
	}
	return e.At.String() + "/" + protocolName(e.Protocol)
}

// Text says e in words, in lines. names are what endpoints are called beside their
// addresses; nil where nobody knows.
func (e Explanation) Text(names map[netip.Addr]string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s\n", e.Title(), e.Kind)
	for _, p := range e.Paths {
		fmt.Fprintf(&b, "  %s: %s\n", e.sender(p.From), e.fate(p))
		fmt.Fprintf(&b, "      chains %s\n", strings.Join(p.Chains, " > "))
	}
	for _, s := range e.Sets {
		b.WriteString(s.text(names))
	}
	if e.Count != nil {
		fmt.Fprintf(&b, "  counted: %s, %s, %s\n", many(e.Count.Connections, "connection"), many(e.Count.Packets, "packet"), many(e.Count.Bytes, "byte"))
	}
	if len(e.Elements) > 0 {
		fmt.Fprintf(&b, "  in table %s %s:\n", familyName(ipfamily.Of(e.At.Addr())), TableName)
	}
	for _, el := range e.Elements {
		fmt.Fprintf(&b, "      %s has %s", el.Set, el.Text)
		if el.Chain != "" {
			fmt.Fprintf(&b, ", leads to chain %s", el.Chain)
		}
		b.WriteString("\n")
	}
	return b.String()
}

func (e Explanation) sender(s Sender) string {
	switch s {
	case Pods:
		return "from pods (" + e.pods() + ")"
	case ThisNode:
		return "from this node"
	case Elsewhere:
		return "from elsewhere"
	case Others:
		return "from pods and elsewhere"
	default:
		return "from everyone"
	}
}

// pods says how the rules know them.
func (e Explanation) pods() string {
	switch {
	case e.Local.Bridge != "":
		return "coming in by bridge " + e.Local.Bridge
	case e.Local.InterfacePrefix != "":
		return "coming in by an interface " + e.Local.InterfacePrefix + "*"
	case len(e.PodRanges) == 0:
		return "none: set " + setPods + " is empty"
	default:
		return "source in " + join(e.PodRanges)
	}
}

func (e Explanation) fate(p Path) string {
	text := ""
	switch p.Fate {
	case Translated:
		text = e.translated(p)
	case Refused:
		text = "refused with " + e.refusal()
	case Dropped:
		text = "dropped"
	default:
		text = "untouched"
	}
	switch {
	case p.Why == "":
	case p.Fate == Translated:
		text += "; " + p.Why
	default:
		text += ": " + p.Why
	}
	if len(p.Ranges) > 0 {
		text += "; dropped where the source is not in " + join(p.Ranges)
	}
	return text
}

func (e Explanation) refusal() string {
	unreachable := "ICMP port unreachable"
	if ipfamily.Of(e.At.Addr()) == ipfamily.IPv6 {
		unreachable = "ICMPv6 port unreachable"
	}
	switch e.Protocol {
	case service.TCP:
		return "a TCP RST"
	case 0:
		return "a TCP RST or " + unreachable
	default:
		return unreachable
	}
}

func (e Explanation) translated(p Path) string {
	i := slices.IndexFunc(e.Sets, func(s EndpointSet) bool { return s.ID == p.ID })
	set := e.Sets[i]
	source := "source kept"
	if p.Masqueraded {
		source = "masqueraded"
	}
	return fmt.Sprintf("to %s, %s", set.one(p.Class), source)
}

// one says which endpoint is picked, and how.
func (s EndpointSet) one(c Class) string {
	where := ""
	if s.Local() {
		where = " on this node"
	}
	n := len(s.Endpoints)
	if n == 1 {
		return "the one endpoint" + where
	}
	how := howPicked(c)
	if c.Affinity > 0 {
		how = fmt.Sprintf("that of the client's last connection up to %s ago, else %s", period(c.Affinity), how)
	}
	return fmt.Sprintf("one of %d endpoints%s, %s", n, where, how)
}

// period returns seconds as they stand in the API.
func period(d time.Duration) string { return fmt.Sprintf("%d s", d/time.Second) }

func howPicked(c Class) string {
	switch c.Scheduler {
	case service.RoundRobin:
		return "in turns"
	case service.SourceHash, service.Maglev:
		return "by a hash of the client's address"
	default:
		return "at random"
	}
}

func (s EndpointSet) text(names map[netip.Addr]string) string {
	var b strings.Builder
	if s.Local() {
		b.WriteString("  endpoints on this node:\n")
	} else {
		b.WriteString("  endpoints:\n")
	}
	even, there := true, 0
	for _, ep := range s.Endpoints {
		even = even && ep.Slots == s.Endpoints[0].Slots
		there += ep.Slots
	}
	var rows [][]string
	for _, ep := range s.Endpoints {
		row := []string{"      " + ep.Addr.String()}
		if !even {
			row = append(row, fmt.Sprintf("%d of %d slots (%.3g%%)", ep.Slots, s.Slots, 100*float64(ep.Slots)/float64(s.Slots)))
		}
		if names != nil {
			row = append(row, cmp.Or(names[ep.Addr.Addr()], "(no pod known)"))
		}
		if ep.Hairpin {
			row = append(row, "masqueraded when it reaches itself")
		}
		rows = append(rows, row)
	}
	b.WriteString(columns(rows))
	if there < s.Slots {
		fmt.Fprintf(&b, "      %d of %d slots are missing: somebody took them away\n", s.Slots-there, s.Slots)
	}
	return b.String()
}

// Table says in one line each what frontends meet.
func Table(all []Explanation) string {
	rows := [][]string{{"ADDRESS", "KIND", "ENDPOINTS", "PICKED", "SOURCES"}}
	for _, e := range all {
		rows = append(rows, []string{e.Title(), e.Kind, e.endpointsInShort(), e.pickedInShort(), e.sourcesInShort()})
	}
	return columns(rows)
}

// columns sets rows under each other.
func columns(rows [][]string) string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		_, _ = w.Write([]byte(strings.Join(row, "\t") + "\n")) // a strings.Builder takes everything
	}
	_ = w.Flush()
	return b.String()
}

// endpointsInShort says how many there are, for whom that differs.
func (e Explanation) endpointsInShort() string {
	var out []string
	for _, p := range e.Paths {
		text := ""
		switch p.Fate {
		case Translated:
			i := slices.IndexFunc(e.Sets, func(s EndpointSet) bool { return s.ID == p.ID })
			if text = fmt.Sprint(len(e.Sets[i].Endpoints)); e.Sets[i].Local() {
				text += " on this node"
			}
		case Refused:
			text = "none, refused"
		case Dropped:
			if p.Why != whyNoneHere {
				continue
			}
			text = "none on this node, dropped"
		default:
			text = "untouched"
		}
		if !slices.Contains(out, text) {
			out = append(out, text)
		}
	}
	return strings.Join(out, "; ")
}

func (e Explanation) pickedInShort() string {
	for _, p := range e.Paths {
		if p.Fate != Translated {
			continue
		}
		if p.Class.Affinity > 0 {
			return howPicked(p.Class) + ", affinity " + period(p.Class.Affinity)
		}
		return howPicked(p.Class)
	}
	return "-"
}

func (e Explanation) sourcesInShort() string {
	for _, p := range e.Paths {
		switch {
		case p.Fenced && len(p.Ranges) == 0:
			return "none"
		case p.Fenced:
			return join(p.Ranges)
		}
	}
	return "all"
}

func join(ranges []netip.Prefix) string {
	out := make([]string, 0, len(ranges))
	for _, r := range ranges {
		out = append(out, r.String())
	}
	return strings.Join(out, ", ")
}

func many(n uint64, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
