package kubeproxy_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"fairlead.dev/fairlead/test/netlab"
)

// testTimeout bounds every wait.
const testTimeout = 10 * time.Second

func TestMain(m *testing.M) {
	switch filepath.Base(os.Args[0]) {
	case "kube-proxy":
		playKubeProxy()
	case "k3s":
		playK3s(os.Args[1])
	default:
		netlab.Main(m)
	}
}

// newHost returns a host in a lab of its own.
func newHost(t *testing.T) *netlab.Host {
	t.Helper()
	lab, err := netlab.New()
	must(t, err)
	t.Cleanup(func() { must(t, lab.Close()) })
	host, err := lab.AddClient("host")
	must(t, err)
	return host
}

// on runs a shell script on a host and returns what it says.
func on(t *testing.T, host *netlab.Host, script string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	out, err := host.Output(ctx, "sh", "-ec", script)
	must(t, err)
	return string(out)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
