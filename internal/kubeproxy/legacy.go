package kubeproxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"slices"
	"strings"
)

// legacyFamilies are the programs of legacy iptables, and where the kernel lists the
// tables that are there. A table comes into being when it is first asked for, so only
// those are looked at.
var legacyFamilies = []struct{ name, program, tables string }{
	{"IPv4", "iptables", "/proc/thread-self/net/ip_tables_names"},
	{"IPv6", "ip6tables", "/proc/thread-self/net/ip6_tables_names"},
}

// removeLegacy deletes the chains of legacy iptables.
func removeLegacy(ctx context.Context) (report Report, err error) {
	var errs []error
	for _, f := range legacyFamilies {
		raw, err := os.ReadFile(f.tables)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("listing tables of legacy iptables: %w", err))
		}
		there := strings.Fields(string(raw))
		for _, table := range tables {
			if !slices.Contains(there, table) {
				continue
			}
			where := fmt.Sprintf("table %s of legacy iptables, %s", table, f.name)
			done, err := removeLegacyTable(ctx, f.program, table, where)
			report.add(done)
			if err != nil {
				errs = append(errs, fmt.Errorf("deleting chains of %s: %w", where, err))
			}
		}
	}
	return report, errors.Join(errs...)
}

func removeLegacyTable(ctx context.Context, program, table, where string) (Report, error) {
	program, err := legacyProgram(ctx, program)
	if err != nil {
		return Report{}, err
	}
	out, err := run(ctx, "", program+"-save", "-t", table)
	if err != nil {
		return Report{}, err
	}
	p := planTable(parseSave(out))
	if len(p.chains) == 0 && len(p.jumps) == 0 {
		return p.words(where), nil
	}
	// The lock is waited for, as others wait for it with -w.
	if _, err := run(ctx, restoreScript(table, p), program+"-restore", "--noflush", "-w", "5"); err != nil {
		return Report{}, err
	}
	return p.words(where), nil
}

// legacyProgram returns the name of the program in its legacy making, without -save and
// -restore.
func legacyProgram(ctx context.Context, program string) (string, error) {
	if _, err := exec.LookPath(program + "-legacy-save"); err == nil {
		return program + "-legacy", nil
	}
	// Distributions of before or without nf_tables have it under the plain name.
	if version, err := run(ctx, "", program+"-save", "--version"); err == nil && !strings.Contains(version, "nf_tables") {
		return program, nil
	}
	return "", fmt.Errorf("%s-legacy-save is not installed here (run fairlead node --cleanup=kube-proxy where it is)", program)
}

// run returns what a program says on standard output. An error has its standard error.
func run(ctx context.Context, stdin, name string, args ...string) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("running %s: %w: %s", name, err, strings.Join(strings.Fields(stderr.String()), " "))
	}
	return stdout.String(), nil
}

// parseSave reads what iptables-save says of one table. The handle of a jump is its line.
func parseSave(text string) map[string]chain {
	table := map[string]chain{}
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		fields := strings.Fields(line)
		switch {
		case strings.HasPrefix(line, ":") && len(fields) > 1:
			table[fields[0][1:]] = chain{builtIn: fields[1] != "-"}
		case strings.HasPrefix(line, "-A ") && len(fields) > 1:
			c := table[fields[1]]
			if target := target(fields); target != "" {
				c.jumps = append(c.jumps, jump{target: target, handle: line})
			}
			table[fields[1]] = c
		}
	}
	return table
}

// target returns where a rule leads, which its last -j or -g names: one before it can be
// a word of a comment only. Options of a target come behind it, but a chain has none.
func target(fields []string) string {
	if len(fields) < 2 {
		return ""
	}
	if flag := fields[len(fields)-2]; flag == "-j" || flag == "-g" {
		return fields[len(fields)-1]
	}
	return ""
}

// restoreScript is what iptables-restore --noflush carries out p by, in one step.
func restoreScript(table string, p plan) string {
	var b strings.Builder
	fmt.Fprintf(&b, "*%s\n", table)
	for _, name := range p.chains {
		fmt.Fprintf(&b, ":%s - [0:0]\n", name) // empties it
	}
	for _, jumps := range p.jumps {
		for _, j := range jumps {
			fmt.Fprintf(&b, "-D %s\n", strings.TrimPrefix(j.handle.(string), "-A "))
		}
	}
	for _, name := range p.chains {
		fmt.Fprintf(&b, "-X %s\n", name)
	}
	b.WriteString("COMMIT\n")
	return b.String()
}
