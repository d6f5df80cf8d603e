package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"
)

func (r row) cells() []string {
	goal := r.goal
	switch r.verdict {
	case reached:
		goal += ": yes"
	case missed:
		goal += ": **no**"
	}
	return []string{r.work, r.measure, r.ours, r.rival, r.theirs, r.ratio, r.spread, goal}
}

func head() []string {
	return []string{"work", "measured", "cachalot", "beside", "has", "median of pairs", "quartiles (extremes)", "goal"}
}

// text is the table for a terminal.
func text(rows []row) string {
	var b bytes.Buffer
	t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	for _, cells := range append([][]string{head()}, cellsOf(rows)...) {
		_, _ = fmt.Fprintln(t, strings.ReplaceAll(strings.Join(cells, "\t"), "**", "")) // a write to a buffer cannot fail
	}
	_ = t.Flush()
	return b.String()
}

// cellsOf prints a work's title only in its first row.
func cellsOf(rows []row) [][]string {
	var list [][]string
	for i, r := range rows {
		if i > 0 && rows[i-1].work == r.work {
			r.work = ""
		}
		list = append(list, r.cells())
	}
	return list
}

// markdown is the section of docs/benchmarks.md.
func (b *bench) markdown(machine string, rows []row) string {
	var s strings.Builder
	s.WriteString(machine + "\n\n")
	line := func(cells []string) { s.WriteString("| " + strings.Join(cells, " | ") + " |\n") }
	line(head())
	s.WriteString(strings.Repeat("|---", len(head())) + "|\n")
	for _, cells := range cellsOf(rows) {
		line(cells)
	}
	return s.String() + bullets(b.notes)
}

// bullets is the list below a table.
func bullets(notes []string) string {
	if len(notes) == 0 {
		return ""
	}
	return "\n- " + strings.Join(notes, "\n- ") + "\n"
}

const (
	beginMark = "<!-- written by test/bench: begin -->\n"
	endMark   = "<!-- written by test/bench: end -->\n"
)

// replaceSection replaces the text between the marks of a page.
func replaceSection(page, text string) (string, error) {
	before, rest, ok := strings.Cut(page, beginMark)
	_, after, ok2 := strings.Cut(rest, endMark)
	if !ok || !ok2 {
		return "", fmt.Errorf("the page has no section between %q and %q", strings.TrimSpace(beginMark), strings.TrimSpace(endMark))
	}
	return before + beginMark + "\n" + text + "\n" + endMark + after, nil
}

func writePage(file, text string) error {
	page, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	s, err := replaceSection(string(page), text)
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	return os.WriteFile(file, []byte(s), 0o600)
}

// machine describes the machine and the versions.
func (b *bench) machine(ctx context.Context, versions []string) string {
	model := "an unknown processor"
	if info, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(info)) {
			if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
				model = strings.TrimSpace(value)
				break
			}
		}
	}
	var u unix.Utsname
	_ = unix.Uname(&u) // it cannot fail here; otherwise its fields are empty
	load := ""
	if s, err := os.ReadFile("/proc/loadavg"); err == nil {
		load = "; load before: " + strings.Join(strings.Fields(string(s))[:3], " ")
	}
	where := "one processor for all"
	if len(b.cores.server) > 0 {
		where = fmt.Sprintf("servers on processor %v, clients and upstream on %v", b.cores.server, b.cores.client)
	}
	return fmt.Sprintf("%s, %d pairs each. %s, %d processors (%s); Linux %s, %s%s. %s.",
		time.Now().UTC().Format("2006-01-02"), b.pairs, model, len(b.cores.server)+len(b.cores.client), where,
		unix.ByteSliceToString(u.Release[:]), runtime.Version(), load, strings.Join(versions, ", "))
}

// commit is the version of cachalot's sources.
func commit(ctx context.Context) string {
	out, err := exec.CommandContext(ctx, "git", "describe", "--always", "--dirty").Output()
	if err != nil {
		return "of unknown version"
	}
	return strings.TrimSpace(string(out))
}

func nginxVersion(ctx context.Context, binary string) string {
	out, err := exec.CommandContext(ctx, binary, "-v").CombinedOutput()
	if err != nil {
		return "nginx of unknown version"
	}
	_, version, _ := strings.Cut(strings.TrimSpace(string(out)), "version: ")
	return strings.ReplaceAll(version, "nginx/", "nginx ")
}
