package node

import (
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr/funcr"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"pgregory.net/rapid"

	"fairlead.dev/fairlead/api/config/v1alpha1"
)

func wholeSeconds(n int) metav1.Duration {
	return metav1.Duration{Duration: time.Duration(n) * time.Second}
}

func TestWantConntrack(t *testing.T) {
	for name, tc := range map[string]struct {
		cfg   v1alpha1.Conntrack
		cores int
		want  []setting
	}{
		"nothing": {cores: 4},
		"by processors": {cfg: v1alpha1.Conntrack{MaxPerCore: 32768, Min: 131072}, cores: 8,
			want: []setting{{conntrackMax, 262144}, {conntrackBuckets, 65536}}},
		"at least Min": {cfg: v1alpha1.Conntrack{MaxPerCore: 32768, Min: 131072}, cores: 2,
			want: []setting{{conntrackMax, 131072}, {conntrackBuckets, 32768}}},
		"at most a million by processors": {cfg: v1alpha1.Conntrack{MaxPerCore: math.MaxInt32}, cores: 256,
			want: []setting{{conntrackMax, 1048576}, {conntrackBuckets, 262144}}},
		"Min goes beyond that": {cfg: v1alpha1.Conntrack{MaxPerCore: 32768, Min: 2000000}, cores: 2,
			want: []setting{{conntrackMax, 2000000}, {conntrackBuckets, 500000}}},
		"Min alone": {cfg: v1alpha1.Conntrack{Min: 131072}, cores: 64,
			want: []setting{{conntrackMax, 131072}, {conntrackBuckets, 32768}}},
		"timeouts and liberality": {
			cfg: v1alpha1.Conntrack{TCPEstablishedTimeout: wholeSeconds(86400), TCPCloseWaitTimeout: wholeSeconds(3600), TCPBeLiberal: true,
				UDPTimeout: wholeSeconds(60), UDPStreamTimeout: wholeSeconds(300)},
			want: []setting{{conntrackEstablished, 86400}, {conntrackCloseWait, 3600}, {conntrackBeLiberal, 1},
				{conntrackUDP, 60}, {conntrackUDPStream, 300}}},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, wantConntrack(tc.cfg, tc.cores), cmp.AllowUnexported(setting{})); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// TestRaise: whatever is wanted and there, nothing is lowered, what is written is what
// was wanted, and afterwards nothing is left to write.
func TestRaise(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		have := rapid.MapOf(rapid.StringN(1, 2, 2), rapid.IntRange(0, 5)).Draw(t, "have")
		var want []setting
		for name, value := range rapid.MapOf(rapid.StringN(1, 2, 2), rapid.IntRange(0, 5)).Draw(t, "want") {
			want = append(want, setting{name, value})
		}
		for _, w := range raise(want, have) {
			now, ok := have[w.name]
			if !ok || w.value <= now || !slices.Contains(want, w) {
				t.Fatalf("%v written over %d (there: %t), wanted %v", w, now, ok, want)
			}
			have[w.name] = w.value
		}
		if again := raise(want, have); len(again) != 0 {
			t.Fatalf("and again %v", again)
		}
		for _, w := range want {
			if now, ok := have[w.name]; ok && now < w.value {
				t.Fatalf("%s stayed %d below %d", w.name, now, w.value)
			}
		}
	})
}

// TestTuneConntrack writes the settings of this test's own network namespace. Those of
// the whole machine cannot be set from there, which is said and no reason to stop.
func TestTuneConntrack(t *testing.T) {
	const dir = "/proc/sys/net/netfilter"
	value := func(name string) int {
		n, err := readSetting(filepath.Join(dir, name))
		must(t, err)
		return n
	}
	for _, name := range []string{conntrackCloseWait, conntrackBeLiberal, conntrackUDP} { // for the next run
		was := value(name)
		t.Cleanup(func() { must(t, writeSetting(filepath.Join(dir, name), was)) })
	}
	must(t, writeSetting(filepath.Join(dir, conntrackUDP), 77))
	limit, established := value(conntrackMax), value(conntrackEstablished)
	var log strings.Builder
	logger := funcr.New(func(_, args string) { log.WriteString(args + "\n") }, funcr.Options{})
	tuneConntrack(v1alpha1.Conntrack{
		Min: int32(limit + 1), TCPEstablishedTimeout: wholeSeconds(established - 1), TCPCloseWaitTimeout: wholeSeconds(3600), TCPBeLiberal: true,
		UDPTimeout: wholeSeconds(78), UDPStreamTimeout: wholeSeconds(value(conntrackUDPStream)),
	}, dir, 1, logger)
	for name, want := range map[string]int{
		conntrackMax: limit, conntrackEstablished: established, conntrackCloseWait: 3600, conntrackBeLiberal: 1, conntrackUDP: 78,
	} {
		if got := value(name); got != want {
			t.Errorf("%s is %d, want %d", name, got, want)
		}
	}
	for _, want := range []string{
		"nf_conntrack_tcp_timeout_close_wait 60 -> 3600, nf_conntrack_tcp_be_liberal 0 -> 1, nf_conntrack_udp_timeout 77 -> 78",
		"nf_conntrack_max stays " + strconv.Itoa(limit) + ", not " + strconv.Itoa(limit+1) + ": it exists once per machine",
	} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("no %q in\n%s", want, log.String())
		}
	}
	if lines := strings.Count(log.String(), "\n"); lines != 2 {
		t.Errorf("%d lines, want one for what was raised and one for what was not:\n%s", lines, log.String())
	}
}

// TestTuneConntrackMissing: a kernel that does not track connections yet.
func TestTuneConntrackMissing(t *testing.T) {
	dir := t.TempDir()
	logger := funcr.New(func(_, args string) { t.Errorf("said %s", args) }, funcr.Options{})
	cfg := v1alpha1.Conntrack{Min: 131072}
	tuneConntrack(cfg, dir, 1, logger)
	must(t, os.WriteFile(filepath.Join(dir, conntrackMax), []byte("262144\n"), 0o600))
	must(t, os.WriteFile(filepath.Join(dir, conntrackBuckets), []byte("65536\n"), 0o600))
	tuneConntrack(cfg, dir, 1, logger) // as wanted already
}

// TestTuneConntrackReadOnly: in a container without the node's own settings.
func TestTuneConntrackReadOnly(t *testing.T) {
	dir := t.TempDir()
	must(t, unix.Mount("tmpfs", dir, "tmpfs", 0, ""))
	t.Cleanup(func() { must(t, unix.Unmount(dir, 0)) })
	must(t, os.WriteFile(filepath.Join(dir, conntrackUDP), []byte("30\n"), 0o600))
	must(t, unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	var log strings.Builder
	tuneConntrack(v1alpha1.Conntrack{UDPTimeout: wholeSeconds(60)}, dir, 1,
		funcr.New(func(_, args string) { log.WriteString(args) }, funcr.Options{}))
	if want := "nf_conntrack_udp_timeout stays 30, not 60: /proc/sys is read-only here"; !strings.Contains(log.String(), want) {
		t.Errorf("no %q in %s", want, log.String())
	}
}
