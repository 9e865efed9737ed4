package node

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/go-logr/logr"

	"fairlead.dev/fairlead/api/config/v1alpha1"
)

const (
	// maxConntrack bounds what the processors ask for, as in kube-proxy
	// (pkg/proxy/conntrack/sysctls.go): it costs some 300 bytes of kernel memory each.
	maxConntrack = 1 << 20

	// perBucket is how many connections there are to a bucket of the kernel's hash
	// table, as in kube-proxy.
	perBucket = 4
)

// The settings in the order they are made, as files of /proc/sys/net/netfilter
// (nf_conntrack-sysctl.rst). The first two exist once per machine.
const (
	conntrackMax         = "nf_conntrack_max"
	conntrackBuckets     = "nf_conntrack_buckets"
	conntrackEstablished = "nf_conntrack_tcp_timeout_established" // s
	conntrackCloseWait   = "nf_conntrack_tcp_timeout_close_wait"  // s
	conntrackBeLiberal   = "nf_conntrack_tcp_be_liberal"          // 0 or 1
	conntrackUDP         = "nf_conntrack_udp_timeout"             // s
	conntrackUDPStream   = "nf_conntrack_udp_timeout_stream"      // s
)

// sysctlDirs is where the settings are found: the first that can be read counts. In a
// container /proc/sys is read-only, and the node's is mounted in the other place.
var sysctlDirs = []string{"/host/proc/sys/net/netfilter", "/proc/sys/net/netfilter"}

// setting is a number that a setting has or should have.
type setting struct {
	name  string
	value int
}

// wantConntrack returns what cfg asks for on a machine with so many processors.
func wantConntrack(cfg v1alpha1.Conntrack, cores int) []setting {
	var want []setting
	add := func(name string, value int) {
		if value > 0 {
			want = append(want, setting{name, value})
		}
	}
	limit := max(min(int(cfg.MaxPerCore)*cores, maxConntrack), int(cfg.Min))
	add(conntrackMax, limit)
	add(conntrackBuckets, limit/perBucket)
	add(conntrackEstablished, int(cfg.TCPEstablishedTimeout.Duration/time.Second))
	add(conntrackCloseWait, int(cfg.TCPCloseWaitTimeout.Duration/time.Second))
	if cfg.TCPBeLiberal {
		add(conntrackBeLiberal, 1)
	}
	add(conntrackUDP, int(cfg.UDPTimeout.Duration/time.Second))
	add(conntrackUDPStream, int(cfg.UDPStreamTimeout.Duration/time.Second))
	return want
}

// raise returns those of want that are above what the kernel has; what is not in have
// cannot be told and is left out. Nothing is ever lowered: somebody wanted it.
func raise(want []setting, have map[string]int) []setting {
	var writes []setting
	for _, s := range want {
		if now, ok := have[s.name]; ok && s.value > now {
			writes = append(writes, s)
		}
	}
	return writes
}

// tuneConntrack raises the settings of the calling thread's network namespace to what
// cfg asks for, in dir. It says what it raised and what it could not, in a line each.
// What is missing is left out: all are until connection tracking is first used, which
// the first rules do.
func tuneConntrack(cfg v1alpha1.Conntrack, dir string, cores int, logger logr.Logger) {
	want := wantConntrack(cfg, cores)
	have := map[string]int{}
	var raised, failed []string
	for _, s := range want {
		value, err := readSetting(filepath.Join(dir, s.name))
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			failed = append(failed, err.Error())
		default:
			have[s.name] = value
		}
	}
	for _, s := range raise(want, have) {
		if err := writeSetting(filepath.Join(dir, s.name), s.value); err != nil {
			failed = append(failed, fmt.Sprintf("%s stays %d, not %d: %v", s.name, have[s.name], s.value, err))
			continue
		}
		raised = append(raised, fmt.Sprintf("%s %d -> %d", s.name, have[s.name], s.value))
	}
	if len(raised) > 0 {
		logger.Info("Raised settings of connection tracking", "settings", strings.Join(raised, ", "))
	}
	if len(failed) > 0 {
		logger.Info("Some settings of connection tracking stay as they are", "reasons", strings.Join(failed, "; "))
	}
}

func readSetting(path string) (int, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	value, err := strconv.Atoi(strings.TrimSpace(string(raw)))
	if err != nil {
		return 0, fmt.Errorf("reading %s: %w", path, err)
	}
	return value, nil
}

// writeSetting writes a setting. Its error says what stands in the way.
func writeSetting(path string, value int) error {
	file, err := os.OpenFile(path, os.O_WRONLY, 0) // never made: it is the kernel's
	if err != nil {
		return whyNot(path, err)
	}
	_, err = file.WriteString(strconv.Itoa(value))
	if err := errors.Join(err, file.Close()); err != nil {
		return whyNot(path, err)
	}
	return nil
}

func whyNot(path string, err error) error {
	if errors.Is(err, syscall.EROFS) {
		return errors.New("/proc/sys is read-only here (mount the node's /proc/sys/net at /host/proc/sys/net)")
	}
	info, statErr := os.Stat(path)
	if errors.Is(err, fs.ErrPermission) && statErr == nil && info.Mode().Perm()&0o222 == 0 {
		return errors.New("it exists once per machine and is read-only outside of the machine's own network namespace")
	}
	return err
}

// sysctlDir returns the directory of the settings.
func sysctlDir() string {
	for _, dir := range sysctlDirs {
		if _, err := os.Stat(filepath.Dir(dir)); err == nil {
			return dir
		}
	}
	return sysctlDirs[len(sysctlDirs)-1]
}

// processors returns the machine's number of processors, whatever share of them this
// process may use (kubernetes#99225).
func processors() int {
	// Only those that are online have a topology.
	if cpus, err := filepath.Glob("/sys/devices/system/cpu/cpu[0-9]*/topology"); err == nil && len(cpus) > 0 {
		return len(cpus)
	}
	return runtime.NumCPU()
}
