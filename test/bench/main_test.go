// Package bench measures the whole system: a real API server, the real binaries, a real
// kernel. Figures are reported, never asserted: they depend on the machine.
package bench_test

import (
	"fmt"
	"os"
	"testing"

	"fairlead.dev/fairlead/test/cluster"
)

func TestMain(m *testing.M) {
	if arguments := os.Getenv(loadVar); arguments != "" {
		if err := load(arguments); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	cluster.Main(m)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
