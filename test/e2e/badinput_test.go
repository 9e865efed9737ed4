package e2e_test

import (
	"context"
	"strings"
	"testing"

	"fairlead.dev/fairlead/test/cluster"
	"fairlead.dev/fairlead/test/netlab"
)

func timeout() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), cluster.Timeout)
}

// unreachable is the kubeconfig of an API server that nobody listens at.
func unreachable(t *testing.T) string {
	return cluster.Write(t, "kubeconfig", `apiVersion: v1
kind: Config
clusters: [{name: a, cluster: {server: "https://127.0.0.1:1"}}]
contexts: [{name: a, context: {cluster: a, user: a}}]
users: [{name: a, user: {}}]
current-context: a
`)
}

// TestBadInput: what a user gets wrong gives one line that names it, on exit.
func TestBadInput(t *testing.T) {
	lab, err := netlab.New()
	must(t, err)
	t.Cleanup(func() { must(t, lab.Close()) })
	host, err := lab.AddClient("host")
	must(t, err)
	c := &cluster.Cluster{Binary: cluster.Build(t)}
	bad := cluster.Write(t, "config.yaml", "apiVersion: config.fairlead.dev/v1alpha1\nkind: NodeConfiguration\nlocalTraffic: {clusterCIDRs: [10.0.0.0/33], x: 1}\n")
	taken, err := host.Listen(t.Context(), "tcp", "127.0.0.1:10249")
	must(t, err)
	t.Cleanup(func() { must(t, taken.Close()) })

	for name, tc := range map[string]struct {
		args []string
		want []string
	}{
		"no kubeconfig":           {[]string{"node", "--kubeconfig", "/nowhere"}, []string{"--kubeconfig", "/nowhere"}},
		"no configuration file":   {[]string{"controller", "--config", "/nowhere.yaml"}, []string{"/nowhere.yaml", "no such file"}},
		"malformed configuration": {[]string{"node", "--config", bad}, []string{"localTraffic.clusterCIDRs[0]", "10.0.0.0/33", `unknown field "localTraffic.x"`}},
		"the other's file":        {[]string{"controller", "--config", bad}, []string{`kind: Unsupported value: "NodeConfiguration"`}},
		"an unknown flag":         {[]string{"node", "--nod-name", "a"}, []string{"--nod-name"}},
		"an unknown subcommand":   {[]string{"nodes"}, []string{`"nodes"`}},
		"a port that is taken":    {[]string{"node", "--kubeconfig", unreachable(t)}, []string{"metrics.bindAddress", "127.0.0.1:10249", "address already in use"}},
	} {
		t.Run(name, func(t *testing.T) {
			p := c.Start(t, host, tc.args...)
			if code := p.Wait(); code != 1 {
				t.Errorf("exit code %d, want 1", code)
			}
			out := strings.TrimSpace(p.Output.String())
			for _, want := range tc.want {
				if !strings.Contains(out, want) {
					t.Errorf("no %q in %q", want, out)
				}
			}
			if strings.Contains(out, "\n") {
				t.Errorf("more than one line:\n%s", out)
			}
		})
	}

	t.Run("no right to write rules", func(t *testing.T) {
		ctx, cancel := timeout()
		defer cancel()
		out, err := host.Output(ctx, "setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", c.Binary,
			"node", "--kubeconfig", unreachable(t))
		if err == nil || !strings.Contains(string(out)+err.Error(), "CAP_NET_ADMIN is missing") {
			t.Errorf("%v: %s", err, out)
		}
	})

	t.Run("an API server that cannot be reached", func(t *testing.T) {
		p := c.Start(t, host, "controller", "--kubeconfig", unreachable(t))
		p.Says("API server unreachable, will keep trying")
		p.Says("127.0.0.1:1")
		p.Says("connection refused")
		// A probe must not have it killed for that, nor send it to work.
		for path, want := range map[string]string{"healthz": "200", "readyz": "500"} {
			ctx, cancel := timeout()
			defer cancel()
			out, err := host.Output(ctx, "curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "http://127.0.0.1:8081/"+path)
			if err != nil || string(out) != want {
				t.Errorf("/%s: %v, status %s, want %s", path, err, out, want)
			}
		}
	})
}
