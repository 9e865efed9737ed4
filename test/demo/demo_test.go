package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"fairlead.dev/fairlead/test/netlab"
)

func TestMain(m *testing.M) { netlab.Main(m) }

// top is the top of the repository, where the demo is run from.
var top = filepath.Join("..", "..")

func TestTheDemoEndsWithEveryAnswerRight(t *testing.T) {
	t.Chdir(top)
	temp := t.TempDir()
	t.Setenv("TMPDIR", temp)
	o := parseFlags([]string{"demo", "-once"})
	o.fairlead = filepath.Join(t.TempDir(), "fairlead")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-o", o.fairlead, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building fairlead: %v\n%s", err, out)
	}
	var out strings.Builder
	err := run(t.Context(), o, &out)
	t.Logf("the demo says:\n%s", out.String())
	if err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(temp)
	if err != nil {
		t.Fatal(err)
	}
	if len(left) > 0 {
		t.Errorf("the demo has left %v behind", left)
	}
}
