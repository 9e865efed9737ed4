package chart_test

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"fairlead.dev/fairlead/api/config/v1alpha1"
)

// The schema of values repeats the fields of the configuration files, and the README says
// what they mean: a knob that is new there must be known to the chart, or nobody can turn
// it.
func TestSchemaHasEveryField(t *testing.T) {
	raw, err := os.ReadFile(filepath.Join(chartDir, "values.schema.json"))
	if err != nil {
		t.Fatal(err)
	}
	var schema schemaNode
	if err := json.Unmarshal(raw, &schema); err != nil {
		t.Fatal(err)
	}
	readme, err := os.ReadFile(filepath.Join(chartDir, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	for part, file := range map[string]reflect.Type{
		"controller": reflect.TypeFor[v1alpha1.ControllerConfiguration](),
		"node":       reflect.TypeFor[v1alpha1.NodeConfiguration](),
	} {
		t.Run(part, func(t *testing.T) {
			config := schema.Properties[part].Properties["config"]
			got := slices.Sorted(maps.Keys(config.fields(schema.Definitions, "")))
			want := slices.DeleteFunc(slices.Sorted(maps.Keys(fields(file, ""))), func(path string) bool {
				return path == ".apiVersion" || path == ".kind" // the template writes them
			})
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("fields of %s and of values.schema.json (-Go +schema):\n%s", file, diff)
			}
			for _, path := range want {
				row := "| `" + part + ".config" + path + "` |"
				if leaf := !slices.ContainsFunc(want, func(p string) bool { return strings.HasPrefix(p, path+".") }); leaf && !strings.Contains(string(readme), row) {
					t.Errorf("README.md does not have %s.config%s", part, path)
				}
			}
		})
	}
}

type schemaNode struct {
	Ref         string                `json:"$ref"`
	AllOf       []schemaNode          `json:"allOf"`
	Items       *schemaNode           `json:"items"`
	Properties  map[string]schemaNode `json:"properties"`
	Definitions map[string]schemaNode `json:"definitions"`
}

// fields returns the paths of all fields below s.
func (s schemaNode) fields(definitions map[string]schemaNode, path string) map[string]bool {
	if s.Ref != "" {
		return definitions[strings.TrimPrefix(s.Ref, "#/definitions/")].fields(definitions, path)
	}
	found := map[string]bool{}
	for _, part := range s.AllOf {
		maps.Copy(found, part.fields(definitions, path))
	}
	if s.Items != nil {
		maps.Copy(found, s.Items.fields(definitions, path+"[]"))
	}
	for name, child := range s.Properties {
		found[path+"."+name] = true
		maps.Copy(found, child.fields(definitions, path+"."+name))
	}
	return found
}

// fields returns the paths of all fields of a Go type, as encoding/json names them.
func fields(typ reflect.Type, path string) map[string]bool {
	found := map[string]bool{}
	switch typ.Kind() {
	case reflect.Pointer:
		return fields(typ.Elem(), path)
	case reflect.Slice:
		return fields(typ.Elem(), path+"[]")
	case reflect.Struct:
		for field := range typ.Fields() {
			name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
			if name == "" { // inline
				maps.Copy(found, fields(field.Type, path))
				continue
			}
			found[path+"."+name] = true
			maps.Copy(found, fields(field.Type, path+"."+name))
		}
	default:
	}
	return found
}

func TestReadmeHasEveryValue(t *testing.T) {
	readme, err := os.ReadFile(filepath.Join(chartDir, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(filepath.Join(chartDir, "values.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var values map[string]any
	if err := yaml.UnmarshalStrict(raw, &values); err != nil {
		t.Fatal(err)
	}
	var check func(path string, value any)
	check = func(path string, value any) {
		if strings.Contains(string(readme), "| `"+path+"` |") {
			return
		}
		children, ok := value.(map[string]any)
		if !ok || len(children) == 0 {
			t.Errorf("README.md does not have %s", path)
		}
		for name, child := range children {
			check(path+"."+name, child)
		}
	}
	for name, value := range values {
		check(name, value)
	}
}

// Every type is in the list of the kustomize base, in the chart and in PROJECT.
func TestEveryTypeIsListed(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(root, "config/crd/bases/*.yaml"))
	if err != nil || len(files) == 0 {
		t.Fatalf("config/crd/bases: %v, %v", files, err)
	}
	want := map[string]string{}
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, crd := range objects(t, raw) {
			kind, _, err := unstructured.NestedString(crd.Object, "spec", "names", "kind")
			if err != nil {
				t.Fatal(err)
			}
			want[crd.GetName()] = kind
		}
	}
	names, kinds := slices.Sorted(maps.Keys(want)), slices.Sorted(maps.Values(want))

	for where, objs := range map[string][]*unstructured.Unstructured{
		"config/crd": kustomize(t, "crd"), "the chart": releases["defaults"].render(t),
	} {
		got := slices.Sorted(maps.Keys(specs(objs, "CustomResourceDefinition")))
		if diff := cmp.Diff(names, got); diff != "" {
			t.Errorf("CRDs in %s (-want +got):\n%s", where, diff)
		}
	}

	raw, err := os.ReadFile(filepath.Join(root, "PROJECT"))
	if err != nil {
		t.Fatal(err)
	}
	var project struct {
		Resources []struct {
			Domain, Kind string
		}
	}
	if err := yaml.Unmarshal(raw, &project); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, resource := range project.Resources {
		if resource.Domain == "fairlead.dev" {
			got = append(got, resource.Kind)
		}
	}
	slices.Sort(got)
	if diff := cmp.Diff(kinds, got); diff != "" {
		t.Errorf("kinds in PROJECT (-want +got):\n%s", diff)
	}
}
