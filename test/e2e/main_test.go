// Package e2e runs the binary that a real cluster runs, as processes in network
// namespaces of their own, against a real API server and a real kernel.
package e2e_test

import (
	"testing"

	"fairlead.dev/fairlead/test/cluster"
)

func TestMain(m *testing.M) { cluster.Main(m) }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
