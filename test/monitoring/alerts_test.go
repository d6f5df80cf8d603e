package monitoring

import (
	"bytes"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
)

type rule struct {
	Alert, Expr, For    string
	Labels, Annotations map[string]string
}

func readRules(t *testing.T) []rule {
	t.Helper()
	b, err := os.ReadFile(files + "alerts.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var all struct {
		Groups []struct {
			Name  string
			Rules []rule
		}
	}
	if err := yaml.UnmarshalWithOptions(b, &all, yaml.Strict()); err != nil {
		t.Fatal(err)
	}
	return all.Groups[0].Rules
}

// TestAlertsSay: each alert has a summary, a severity and a link to the runbook, and fires
// in a unit test and in the story.
func TestAlertsSay(t *testing.T) {
	t.Parallel()
	var unit, story bytes.Buffer
	for name, b := range map[string]*bytes.Buffer{"alerts_test.yaml": &unit, "story_test.go": &story} {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		b.Write(text)
	}
	const runbook = "https://github.com/cachalot-registry/cachalot/blob/main/docs/operations.md#"
	for _, r := range readRules(t) {
		if !slices.Contains([]string{"warning", "critical"}, r.Labels["severity"]) {
			t.Errorf("%s has severity %q", r.Alert, r.Labels["severity"])
		}
		if r.Annotations["summary"] == "" || r.Annotations["description"] == "" || r.Annotations["runbook_url"] != runbook+strings.ToLower(r.Alert) {
			t.Errorf("%s says %v", r.Alert, r.Annotations)
		}
		told := strings.Contains(story.String(), `"`+r.Alert+`"`) || r.Alert == "CachalotPanicked" // it needs a bug
		if !strings.Contains(unit.String(), `alertname="`+r.Alert+`"`) || !told {
			t.Errorf("%s has no test in which it fires", r.Alert)
		}
	}
}

// TestRules: promtool finds no error, and each alert behaves as in alerts_test.yaml.
func TestRules(t *testing.T) {
	t.Parallel()
	promtool := program(t, "promtool")
	for _, args := range [][]string{
		{"check", "rules", "--lint=all", "--lint-fatal", files + "alerts.yaml"},
		{"test", "rules", "alerts_test.yaml"},
	} {
		if out, err := exec.CommandContext(t.Context(), promtool, args...).CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}

// checkMetrics: promtool finds no error in a mirror's metrics.
func (s *story) checkMetrics(text []byte) {
	// Only cachalot's own; the others come from the Go library.
	own := regexp.MustCompile(`(?m)^(# \w+ )?cachalot_.*\n`).FindAll(text, -1)
	cmd := exec.CommandContext(s.t.Context(), program(s.t, "promtool"), "check", "metrics", "--extended")
	cmd.Stdin = bytes.NewReader(bytes.Join(own, nil))
	if out, err := cmd.CombinedOutput(); err != nil || len(own) == 0 {
		s.t.Errorf("promtool check metrics: %v\n%s", err, out)
	}
}
