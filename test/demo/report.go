package main

import (
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"k8s.io/utils/clock"
)

// report writes what happens, with the seconds since the start.
type report struct {
	out   io.Writer
	clock clock.PassiveClock
	start time.Time
}

// say writes a line of progress.
func (r *report) say(format string, args ...any) {
	r.line(fmt.Sprintf("[%5.1fs] ", r.clock.Since(r.start).Seconds()) + fmt.Sprintf(format, args...))
}

// show writes text that belongs to the line before, indented.
func (r *report) show(text string) {
	for line := range strings.Lines(text) {
		r.line("    " + strings.TrimRight(line, "\n"))
	}
	r.line("")
}

func (r *report) line(text string) {
	_, _ = fmt.Fprintln(r.out, text) // nobody reads where it cannot be written
}

// table lays rows out in columns, two spaces apart. A cell that repeats the one above
// it in the first column is left empty.
func table(rows [][]string) string {
	var widths []int
	for _, row := range rows {
		for i, cell := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	var b strings.Builder
	before := ""
	for _, row := range rows {
		var line strings.Builder
		for i, cell := range row {
			if i == 0 {
				if cell == before {
					cell = ""
				} else {
					before = cell
				}
			}
			fmt.Fprintf(&line, "%-*s  ", widths[i], cell)
		}
		b.WriteString(strings.TrimRight(line.String(), " "))
		b.WriteByte('\n')
	}
	return b.String()
}
