package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

const (
	// fieldOwner is who server-side apply says applied the objects.
	fieldOwner = "fairlead-demo"

	// kustomization is the file that lists the others, which is no object.
	kustomization = "kustomization.yaml"
)

// manifests are the objects that the demo applies.
type manifests struct {
	crds, roles, samples []*unstructured.Unstructured
}

// readManifests reads them from the directories of the flags.
func readManifests(o options) (manifests, error) {
	var m manifests
	var err error
	for _, want := range []struct {
		into *[]*unstructured.Unstructured
		dir  string
	}{{&m.crds, o.crds}, {&m.roles, o.rbac}, {&m.samples, o.samples}} {
		if *want.into, err = readObjects(want.dir); err != nil {
			return m, err
		}
	}
	return m, nil
}

// readObjects returns the objects in the YAML files of a directory, in the order of
// their names.
func readObjects(dir string) ([]*unstructured.Unstructured, error) {
	paths, err := filepath.Glob(filepath.Join(dir, "*.yaml"))
	if err != nil {
		return nil, fmt.Errorf("listing %s: %w", dir, err)
	}
	var out []*unstructured.Unstructured
	for _, path := range paths {
		if filepath.Base(path) == kustomization {
			continue
		}
		objects, err := readFile(path)
		if err != nil {
			return nil, fmt.Errorf("reading %s: %w", path, err)
		}
		out = append(out, objects...)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%s has no YAML files with objects; is this the top of the repository?", dir)
	}
	return out, nil
}

func readFile(path string) ([]*unstructured.Unstructured, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, errReason(err)
	}
	defer func() { _ = file.Close() }() // it was only read
	const lookahead = 4096              // to tell JSON from YAML
	decoder := yaml.NewYAMLOrJSONDecoder(file, lookahead)
	var out []*unstructured.Unstructured
	for {
		u := &unstructured.Unstructured{}
		err := decoder.Decode(u)
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, err
		}
		if len(u.Object) > 0 { // a lone --- has none
			out = append(out, u)
		}
	}
}

// applyAll applies objects in order.
func applyAll(ctx context.Context, api client.Client, objects []*unstructured.Unstructured) error {
	for _, u := range objects {
		err := api.Apply(ctx, client.ApplyConfigurationFromUnstructured(u), client.FieldOwner(fieldOwner), client.ForceOwnership)
		if err != nil {
			return fmt.Errorf("applying %s %s: %w", u.GetKind(), u.GetName(), err)
		}
	}
	return nil
}

// namespacesOf returns the namespaces that objects are in.
func namespacesOf(objects []*unstructured.Unstructured) []*unstructured.Unstructured {
	var names []string
	for _, u := range objects {
		if ns := u.GetNamespace(); ns != "" {
			names = append(names, ns)
		}
	}
	slices.Sort(names)
	var out []*unstructured.Unstructured
	for _, name := range slices.Compact(names) {
		u := &unstructured.Unstructured{}
		u.SetAPIVersion("v1")
		u.SetKind("Namespace")
		u.SetName(name)
		out = append(out, u)
	}
	return out
}

// established returns nil when the API server serves the custom resources of crds.
func established(ctx context.Context, api client.Client, crds []*unstructured.Unstructured) error {
	for _, crd := range crds {
		got := &unstructured.Unstructured{}
		got.SetGroupVersionKind(crd.GroupVersionKind())
		if err := api.Get(ctx, client.ObjectKeyFromObject(crd), got); err != nil {
			return fmt.Errorf("reading %s: %w", crd.GetName(), err)
		}
		if !hasCondition(got, "Established") {
			return fmt.Errorf("%s is not established", crd.GetName())
		}
	}
	return nil
}

func hasCondition(u *unstructured.Unstructured, name string) bool {
	conditions, _, err := unstructured.NestedSlice(u.Object, "status", "conditions")
	if err != nil {
		return false
	}
	return slices.ContainsFunc(conditions, func(c any) bool {
		fields, ok := c.(map[string]any)
		return ok && fields["type"] == name && fields["status"] == "True"
	})
}
