package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	certutil "k8s.io/client-go/util/cert"
	"k8s.io/client-go/util/keyutil"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

const (
	// etcdURL and etcdPeerURL are on the loopback of the world's own namespace, so that
	// no port of the machine is in the way.
	etcdURL     = "http://127.0.0.1:2379"
	etcdPeerURL = "http://127.0.0.1:2380"

	apiserverPort = 6443

	// serviceCIDRs are the ranges of ClusterIPs, IPv4 first.
	serviceCIDRs = "10.96.0.0/16,fd00:10:96::/112"

	// tokenSeconds is how long fairlead's tokens are valid: a long look around.
	tokenSeconds = 24 * 60 * 60
)

// controlPlane is an etcd and a kube-apiserver in the world's own namespace. Nothing
// else of Kubernetes runs: no kube-controller-manager, no scheduler, no kubelet.
type controlPlane struct {
	dir    string // for keys, tokens and etcd's data
	host   string // address that the nodes reach the API server at
	server string
	ca     []byte
	token  string // of an administrator
}

// newControlPlane writes the keys and the token to dir.
func newControlPlane(dir string, host net.IP) (*controlPlane, error) {
	cp := &controlPlane{dir: dir, host: host.String(), token: rand.Text()}
	cp.server = "https://" + net.JoinHostPort(cp.host, strconv.Itoa(apiserverPort))
	cert, key, err := certutil.GenerateSelfSignedCertKey(cp.host, nil, nil)
	if err != nil {
		return nil, fmt.Errorf("making the API server's certificate: %w", err)
	}
	cp.ca = cert // the authority's certificate follows the server's
	signer, err := keyutil.MakeEllipticPrivateKeyPEM()
	if err != nil {
		return nil, fmt.Errorf("making the key of service accounts: %w", err)
	}
	for name, data := range map[string][]byte{
		"apiserver.crt": cert,
		"apiserver.key": key,
		"sa.key":        signer,
		"tokens.csv":    fmt.Appendf(nil, "%s,admin,admin,system:masters\n", cp.token),
	} {
		if err := os.WriteFile(cp.file(name), data, 0o600); err != nil {
			return nil, fmt.Errorf("writing the control plane's keys: %w", err)
		}
	}
	return cp, nil
}

func (cp *controlPlane) file(name string) string { return filepath.Join(cp.dir, name) }

// commands returns how to run etcd and kube-apiserver, which waits for the former.
func (cp *controlPlane) commands(bin binaries) (etcd, apiserver *exec.Cmd) {
	etcd = exec.Command(bin.etcd,
		"--data-dir="+cp.file("etcd"),
		"--listen-client-urls="+etcdURL, "--advertise-client-urls="+etcdURL,
		"--listen-peer-urls="+etcdPeerURL, "--initial-advertise-peer-urls="+etcdPeerURL,
		"--initial-cluster=default="+etcdPeerURL,
		"--unsafe-no-fsync")
	apiserver = exec.Command(bin.apiserver,
		"--etcd-servers="+etcdURL,
		"--bind-address="+cp.host, "--advertise-address="+cp.host, "--secure-port="+strconv.Itoa(apiserverPort),
		"--tls-cert-file="+cp.file("apiserver.crt"), "--tls-private-key-file="+cp.file("apiserver.key"),
		"--token-auth-file="+cp.file("tokens.csv"),
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file="+cp.file("sa.key"), "--service-account-signing-key-file="+cp.file("sa.key"),
		"--service-cluster-ip-range="+serviceCIDRs,
		"--authorization-mode=RBAC",
		// What these ask for, a default ServiceAccount in each namespace and Nodes
		// without the not-ready taint, comes from kube-controller-manager.
		"--disable-admission-plugins=ServiceAccount,TaintNodesByCondition")
	return etcd, apiserver
}

// config returns the client configuration for whoever the token stands for.
func (cp *controlPlane) config(token string) *rest.Config {
	return &rest.Config{
		Host:            cp.server,
		BearerToken:     token,
		TLSClientConfig: rest.TLSClientConfig{CAData: cp.ca},
		QPS:             -1, // the API server's own limits are enough
	}
}

// ready returns nil when the API server is.
func (cp *controlPlane) ready(ctx context.Context) error {
	httpClient, err := rest.HTTPClientFor(cp.config(cp.token))
	if err != nil {
		return fmt.Errorf("building a client: %w", err)
	}
	defer httpClient.CloseIdleConnections()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, cp.server+"/readyz", nil)
	if err != nil {
		return err
	}
	response, err := httpClient.Do(request)
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }() // it was only read
	if response.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(response.Body) // as far as it came
		return fmt.Errorf("%s: %s", response.Status, body)
	}
	return nil
}

// writeKubeconfig writes one for whoever the token stands for, and returns its path.
func (cp *controlPlane) writeKubeconfig(name, token, namespace string) (string, error) {
	const context = "demo"
	cfg := clientcmdapi.NewConfig()
	cfg.Clusters[context] = &clientcmdapi.Cluster{Server: cp.server, CertificateAuthorityData: cp.ca}
	cfg.AuthInfos[name] = &clientcmdapi.AuthInfo{Token: token}
	cfg.Contexts[context] = &clientcmdapi.Context{Cluster: context, AuthInfo: name, Namespace: namespace}
	cfg.CurrentContext = context
	path := cp.file(name + ".kubeconfig")
	if err := clientcmd.WriteToFile(*cfg, path); err != nil {
		return "", fmt.Errorf("writing the kubeconfig of %s: %w", name, err)
	}
	return path, nil
}

// kubeconfigFor writes one for a ServiceAccount, with a token as its pods would get.
func (cp *controlPlane) kubeconfigFor(ctx context.Context, api client.Client, account types.NamespacedName) (string, error) {
	sa := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: account.Namespace, Name: account.Name}}
	seconds := int64(tokenSeconds)
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &seconds}}
	if err := api.SubResource("token").Create(ctx, sa, request); err != nil {
		return "", fmt.Errorf("asking for a token of ServiceAccount %s: %w", account, err)
	}
	return cp.writeKubeconfig(account.Name, request.Status.Token, account.Namespace)
}
