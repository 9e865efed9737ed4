package config

import (
	"context"
	"errors"
	goflag "flag"
	"fmt"
	"net/url"
	"os"
	"time"

	"github.com/go-logr/logr"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"go.uber.org/zap/zapcore"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/log/zap"
)

// reachInterval is the wait between two tries to reach the API server: short, because
// a control plane that boots with us is up within seconds, and one GET costs nothing.
const reachInterval = time.Second

// Flags are the flags that every long-running subcommand has. Everything else is a
// field of the configuration file.
type Flags struct {
	// Config is the path of the configuration file, empty for the defaults.
	Config string
	// Kubeconfig is the path of a kubeconfig; empty means $KUBECONFIG, the
	// pod's service account, ~/.kube/config, in that order.
	Kubeconfig string

	zap zap.Options
}

// Bind adds the flags to cmd.
func (f *Flags) Bind(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.Config, "config", "", "path of the configuration file (default: built-in defaults)")
	f.BindKubeconfig(cmd)
	f.zap.TimeEncoder = zapcore.RFC3339NanoTimeEncoder
	f.zap.StacktraceLevel = zapcore.PanicLevel // an error is one line; --zap-stacktrace-level asks for more
	logger := goflag.NewFlagSet("logger", goflag.ContinueOnError)
	f.zap.BindFlags(logger)
	logger.VisitAll(func(g *goflag.Flag) { flags.AddFlag(pflag.PFlagFromGoFlag(g)) })
}

// BindKubeconfig adds the one flag of subcommands that only ask.
func (f *Flags) BindKubeconfig(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.Kubeconfig, "kubeconfig", "", "path of a kubeconfig (default: $KUBECONFIG, the pod's service account, ~/.kube/config)")
}

// Logger returns the logger that the flags ask for, and makes it the one of
// controller-runtime and client-go too.
func (f *Flags) Logger() logr.Logger {
	logger := zap.New(zap.UseFlagOptions(&f.zap))
	log.SetLogger(logger)
	klog.SetLogger(logger.WithName("client-go"))
	return logger
}

// REST returns the client configuration. There is no client-side rate limit: the
// API server's own priority and fairness (KEP-1040) is what limits us.
func (f *Flags) REST() (*rest.Config, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = f.Kubeconfig
	cfg, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{}).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("loading kubeconfig (--kubeconfig %q): %w", f.Kubeconfig, err)
	}
	cfg.QPS = -1
	return rest.AddUserAgent(cfg, "fairlead"), nil
}

// Namespace returns the namespace this process runs in, kube-system outside of a cluster.
func Namespace() string {
	if ns := os.Getenv("POD_NAMESPACE"); ns != "" {
		return ns
	}
	if raw, err := os.ReadFile("/var/run/secrets/kubernetes.io/serviceaccount/namespace"); err == nil && len(raw) > 0 {
		return string(raw)
	}
	return "kube-system"
}

// WaitForAPIServer returns when the API server answers, or with ctx's error. It says
// once what is wrong, and again only when the reason changes.
func WaitForAPIServer(ctx context.Context, cfg *rest.Config, logger logr.Logger) error {
	client, err := discovery.NewDiscoveryClientForConfig(cfg)
	if err != nil {
		return fmt.Errorf("building a client for %s: %w", cfg.Host, err)
	}
	last := ""
	return wait.PollUntilContextCancel(ctx, reachInterval, true, func(ctx context.Context) (bool, error) {
		if _, err = client.RESTClient().Get().AbsPath("/version").Timeout(5 * time.Second).DoRaw(ctx); err == nil {
			if last != "" {
				logger.Info("API server reachable again", "server", cfg.Host)
			}
			return true, nil
		}
		if reason := RootCause(err); reason != last {
			last = reason
			message := "API server unreachable, will keep trying"
			if apierrors.IsUnauthorized(err) || apierrors.IsForbidden(err) {
				message = "API server refuses our credentials, will keep trying"
			}
			logger.Info(message, "server", cfg.Host, "reason", reason)
		}
		return false, nil
	})
}

// RootCause returns err in words, but for the URL that was asked, which differs from try
// to try.
func RootCause(err error) string {
	if urlErr, ok := errors.AsType[*url.Error](err); ok {
		return urlErr.Err.Error()
	}
	return err.Error()
}
