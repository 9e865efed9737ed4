package chart_test

import (
	"cmp"
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/wait"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
)

// A poll is answered from the API server's memory; ten seconds are what a CI machine may
// need to serve a type that was just defined.
const (
	pollInterval = 50 * time.Millisecond
	pollTimeout  = 10 * time.Second
)

// startAPIServer starts etcd and kube-apiserver, which authorizes by RBAC.
func startAPIServer(t *testing.T) client.Client {
	t.Helper()
	assets := os.Getenv("KUBEBUILDER_ASSETS")
	if assets == "" {
		assets = filepath.Join(root, "bin", "controlplane")
	}
	env := &envtest.Environment{BinaryAssetsDirectory: assets}
	env.ControlPlane.Etcd = &envtest.Etcd{}
	env.ControlPlane.Etcd.Configure().Append("unsafe-no-fsync")
	config, err := env.Start()
	if err != nil {
		t.Fatalf("starting the control plane (`make control-plane` builds it): %v", err)
	}
	t.Cleanup(func() {
		if err := env.Stop(); err != nil {
			t.Errorf("stopping the control plane: %v", err)
		}
	})
	config.QPS = -1
	k8s, err := client.New(config, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return k8s
}

func TestInstall(t *testing.T) {
	k8s := startAPIServer(t)

	t.Run("an unknown field is refused", func(t *testing.T) {
		bad := objects(t, []byte("{apiVersion: v1, kind: ConfigMap, metadata: {name: bad, namespace: default}, dta: {}}"))[0]
		err := apply(t.Context(), k8s, bad)
		if err == nil || !strings.Contains(err.Error(), "dta") {
			t.Errorf("error is %v, want one about the field", err)
		}
	})

	for name, r := range releases {
		t.Run("chart, "+name, func(t *testing.T) {
			objs := r.render(t)
			for _, obj := range objs {
				ensureNamespace(t, k8s, obj.GetNamespace())
			}
			install(t, k8s, objs)
			checkRoles(t, k8s, objs)
			if r.name == "fairlead" {
				checkRights(t, k8s, r.namespace)
			}
		})
	}
	t.Run("config/default and config/samples", func(t *testing.T) {
		bases := kustomize(t, "default")
		install(t, k8s, bases)
		install(t, k8s, kustomize(t, "samples"))
		checkRoles(t, k8s, bases)
		checkRights(t, k8s, "fairlead-system") // the cluster's roles are now bound there
	})
}

// install applies objs, and once more to see that nothing changes: a template that says
// what the API server stores otherwise would be a change at every upgrade.
func install(t *testing.T, k8s client.Client, objs []*unstructured.Unstructured) {
	t.Helper()
	// As Helm and kubectl do: namespaces and types first.
	first := []string{"Namespace", "CustomResourceDefinition"}
	objs = slices.Clone(objs)
	slices.SortStableFunc(objs, func(a, b *unstructured.Unstructured) int {
		rank := func(o *unstructured.Unstructured) int { return (slices.Index(first, o.GetKind()) + 3) % 3 }
		return cmp.Compare(rank(a), rank(b))
	})
	for _, obj := range objs {
		mustApply(t, k8s, obj.DeepCopy())
		if obj.GetKind() == "CustomResourceDefinition" {
			awaitType(t, k8s, obj.GetName())
		}
	}
	for _, obj := range objs {
		was := obj.DeepCopy()
		if err := k8s.Get(t.Context(), client.ObjectKeyFromObject(obj), was); err != nil {
			t.Fatal(err)
		}
		is := obj.DeepCopy()
		mustApply(t, k8s, is)
		if is.GetKind() == "CustomResourceDefinition" {
			// The API server itself goes on to write their status.
			for _, o := range []*unstructured.Unstructured{was, is} {
				o.SetResourceVersion("")
				o.SetManagedFields(nil)
				delete(o.Object, "status")
			}
		}
		if diff := gocmp.Diff(was.Object, is.Object); diff != "" {
			t.Errorf("%s %s changed when it was applied again (-was +is):\n%s", obj.GetKind(), obj.GetName(), diff)
		}
	}
}

// mustApply applies obj, which then is what the API server stored. A type that is new
// may not be served yet.
func mustApply(t *testing.T, k8s client.Client, obj *unstructured.Unstructured) {
	t.Helper()
	var last error
	err := wait.PollUntilContextTimeout(t.Context(), pollInterval, pollTimeout, true, func(ctx context.Context) (bool, error) {
		last = apply(ctx, k8s, obj)
		if apierrors.IsNotFound(last) {
			return false, nil
		}
		return true, last
	})
	if err != nil {
		t.Fatalf("applying %s %s: %v (%v)", obj.GetKind(), obj.GetName(), err, last)
	}
}

// apply applies obj on the server's side, which is strict: a field that the type does not
// have is refused. (fieldValidation=Strict adds repeated fields; objects finds those.)
func apply(ctx context.Context, k8s client.Client, obj *unstructured.Unstructured) error {
	return k8s.Apply(ctx, client.ApplyConfigurationFromUnstructured(obj),
		client.FieldOwner("installer"), client.ForceOwnership)
}

func awaitType(t *testing.T, k8s client.Client, name string) {
	t.Helper()
	crd := &unstructured.Unstructured{}
	crd.SetAPIVersion("apiextensions.k8s.io/v1")
	crd.SetKind("CustomResourceDefinition")
	err := wait.PollUntilContextTimeout(t.Context(), pollInterval, pollTimeout, true, func(ctx context.Context) (bool, error) {
		if err := k8s.Get(ctx, client.ObjectKey{Name: name}, crd); err != nil {
			return false, err
		}
		status, _ := crd.Object["status"].(map[string]any)
		conditions, _ := status["conditions"].([]any) // null at first
		return slices.ContainsFunc(conditions, func(c any) bool {
			condition, _ := c.(map[string]any)
			return condition["type"] == "Established" && condition["status"] == "True"
		}), nil
	})
	if err != nil {
		t.Fatalf("waiting for %s: %v\n%v", name, err, crd.Object["status"])
	}
}

func ensureNamespace(t *testing.T, k8s client.Client, name string) {
	t.Helper()
	if name == "" {
		return
	}
	err := k8s.Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		t.Fatal(err)
	}
}

// checkRoles checks that each ServiceAccount in objs really has each right of the roles
// that are bound to it: that names and namespaces of the bindings fit.
func checkRoles(t *testing.T, k8s client.Client, objs []*unstructured.Unstructured) {
	t.Helper()
	granted := rules(t, objs)
	for _, obj := range objs {
		kind := obj.GetKind()
		if kind != "ClusterRoleBinding" && kind != "RoleBinding" {
			continue
		}
		// The two have the same fields.
		binding := one[rbacv1.RoleBinding](t, objs, kind, obj.GetName())
		role := binding.RoleRef.Kind + "/" + binding.RoleRef.Name
		bound, ok := granted[role]
		if !ok {
			t.Errorf("%s binds %s, which is not there", binding.Name, role)
		}
		subject := binding.Subjects[0]
		one[corev1.ServiceAccount](t, objs, subject.Kind, subject.Name)
		for _, rule := range bound {
			for _, a := range accesses(rule, binding.Namespace) {
				// RBAC is answered from a cache, which follows within milliseconds.
				err := wait.PollUntilContextTimeout(t.Context(), pollInterval, pollTimeout, true, func(context.Context) (bool, error) {
					return may(t, k8s, subject, a), nil
				})
				if err != nil {
					t.Errorf("%s/%s may not %s, though %s says so", subject.Namespace, subject.Name, describe(a), role)
				}
			}
		}
	}
}

// accesses spells a rule out.
func accesses(rule rbacv1.PolicyRule, namespace string) []authorizationv1.ResourceAttributes {
	names := rule.ResourceNames
	if len(names) == 0 {
		names = []string{""}
	}
	var all []authorizationv1.ResourceAttributes
	for _, group := range rule.APIGroups {
		for _, resource := range rule.Resources {
			for _, verb := range rule.Verbs {
				for _, name := range names {
					resource, subresource, _ := strings.Cut(resource, "/")
					all = append(all, authorizationv1.ResourceAttributes{
						Group: group, Resource: resource, Subresource: subresource, Verb: verb, Name: name, Namespace: namespace,
					})
				}
			}
		}
	}
	return all
}

// checkRights asks the API server what the processes in namespace must be able to do, and
// some of what they must not. The right is there for all rules at once, so that after
// checkRoles a no is a no.
func checkRights(t *testing.T, k8s client.Client, namespace string) {
	t.Helper()
	controller := rbacv1.Subject{Namespace: namespace, Name: "fairlead-controller"}
	node := rbacv1.Subject{Namespace: namespace, Name: "fairlead-node"}
	for _, c := range []struct {
		who   rbacv1.Subject
		want  bool
		verbs string
		on    authorizationv1.ResourceAttributes
	}{
		{controller, true, "list watch", authorizationv1.ResourceAttributes{Resource: "services"}},
		{controller, true, "list watch", authorizationv1.ResourceAttributes{Resource: "pods"}},
		{controller, true, "list watch", authorizationv1.ResourceAttributes{Resource: "nodes"}},
		{controller, true, "list watch create update delete", authorizationv1.ResourceAttributes{Group: "discovery.k8s.io", Resource: "endpointslices"}},
		{controller, true, "get update", authorizationv1.ResourceAttributes{
			Group: "coordination.k8s.io", Resource: "leases", Namespace: namespace, Name: "fairlead-controller",
		}},
		{controller, true, "create", authorizationv1.ResourceAttributes{Group: "coordination.k8s.io", Resource: "leases", Namespace: namespace}},
		{controller, false, "get update delete", authorizationv1.ResourceAttributes{
			Group: "coordination.k8s.io", Resource: "leases", Namespace: namespace, Name: "kube-scheduler",
		}},
		{controller, false, "create", authorizationv1.ResourceAttributes{Group: "coordination.k8s.io", Resource: "leases", Namespace: "default"}},
		{controller, false, "get list watch create", authorizationv1.ResourceAttributes{Resource: "secrets"}},
		{controller, false, "create update delete", authorizationv1.ResourceAttributes{Resource: "pods"}},
		{controller, false, "create", authorizationv1.ResourceAttributes{Resource: "pods", Subresource: "exec"}},
		{controller, false, "create delete", authorizationv1.ResourceAttributes{Resource: "services"}},
		{controller, false, "update patch delete", authorizationv1.ResourceAttributes{Resource: "nodes"}},
		{controller, false, "escalate bind update", authorizationv1.ResourceAttributes{Group: "rbac.authorization.k8s.io", Resource: "clusterroles"}},
		{controller, false, "impersonate", authorizationv1.ResourceAttributes{Resource: "users"}},

		{node, true, "get list watch", authorizationv1.ResourceAttributes{Resource: "services"}},
		{node, true, "get list watch", authorizationv1.ResourceAttributes{Resource: "nodes"}},
		{node, true, "get list watch", authorizationv1.ResourceAttributes{Group: "discovery.k8s.io", Resource: "endpointslices"}},
		{node, false, "create update patch delete", authorizationv1.ResourceAttributes{Group: "discovery.k8s.io", Resource: "endpointslices"}},
		{node, false, "create update patch delete", authorizationv1.ResourceAttributes{Resource: "services"}},
		{node, false, "update", authorizationv1.ResourceAttributes{Resource: "services", Subresource: "status"}},
		{node, false, "create update patch delete", authorizationv1.ResourceAttributes{Resource: "nodes"}},
		{node, false, "update patch", authorizationv1.ResourceAttributes{Resource: "nodes", Subresource: "status"}},
		{node, false, "get list watch create", authorizationv1.ResourceAttributes{Resource: "secrets"}},
		{node, false, "list watch create", authorizationv1.ResourceAttributes{Resource: "pods"}},
		{node, false, "update", authorizationv1.ResourceAttributes{
			Group: "coordination.k8s.io", Resource: "leases", Namespace: namespace, Name: "fairlead-controller",
		}},
	} {
		for verb := range strings.FieldsSeq(c.verbs) {
			c.on.Verb = verb
			if got := may(t, k8s, c.who, c.on); got != c.want {
				t.Errorf("%s may %s: %v, want %v", c.who.Name, describe(c.on), got, c.want)
			}
		}
	}
}

// may asks the API server.
func may(t *testing.T, k8s client.Client, who rbacv1.Subject, on authorizationv1.ResourceAttributes) bool {
	t.Helper()
	review := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
		User:               "system:serviceaccount:" + who.Namespace + ":" + who.Name,
		Groups:             []string{"system:serviceaccounts", "system:serviceaccounts:" + who.Namespace, "system:authenticated"},
		ResourceAttributes: &on,
	}}
	if err := k8s.Create(t.Context(), review); err != nil {
		t.Fatalf("asking for access: %v", err)
	}
	return review.Status.Allowed
}

func describe(on authorizationv1.ResourceAttributes) string {
	resource := strings.TrimSuffix(on.Resource+"/"+on.Subresource, "/") + "." + on.Group
	return strings.TrimSpace(on.Verb + " " + strings.TrimSuffix(resource, ".") + " " + on.Name)
}
