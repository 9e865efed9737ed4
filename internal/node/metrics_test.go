package node

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"

	"fairlead.dev/fairlead/internal/conntrack"
)

// TestMetricsAreDocumented: docs/metrics.md has every figure in a table, and no other.
func TestMetricsAreDocumented(t *testing.T) {
	raw, err := os.ReadFile(filepath.Join("..", "..", "docs", "metrics.md"))
	if err != nil {
		t.Fatal(err)
	}
	rows := documented(string(raw))
	m, c := newMetrics(), newCounters(logr.Discard())
	m.watch(func() conntrack.Stats { return conntrack.Stats{} })
	var names []string
	for _, desc := range []*prometheus.Desc{c.connections, c.packets, c.bytes} {
		_, after, _ := strings.Cut(desc.String(), `fqName: "`)
		name, _, _ := strings.Cut(after, `"`)
		names = append(names, name)
	}
	families, err := m.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		if strings.HasPrefix(family.GetName(), "fairlead_") {
			names = append(names, family.GetName())
		}
	}
	for _, name := range names {
		if !rows[name] {
			t.Errorf("docs/metrics.md does not have %s", name)
		}
		delete(rows, name)
	}
	for name := range rows {
		t.Errorf("docs/metrics.md has %s, which is none", name)
	}
}

// documented returns the names in the first columns of tables about metrics, whose heads
// have what all names of a table begin with.
func documented(text string) map[string]bool {
	rows := map[string]bool{}
	prefix := ""
	for line := range strings.Lines(text) {
		_, after, inCell := strings.Cut(line, "`")
		switch {
		case !strings.HasPrefix(line, "|"):
			prefix = ""
		case strings.HasPrefix(line, "| metric `"):
			prefix, _, _ = strings.Cut(after, "...")
		case strings.HasPrefix(line, "| `") && inCell && prefix != "":
			rows[prefix+after[:strings.IndexAny(after, "`{")]] = true
		}
	}
	return rows
}
