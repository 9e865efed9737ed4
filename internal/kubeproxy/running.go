// Package kubeproxy knows what there is of kube-proxy on a node: whether one runs, and
// what one that no longer runs has left behind. What it knows is that of kube-proxy 1.36
// in all its modes (pkg/proxy there).
package kubeproxy

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

const (
	// askTimeout bounds the question to a server on this very machine.
	askTimeout = time.Second

	program = "kube-proxy"
)

// modeURLs are where kube-proxy says which mode it runs in: its metrics address, by
// default and in a cluster of IPv6 alone.
var modeURLs = []string{"http://127.0.0.1:10249/proxyMode", "http://[::1]:10249/proxyMode"}

// modes are the answers, which tell kube-proxy from others on that port.
var modes = []string{"iptables", "ipvs", "nftables"}

// Running returns in words how a live kube-proxy in the network namespace of the calling
// thread was found, empty where none was. Whoever answers like kube-proxy is taken for
// one. Processes are seen as far as /proc shows them, so not from within a container
// with process ids of its own.
func Running(ctx context.Context) (string, error) {
	ns, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		return "", fmt.Errorf("looking for a live kube-proxy: %w", err)
	}
	pids, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return "", fmt.Errorf("looking for a live kube-proxy: %w", err)
	}
	for _, dir := range pids {
		if isKubeProxy(dir) && inNamespace(dir, ns) {
			return "process " + filepath.Base(dir), nil
		}
	}
	for _, url := range modeURLs {
		if mode := ask(ctx, url); slices.Contains(modes, mode) {
			return fmt.Sprintf("%s answers %q", url, mode), nil
		}
	}
	return "", nil
}

// isKubeProxy looks at a process by its directory in /proc. One that ends meanwhile is
// none.
func isKubeProxy(dir string) bool {
	if comm, err := os.ReadFile(filepath.Join(dir, "comm")); err == nil && strings.TrimSpace(string(comm)) == program {
		return true
	}
	exe, err := os.Readlink(filepath.Join(dir, "exe"))
	return err == nil && filepath.Base(strings.TrimSuffix(exe, " (deleted)")) == program
}

// inNamespace says whether a process is known to be in the network namespace.
func inNamespace(dir, ns string) bool {
	its, err := os.Readlink(filepath.Join(dir, "ns", "net"))
	return err == nil && its == ns
}

// ask returns the answer to a GET, empty where there is none.
func ask(ctx context.Context, url string) string {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return ""
	}
	// Not the default one, which goes by $HTTP_PROXY and keeps the connection.
	transport := &http.Transport{DisableKeepAlives: true}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return ""
	}
	defer func() { _ = resp.Body.Close() }() // nothing was written that could be lost
	body, err := io.ReadAll(io.LimitReader(resp.Body, 64))
	if err != nil || resp.StatusCode != http.StatusOK {
		return ""
	}
	return strings.TrimSpace(string(body))
}
