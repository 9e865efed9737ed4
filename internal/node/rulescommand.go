package node

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/kubernetes"

	"fairlead.dev/fairlead/internal/config"
	"fairlead.dev/fairlead/internal/dataplane"
	"fairlead.dev/fairlead/internal/service"
)

// askTimeout bounds each question to the API server: somebody waits for the answer.
const askTimeout = 10 * time.Second

// rulesForms are what `fairlead node rules` understands.
const rulesForms = "want VIP:PORT[/TCP|UDP|SCTP] with IPv6 in brackets, [NAMESPACE/]NAME or service/[NAMESPACE/]NAME"

// rulesCommand returns the subcommand `node rules`.
func rulesCommand() *cobra.Command {
	var flags config.Flags
	var node string
	cmd := &cobra.Command{
		Use:   "rules [SERVICE|VIP:PORT]",
		Short: "Say what a packet to a Service meets on this node, as the kernel has it",
		Long: `Say which rules and endpoints a packet meets on this node, read from the kernel.

Without an argument it lists all addresses and ports that have rules. VIP:PORT[/PROTOCOL] explains one, with IPv6 in
brackets. [NAMESPACE/]NAME or service/NAME asks the API server for the Service, explains all its addresses, and says where
the kernel differs from the API.`,
		Example: `  fairlead node rules
  fairlead node rules 10.96.0.10:53/UDP
  fairlead node rules '[fd00:10:96::a]:53'
  fairlead node rules kube-system/kube-dns`,
		Args:          cobra.MaximumNArgs(1),
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			text, err := "", error(nil)
			if len(args) == 0 {
				text, err = allRules()
			} else {
				text, err = rulesOf(cmd.Context(), args[0], &flags, node)
			}
			if err != nil {
				return err
			}
			_, err = io.WriteString(cmd.OutOrStdout(), text)
			return err
		},
	}
	flags.BindKubeconfig(cmd)
	cmd.Flags().StringVar(&node, "node-name", "", "name of the Node this runs on (default: $NODE_NAME, else the host's name)")
	return cmd
}

func allRules() (string, error) {
	in, err := dataplane.Inspect()
	if err != nil {
		return "", err
	}
	return warnings(in) + dataplane.Table(in.All()), nil
}

func rulesOf(ctx context.Context, arg string, flags *config.Flags, node string) (string, error) {
	q, err := parseQuestion(arg)
	if err != nil {
		return "", err
	}
	if q.service != (types.NamespacedName{}) {
		return rulesOfService(ctx, q.service, flags, node)
	}
	in, err := dataplane.Inspect()
	if err != nil {
		return "", err
	}
	return warnings(in) + explain(in, q), nil
}

// explain answers for one protocol, or for all that have rules at the address.
func explain(in dataplane.Installed, q question) string {
	protocols := []service.Protocol{q.protocol}
	if found := in.Protocols(q.vip); q.protocol == 0 && len(found) > 0 {
		protocols = found
	}
	var out []string
	for _, p := range protocols {
		out = append(out, in.Explain(q.vip, p).Text(nil))
	}
	return strings.Join(out, "\n")
}

// warnings are about the whole.
func warnings(in dataplane.Installed) (text string) {
	if !in.Ours {
		text += "Warning: chains or rules are not as this fairlead makes them: another version runs on this node, " +
			"or somebody edited them. What follows is true of the rules that this one makes.\n"
	}
	if in.Moving {
		text += "Warning: the rules changed while they were read.\n"
	}
	return text
}

// question is what somebody asks for: an address, or a Service.
type question struct {
	vip      netip.AddrPort
	protocol service.Protocol // 0 for any
	service  types.NamespacedName
}

func parseQuestion(arg string) (question, error) {
	address, protocol, named := strings.Cut(arg, "/")
	if _, err := netip.ParseAddr(strings.Trim(address, "[]")); err == nil && !strings.Contains(address, "]:") {
		return question{}, fmt.Errorf("%q has no port: %s", arg, rulesForms)
	}
	if !strings.Contains(address, ":") {
		return parseServiceName(arg)
	}
	vip, err := netip.ParseAddrPort(address)
	switch {
	case err != nil:
		return question{}, fmt.Errorf("%q is no address with a port: %s", arg, rulesForms)
	case vip.Port() == 0:
		return question{}, fmt.Errorf("%q has port 0, which nobody can serve: %s", arg, rulesForms)
	case vip.Addr().Zone() != "":
		return question{}, fmt.Errorf("%q has a zone, which rules do not: %s", arg, rulesForms)
	}
	q := question{vip: netip.AddrPortFrom(vip.Addr().Unmap(), vip.Port())}
	if named {
		q.protocol = map[string]service.Protocol{"TCP": service.TCP, "UDP": service.UDP, "SCTP": service.SCTP}[strings.ToUpper(protocol)]
		if q.protocol == 0 {
			return question{}, fmt.Errorf("%q has the unknown protocol %q: %s", arg, protocol, rulesForms)
		}
	}
	return q, nil
}

func parseServiceName(arg string) (question, error) {
	parts := strings.Split(arg, "/")
	if len(parts) > 1 && (parts[0] == "service" || parts[0] == "svc") {
		parts = parts[1:]
	}
	if len(parts) == 1 {
		parts = []string{metav1.NamespaceDefault, parts[0]}
	}
	wrong := len(parts) != 2
	for _, part := range parts {
		wrong = wrong || len(validation.IsDNS1123Label(part)) > 0
	}
	if wrong {
		return question{}, fmt.Errorf("%q names no Service: %s", arg, rulesForms)
	}
	return question{service: types.NamespacedName{Namespace: parts[0], Name: parts[1]}}, nil
}

// inAPI is what the API server has of one Service, for one node.
type inAPI struct {
	service   *service.Service // nil where it has no rules
	pods      map[netip.Addr]string
	nodeAddrs []netip.Addr
}

func rulesOfService(ctx context.Context, name types.NamespacedName, flags *config.Flags, node string) (string, error) {
	restConfig, err := flags.REST()
	if err != nil {
		return "", err
	}
	if node, err = nodeName(node); err != nil {
		return "", err
	}
	restConfig.Timeout = askTimeout
	client, err := kubernetes.NewForConfig(restConfig)
	if err != nil {
		return "", fmt.Errorf("building a client for %s: %w", restConfig.Host, err)
	}
	// The API first: the kernel follows it within milliseconds.
	api, err := askAPI(ctx, client, name, node)
	if err != nil {
		return "", err
	}
	in, err := dataplane.Inspect()
	if err != nil {
		return "", err
	}
	return warnings(in) + compare(in, name, api), nil
}

func askAPI(ctx context.Context, client kubernetes.Interface, name types.NamespacedName, node string) (inAPI, error) {
	svc, err := client.CoreV1().Services(name.Namespace).Get(ctx, name.Name, metav1.GetOptions{})
	if err != nil {
		return inAPI{}, fmt.Errorf("reading Service %s from the API: %w", name, err)
	}
	selector := labels.Set{discoveryv1.LabelServiceName: name.Name}.String()
	endpointSlices, err := client.DiscoveryV1().EndpointSlices(name.Namespace).List(ctx, metav1.ListOptions{LabelSelector: selector})
	if err != nil {
		return inAPI{}, fmt.Errorf("listing the EndpointSlices of Service %s: %w", name, err)
	}
	nodeObject, err := client.CoreV1().Nodes().Get(ctx, node, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		nodeObject = &corev1.Node{} // the agent serves without one too
	} else if err != nil {
		return inAPI{}, fmt.Errorf("reading Node %s from the API (is --node-name right?): %w", node, err)
	}
	local, err := localAddrs()
	if err != nil {
		return inAPI{}, err
	}
	out := inAPI{pods: podNames(endpointSlices.Items), nodeAddrs: slices.Concat(local, internalIPs(nodeObject))}
	store := service.NewStore(node)
	store.SetZone(nodeObject.Labels[corev1.LabelTopologyZone])
	store.SetService(svc)
	for i := range endpointSlices.Items {
		store.SetSlice(&endpointSlices.Items[i])
	}
	out.service, _ = store.Snapshot().Services.Get(name)
	return out, nil
}

func podNames(endpointSlices []discoveryv1.EndpointSlice) map[netip.Addr]string {
	out := map[netip.Addr]string{}
	for _, s := range endpointSlices {
		for _, e := range s.Endpoints {
			for _, a := range e.Addresses {
				if addr, err := netip.ParseAddr(a); err == nil && e.TargetRef != nil && e.TargetRef.Kind == "Pod" {
					out[addr.Unmap()] = "pod " + e.TargetRef.Name
				}
			}
		}
	}
	return out
}

// compare explains every address of the Service, and says where the kernel differs.
func compare(in dataplane.Installed, name types.NamespacedName, api inAPI) string {
	if api.service == nil {
		return fmt.Sprintf("Service %s has no rules: it is headless, of type ExternalName, without an address yet, or left to another proxy by its label.\n", name)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "Service %s\n\n", name)
	for _, fault := range api.service.Faults {
		fmt.Fprintf(&b, "Not used: %s\n\n", fault)
	}
	wanted := in.Wanted(api.service, api.nodeAddrs)
	var differences []string
	for _, want := range wanted.All() {
		have := in.Explain(want.At, want.Protocol)
		b.WriteString(have.Text(api.pods) + "\n")
		differences = append(differences, dataplane.Differences(have, want, api.pods)...)
	}
	if len(differences) == 0 {
		b.WriteString("The kernel has what the API says.\n")
		return b.String()
	}
	b.WriteString("The kernel differs from what the API says (it follows within milliseconds, and of two Services with one address one has it):\n")
	for _, d := range differences {
		fmt.Fprintf(&b, "  %s\n", d)
	}
	return b.String()
}
