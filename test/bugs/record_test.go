package bugs

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// fault is a line of faults.tsv. The file describes its columns.
type fault struct {
	fix, folder, test, tree, files, added, arguments string
}

// readFaults reads faults.tsv.
func readFaults(t *testing.T) []fault {
	t.Helper()
	f, err := os.Open("faults.tsv")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var faults []fault
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if strings.HasPrefix(lines.Text(), "#") {
			continue
		}
		c := strings.Split(lines.Text(), "\t")
		if len(c) != 7 || slices.Contains(c, "") {
			t.Fatalf("faults.tsv: %q has not seven columns", lines.Text())
		}
		faults = append(faults, fault{c[0], c[1], c[2], c[3], c[4], c[5], c[6]})
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	return faults
}

// commands returns the commits and tests in the table's last column, by row.
func commands(t *testing.T) (commits, tests []string) {
	t.Helper()
	page, err := os.ReadFile("../../docs/reliability.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, found := strings.Cut(string(page), "\n## Record of bugs\n")
	if !found {
		t.Fatal("docs/reliability.md has no record of bugs")
	}
	section, _, _ = strings.Cut(section, "\n## ")
	row := regexp.MustCompile("^\\| [^|]+ \\| [^|]+ \\| ([0-9a-f]{7}) \\| `test/bugs/run ([0-9a-f]{7}) ([^ `]+)` \\|$")
	for line := range strings.Lines(section) {
		line = strings.TrimSpace(line)
		if !strings.Contains(line, "`test/bugs/run ") || !strings.HasPrefix(line, "|") {
			continue
		}
		m := row.FindStringSubmatch(line)
		if m == nil || m[1] != m[2] {
			t.Errorf("not a row of the record: %s", line)
			continue
		}
		commits, tests = append(commits, m[1]), append(tests, m[3])
	}
	return commits, tests
}

// TestRecord: the table and faults.tsv have the same faults, in the same order.
func TestRecord(t *testing.T) {
	t.Parallel()
	var want, got []string
	for _, f := range readFaults(t) {
		want = append(want, f.fix+" "+f.test)
	}
	commits, tests := commands(t)
	for i := range commits {
		got = append(got, commits[i]+" "+tests[i])
	}
	if len(want) == 0 || !slices.Equal(got, want) {
		t.Errorf("docs/reliability.md has\n%s\nfaults.tsv has\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// git returns the output of git, and whether it succeeded.
func git(t *testing.T, arguments ...string) (string, bool) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "git", arguments...).Output()
	return strings.TrimSpace(string(out)), err == nil
}

// TestHistory: the commits exist, and each test is in the tree or the file of its line.
func TestHistory(t *testing.T) {
	t.Parallel()
	shallow, ok := git(t, "rev-parse", "--is-shallow-repository")
	if !ok {
		t.Skip("no git, or no repository: there is no history to look into")
	}
	if shallow != "false" {
		t.Skip("the history is cut off: the commits cannot be looked for")
	}
	for _, f := range readFaults(t) {
		tree := f.tree
		if tree == "-" {
			tree = f.fix
		}
		for _, commit := range []string{f.fix, tree} {
			if _, ok := git(t, "merge-base", "--is-ancestor", commit, "HEAD"); !ok {
				t.Errorf("%s %s: commit %s is not in the history", f.fix, f.test, commit)
			}
		}
		name, _, _ := strings.Cut(f.test, "/")
		function := "func " + name + "(t *testing.T)"
		if strings.HasPrefix(name, "Fuzz") { // its failing input is in testdata
			function = "func " + name + "(f *testing.F)"
		}
		if f.added != "-" {
			source, err := os.ReadFile(filepath.Join("testdata", f.added))
			if err != nil || !strings.Contains(string(source), function) {
				t.Errorf("%s %s: not in testdata/%s: %v", f.fix, f.test, f.added, err)
			}
		} else if _, ok := git(t, "grep", "-qF", function, tree, "--", ":/"+f.folder+"/*_test.go"); !ok {
			t.Errorf("%s %s: commit %s has no such test in %s", f.fix, f.test, tree, f.folder)
		}
	}
}
