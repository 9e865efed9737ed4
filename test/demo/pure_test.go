package main

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"fairlead.dev/fairlead/test/netlab"
)

var (
	kept = netip.MustParseAddr("10.244.1.4")
	masq = netip.MustParseAddr("172.18.0.11")
)

func answers(source netip.Addr, pods map[string]int) tally {
	t := newTally()
	for pod, n := range pods {
		t.pods[pod] = n
		t.sources[source] += n
	}
	return t
}

func TestJudge(t *testing.T) {
	sources := []source{{kept, "shell"}}
	for name, c := range map[string]struct {
		tally tally
		want  string
	}{
		"all pods and the right source": {answers(kept, map[string]int{"echo-1": 3, "echo-2": 1}), ""},
		"a pod was never reached":       {answers(kept, map[string]int{"echo-1": 4}), "echo-2 is ready and was never reached"},
		"somebody else was reached": {answers(kept, map[string]int{"echo-1": 3, "echo-2": 1, "shell": 2}),
			"shell is no ready endpoint and has got 2 requests"},
		"another source": {answers(masq, map[string]int{"echo-1": 3, "echo-2": 1}),
			"the pods saw the source 172.18.0.11, not 10.244.1.4 (shell)"},
	} {
		t.Run(name, func(t *testing.T) {
			got := ""
			if err := judge(c.tally, []string{"echo-1", "echo-2"}, sources); err != nil {
				got = err.Error()
			}
			if got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func TestASpreadNamesSourcesThatWereSeen(t *testing.T) {
	r := route{sources: []source{{masq, "node1"}, {netip.MustParseAddr("172.18.0.12"), "node2"}}}
	if got, want := seen(r, answers(masq, map[string]int{"echo-1": 1})), "node1 (masqueraded)"; got != want {
		t.Errorf("seen is %q, want %q", got, want)
	}
	both := sum(answers(masq, map[string]int{"echo-1": 9}), answers(r.sources[1].addr, map[string]int{"echo-1": 2, "echo-3": 1}))
	if got, want := seen(r, both), "node1, node2 (masqueraded)"; got != want {
		t.Errorf("seen is %q, want %q", got, want)
	}
	if got, want := spread(both, []string{"echo-1", "echo-2", "echo-3"}), "11 +  0 +  1"; got != want {
		t.Errorf("spread is %q, want %q", got, want)
	}
	if both.count() != 12 {
		t.Errorf("count is %d, want 12", both.count())
	}
}

func TestTable(t *testing.T) {
	got := table([][]string{{"from", "to", "answers"}, {"shell", "10.96.0.1:80", "3"}, {"shell", "x", "4"}, {"client", "", "5"}})
	want := "from    to            answers\n" +
		"shell   10.96.0.1:80  3\n" +
		"        x             4\n" +
		"client                5\n"
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// at makes an event so many milliseconds after nothing.
func at(ms int, k kind, pod, place string) event {
	return event{at: time.Unix(0, 0).Add(time.Duration(ms) * time.Millisecond), kind: k, pod: pod, place: place}
}

func TestATimelineEndsWithTheLastSliceAndRules(t *testing.T) {
	nodes := []string{"node1", "node2"}
	events := []event{
		at(100, probed, "echo-2", ""), at(101, sliced, "echo-1", "x"), at(102, written, "echo-2", ""),
		at(104, sliced, "echo-2", "a"), at(105, committed, "echo-2", "node1"), at(106, sliced, "echo-2", "b"),
		at(109, committed, "echo-2", "node1"), at(110, committed, "echo-2", "node2"), at(130, committed, "echo-3", "node1"),
	}
	got, err := measure(events, "echo-2", 2, nodes)
	if err != nil {
		t.Fatal(err)
	}
	if text, want := got.describe(nodes), "probe -> status 2 ms -> slices 6 ms -> rules on node1 9 ms, node2 10 ms"; text != want {
		t.Errorf("got %q, want %q", text, want)
	}
	for want, few := range map[string][]event{
		"no probe of echo-2 has found a change":             events[1:],
		"the condition of echo-2 is not written":            events[:2],
		"echo-2 has changed in 1 of 2 slices":               events[:5],
		"echo-2 has changed in the kernels of 1 of 2 nodes": events[:7],
	} {
		if _, err := measure(few, "echo-2", 2, nodes); err == nil || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}

func TestRepairedIsFromTheFirstDeletionToTheLastReturn(t *testing.T) {
	events := []event{
		at(1, made, "", "node1"), at(5, unmade, "", "node2"), at(10, unmade, "", "node1"), at(10, unmade, "", "node1"),
		at(30, made, "", "node1"), at(31, made, "", "node2"), at(32, made, "", "node1"),
	}
	if got, err := repaired(events, "node1", 2); err != nil || got != 22*time.Millisecond {
		t.Errorf("got %s, %v, want 22ms", got, err)
	}
	if _, err := repaired(events[:6], "node1", 2); err == nil || err.Error() != "1 of 2 tables are back" {
		t.Errorf("half a repair gives %v", err)
	}
	if _, err := repaired(events[:1], "node1", 2); err == nil {
		t.Error("tables that nobody deleted are repaired")
	}
}

func TestPrefixesHoldARangeAndNothingElse(t *testing.T) {
	for _, c := range []struct{ from, to, want string }{
		{"172.18.0.200", "172.18.0.220", "172.18.0.200/29 172.18.0.208/29 172.18.0.216/30 172.18.0.220/32"},
		{"172.18.0.7", "172.18.0.7", "172.18.0.7/32"},
		{"0.0.0.0", "255.255.255.255", "0.0.0.0/0"},
		{"255.255.255.254", "255.255.255.255", "255.255.255.254/31"},
		{"fd00:172:18:0:1::", "fd00:172:18:0:1::ffff", "fd00:172:18:0:1::/112"},
		{"fd00::1", "fd00::4", "fd00::1/128 fd00::2/127 fd00::4/128"},
	} {
		var got []string
		for _, p := range prefixes(netip.MustParseAddr(c.from), netip.MustParseAddr(c.to)) {
			got = append(got, p.String())
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("%s-%s gives %v, want %s", c.from, c.to, got, c.want)
		}
	}
}

func TestParseRules(t *testing.T) {
	r, err := parseRules([]byte(`{"nftables": [{"metainfo": {"version": "1.0.6"}},
		{"table": {"family": "ip", "name": "fairlead", "handle": 1}},
		{"map": {"family": "ip", "name": "a", "table": "fairlead", "type": ["ipv4_addr", "inet_proto", "inet_service"], "elem": [
			[{"concat": ["10.96.0.1", 6, 443]}, "1:1"], [{"concat": ["10.96.0.1", "udp", 53]}, "1:2"]]}},
		{"map": {"family": "ip6", "name": "b", "table": "fairlead", "elem": [[{"concat": ["1:1", 0]}, {"concat": ["fd00::2", 8080]}]]}},
		{"set": {"family": "ip6", "name": "c", "table": "fairlead", "elem": ["fd00::9"]}},
		{"set": {"family": "ip", "name": "c", "table": "others", "elem": ["192.0.2.1"]}},
		{"rule": {"family": "ip", "table": "fairlead", "expr": [{"drop": null}]}}]}`))
	if err != nil {
		t.Fatal(err)
	}
	api := netip.MustParseAddr("10.96.0.1")
	if diff := cmp.Diff(map[string]bool{frontend{api, "tcp", 443}.String(): true, frontend{api, "udp", 53}.String(): true}, names(r.frontends)); diff != "" {
		t.Errorf("frontends (-want +got):\n%s", diff)
	}
	if !r.words["fd00::2"] || !r.words["fd00::9"] || r.words["192.0.2.1"] {
		t.Errorf("words are %v", r.words)
	}
	if err := difference(r.frontends, map[frontend]bool{}); err == nil {
		t.Error("missing rules are no difference")
	}
	if err := difference(map[frontend]bool{}, r.frontends); err == nil {
		t.Error("rules of no Service are no difference")
	}
}

func TestATransactionIsAboutThePodsWhoseAddressesAreInIt(t *testing.T) {
	message := func(kind uint16, data ...byte) netlink.Message {
		header := netlink.Header{Type: netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | kind)}
		return netlink.Message{Header: header, Data: append(make([]byte, nfgenmsgLen), data...)}
	}
	table := func(name string) []byte {
		data, err := netlink.MarshalAttributes([]netlink.Attribute{{Type: unix.NFTA_TABLE_NAME, Data: []byte(name + "\x00")}})
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	echo1 := &pod{Host: &netlab.Host{Name: "echo-1", IPv4: netip.MustParseAddr("10.244.1.2"), IPv6: netip.MustParseAddr("fd00::2")}}
	echo2 := &pod{Host: &netlab.Host{Name: "echo-2", IPv4: netip.MustParseAddr("10.244.1.3"), IPv6: netip.MustParseAddr("fd00::3")}}
	tx := transaction{node: "node1", pods: []*pod{echo1, echo2}}
	for _, m := range []netlink.Message{
		message(unix.NFT_MSG_DELSETELEM, echo2.IPv4.AsSlice()...), message(unix.NFT_MSG_NEWSETELEM, echo2.IPv6.AsSlice()...),
		message(unix.NFT_MSG_NEWRULE, echo1.IPv4.AsSlice()...), message(unix.NFT_MSG_DELTABLE, table("fairlead")...),
		message(unix.NFT_MSG_NEWTABLE, table("filter")...), message(unix.NFT_MSG_NEWTABLE, table("fairlead")...),
		message(unix.NFT_MSG_NEWGEN), {},
	} {
		tx.take(m)
	}
	want := []event{
		{kind: committed, pod: "echo-2", place: "node1"}, {kind: unmade, place: "node1"}, {kind: made, place: "node1"},
	}
	if !slices.Equal(tx.events, want) {
		t.Errorf("events are %v, want %v", tx.events, want)
	}
}

func names(frontends map[frontend]bool) map[string]bool {
	out := map[string]bool{}
	for f := range frontends {
		out[f.String()] = true
	}
	return out
}

func slice(service string, ready map[string]bool) discoveryv1.EndpointSlice {
	s := discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Labels: map[string]string{discoveryv1.LabelServiceName: service}},
		AddressType: discoveryv1.AddressTypeIPv4,
	}
	for pod, is := range ready {
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{
			TargetRef:  &corev1.ObjectReference{Kind: "Pod", Name: pod},
			Conditions: discoveryv1.EndpointConditions{Ready: &is},
		})
	}
	return s
}

func TestSlicesHaveSettledWithExactlyTheReadyPods(t *testing.T) {
	service := corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "echo"},
		Spec:       corev1.ServiceSpec{Selector: map[string]string{"app": "echo"}, IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol}},
	}
	external := corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "external"}}
	for want, list := range map[bool][]discoveryv1.EndpointSlice{
		true:  {slice("echo", map[string]bool{"echo-1": true, "echo-2": false}), slice("echo", map[string]bool{"echo-3": true})},
		false: {slice("echo", map[string]bool{"echo-1": true}), slice("other", map[string]bool{"echo-3": true})},
	} {
		err := settled([]corev1.Service{service, external}, list, []string{"echo-1", "echo-3"})
		if (err == nil) != want {
			t.Errorf("settled gives %v, want %t", err, want)
		}
	}
	got := changed(map[string]bool{"echo-1": true, "echo-2": true, "echo-4": false}, map[string]bool{"echo-2": true, "echo-3": true})
	if !slices.Equal(got, []string{"echo-1", "echo-3"}) {
		t.Errorf("changed gives %v", got)
	}
}

func TestTailIsWholeLines(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	if err := os.WriteFile(path, []byte("one\ntwo\nthree\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for n, want := range map[int]string{1: "three", 2: "two\nthree", 3: "one\ntwo\nthree", 9: "one\ntwo\nthree"} {
		if got := string(tail(path, n)); got != want {
			t.Errorf("the last %d lines are %q, want %q", n, got, want)
		}
	}
	if got := tail(path+"-missing", 1); got != nil {
		t.Errorf("no file has the lines %q", got)
	}
	if got := shorten(bytes.Repeat([]byte("x"), tailWidth+1)); len(got) != tailWidth+len(" ...") {
		t.Errorf("a long line has %d characters", len(got))
	}
	if got, want := oneLine("exit status 1\n  Error: no\n\n"), "exit status 1; Error: no"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestAMissingBinaryNamesWhatBuildsIt(t *testing.T) {
	_, err := findBinaries(options{assets: t.TempDir(), fairlead: "fairlead"})
	if err == nil || !strings.Contains(err.Error(), "etcd: no such file or directory; `make control-plane` builds it") {
		t.Errorf("got %v", err)
	}
	dir := t.TempDir()
	for _, name := range []string{"etcd", "kube-apiserver", "kubectl"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	_, err = findBinaries(options{assets: dir, fairlead: dir})
	if want := fmt.Sprintf("%s: permission denied; `make build` builds it", dir); err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	t.Setenv(assetsVar, dir)
	if got := defaultAssets(); got != dir {
		t.Errorf("-assets is %s, want %s", got, dir)
	}
	t.Setenv(assetsVar, t.TempDir())
	if got := defaultAssets(); got != ownAssets {
		t.Errorf("-assets is %s without binaries in $%s, want %s", got, assetsVar, ownAssets)
	}
}
