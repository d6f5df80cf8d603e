package conformance

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/cachalot-registry/cachalot/test/cachalotd"
)

func TestMain(m *testing.M) { cachalotd.Main(m) }

// program is the path of a program that test/conformance/run builds. Without it the test is
// skipped.
func program(t *testing.T, name string) string {
	t.Helper()
	const variable = "CACHALOT_TEST_CONFORMANCE"
	dir := os.Getenv(variable)
	if dir == "" {
		t.Skipf("%s names no folder with OCI's conformance suite; test/conformance/run builds it and runs this test", variable)
	}
	return filepath.Join(dir, name)
}

// switches are settings of the suite, by the names of its environment variables.
type switches map[string]string

// with returns the switches and others. others take precedence.
func (s switches) with(others switches) switches {
	all := maps.Clone(s)
	maps.Copy(all, others)
	return all
}

// outcome is the result of a run of the suite, in checks. A test may have two, of which a
// switch can disable one.
type outcome struct {
	passed, failed, skipped int
	failures                []failure
	skips                   []string // sorted names of tests, one for each skipped check
}

// failure is a failed test and the suite's reason.
type failure struct{ name, reason string }

// String is for a failed Go test. It cuts the reason, which may quote a body.
func (f failure) String() string { return fmt.Sprintf("%s: %.300s", f.name, f.reason) }

// failing are the sorted names of the failed tests.
func (o outcome) failing() []string {
	var names []string
	for _, f := range o.failures {
		names = append(names, f.name)
	}
	slices.Sort(names)
	return names
}

// runSuite runs the suite against a registry, and logs what it finds.
func runSuite(t *testing.T, name, registry string, s switches) outcome {
	t.Helper()
	u, err := url.Parse(registry)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), program(t, "conformance"))
	cmd.Dir = dir // no oci-conformance.yaml
	cmd.Env = []string{"OCI_REGISTRY=" + u.Host, "OCI_TLS=disabled", "OCI_RESULTS_DIR=" + dir, "OCI_LOG=info"}
	for key, value := range s {
		cmd.Env = append(cmd.Env, key+"="+value)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var out, logged bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &logged
	// The exit status is not used: without pushes, the suite panics when it writes its
	// files, after all tests and the report.
	ended := cmd.Run()
	o, err := read(out.String(), logged.String())
	if err != nil {
		t.Fatalf("%s: %v, %v: %s%s", name, err, ended, out.String(), logged.String())
	}
	t.Logf("%s: %d passed, %d failed, %d skipped\nfailed: %s\nskipped: %s", name, o.passed, o.failed, o.skipped, grouped(o.failing()), grouped(o.skips))
	return o
}

const root = "OCI Conformance Test"

var (
	result = regexp.MustCompile(`^ *` + root + `/(.+): (Pass|Skip|Disabled|FAIL|Error|Unknown)$`)
	count  = regexp.MustCompile(`(?m)^  (\w+)\.+: +(\d+)$`)
	skip   = regexp.MustCompile(`(?m)^.* msg="skipping test" name="` + root + `/(.+?)" error=`)
)

// read parses the outcome from the suite's report and its log. Only the log has checks that
// are skipped in a passing test. Each counted check must have a name.
func read(report, logged string) (outcome, error) {
	tests, counts, ok := strings.Cut(report, "\nOCI Conformance Result: ")
	if !ok {
		return outcome{}, errors.New("the suite has no result")
	}
	counts, _, _ = strings.Cut(counts, "\n\n")
	n := map[string]int{}
	for _, m := range count.FindAllStringSubmatch(counts, -1) {
		n[m[1]], _ = strconv.Atoi(m[2]) // digits only
	}
	o := outcome{passed: n["Pass"], failed: n["FAIL"] + n["Error"], skipped: n["Skip"] + n["Disabled"]}

	inLog, inReport := map[string]int{}, map[string]int{}
	for _, m := range skip.FindAllStringSubmatch(logged, -1) {
		inLog[m[1]]++
	}
	lines := strings.Split(tests, "\n")
	for i, line := range lines {
		m := result.FindStringSubmatch(line)
		if m == nil || i+1 < len(lines) && strings.Contains(lines[i+1], " "+root+"/"+m[1]+"/") { // a group of tests
			continue
		}
		switch m[2] {
		case "Pass":
		case "Skip", "Disabled":
			inReport[m[1]]++
		default:
			f := failure{name: m[1]}
			for _, more := range lines[i+1:] {
				if result.MatchString(more) {
					break
				}
				f.reason += strings.TrimSpace(more) + "; "
			}
			o.failures = append(o.failures, f)
		}
	}
	names := maps.Clone(inLog)
	maps.Copy(names, inReport)
	for name := range names {
		o.skips = append(o.skips, slices.Repeat([]string{name}, max(inLog[name], inReport[name]))...)
	}
	slices.Sort(o.skips)
	if o.passed+o.failed+o.skipped != n["Total"] || len(o.failures) != o.failed || len(o.skips) != o.skipped {
		return o, fmt.Errorf("the suite counts %v, and names %d failures and %d skipped checks", n, len(o.failures), len(o.skips))
	}
	return o, nil
}

// grouped is a sorted list of names, each once, with its number.
func grouped(names []string) string {
	if len(names) == 0 {
		return "none"
	}
	var list []string
	for len(names) > 0 {
		n := 1
		for n < len(names) && names[n] == names[0] {
			n++
		}
		list = append(list, fmt.Sprintf("%s (%d)", names[0], n))
		names = names[n:]
	}
	return strings.Join(list, ", ")
}

// documented compares the measured outcome with the table in docs/reliability.md.
func documented(t *testing.T, level, state string, o outcome) {
	t.Helper()
	page, err := os.ReadFile("../../docs/reliability.md")
	if err != nil {
		t.Fatal(err)
	}
	row := fmt.Sprintf("| %s | %s | %d | %d | %d |", level, state, o.passed, o.failed, o.skipped)
	if !slices.Contains(strings.Split(string(page), "\n"), row) {
		t.Errorf("docs/reliability.md does not have the line\n%s", row)
	}
}

// TestRead: names and counts come from the report and the log. If one is missing, there is
// no outcome.
func TestRead(t *testing.T) {
	const tests = `Test results
OCI Conformance Test: FAIL
  OCI Conformance Test/ping: Pass
  OCI Conformance Test/image: FAIL
    OCI Conformance Test/image/pull: FAIL
      OCI Conformance Test/image/pull/blob-get: Pass
      OCI Conformance Test/image/pull/blob-get: FAIL
       - blob get failed: expected one of [200]
received 502
    OCI Conformance Test/image/delete: Pass
      OCI Conformance Test/image/delete/tag-delete: Pass
      OCI Conformance Test/image/delete/blob-delete: Disabled
`
	const counts = `
Configuration:
  registry: 127.0.0.1:1

OCI Conformance Result: FAIL
  Disabled......................:          2
  Skip..........................:          0
  Pass..........................:          3
  FAIL..........................:          1
  Error.........................:          0
  Total.........................:          6

API conformance:
  Ping..........................:       Pass
`
	const logged = `time=2026-01-01T00:00:00Z level=INFO msg="skipping test" name="OCI Conformance Test/image/delete/tag-delete" error="api Tag delete atomic is disabled"
time=2026-01-01T00:00:00Z level=INFO msg="skipping test" name="OCI Conformance Test/image/delete/blob-delete" error="api Blob delete is disabled"
time=2026-01-01T00:00:00Z level=INFO msg="passing test" name="OCI Conformance Test/ping"
`
	o, err := read(tests+counts, logged)
	want := outcome{
		passed: 3, failed: 1, skipped: 2,
		failures: []failure{{"image/pull/blob-get", "- blob get failed: expected one of [200]; received 502; "}},
		skips:    []string{"image/delete/blob-delete", "image/delete/tag-delete"},
	}
	if err != nil || !reflect.DeepEqual(o, want) {
		t.Errorf("%+v, %v", o, err)
	}
	for name, c := range map[string]struct{ report, logged string }{
		"no result":            {tests, logged},
		"a failure not named":  {strings.Replace(tests, "blob-get: FAIL", "blob-get: Pass", 1) + counts, logged},
		"a skip not named":     {tests + counts, ""},
		"less than the total":  {tests + strings.Replace(counts, "  3\n", "  2\n", 1), logged},
		"nothing at all":       {"", ""},
		"a report without end": {tests + "\nOCI Conformance Result: FAIL\n", logged},
	} {
		if o, err := read(c.report, c.logged); err == nil {
			t.Errorf("%s: %+v", name, o)
		}
	}
}
