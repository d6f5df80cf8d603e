package monitoring

import (
	"bytes"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
)

// rule is an alert, or records a series.
type rule struct {
	Alert, Record, Expr, For string
	Labels, Annotations      map[string]string
}

func readRules(t *testing.T) (alerts, records []rule) {
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
	for _, g := range all.Groups {
		for _, r := range g.Rules {
			if r.Alert != "" {
				alerts = append(alerts, r)
			} else {
				records = append(records, r)
			}
		}
	}
	return alerts, records
}

// untold are the alerts that no story makes fire, and why.
func untold() map[string]string {
	return map[string]string{
		"CachalotPanicked":     "it takes a bug",
		"CachalotSlow":         "it takes a slow disk",
		"CachalotSlowPersists": "it takes a slow disk",
	}
}

// TestAlertsSay: each alert says what is wrong, how bad it is and where to read
// on, and is in a unit test, in the story and in the runbooks.
func TestAlertsSay(t *testing.T) {
	t.Parallel()
	var unit, story, book bytes.Buffer
	for name, b := range map[string]*bytes.Buffer{"alerts_test.yaml": &unit, "slo_test.yaml": &unit, "story_test.go": &story, "../../docs/operations.md": &book} {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		b.Write(text)
	}
	alerts, _ := readRules(t)
	for _, r := range alerts {
		if !slices.Contains([]string{"warning", "critical"}, r.Labels["severity"]) {
			t.Errorf("%s has severity %q", r.Alert, r.Labels["severity"])
		}
		if r.Annotations["summary"] == "" || r.Annotations["description"] == "" || r.Annotations["runbook_url"] != runbooks+strings.ToLower(r.Alert) {
			t.Errorf("%s says %v", r.Alert, r.Annotations)
		}
		told := strings.Contains(story.String(), `"`+r.Alert+`"`) || untold()[r.Alert] != ""
		if !strings.Contains(unit.String(), `alertname="`+r.Alert+`"`) || !told {
			t.Errorf("%s has no test in which it fires", r.Alert)
		}
		if !strings.Contains(book.String(), "\n### "+r.Alert+"\n") {
			t.Errorf("%s has no runbook", r.Alert)
		}
	}
}

// TestAlertPanels: each alert leads to a panel that shows what it is about.
func TestAlertPanels(t *testing.T) {
	t.Parallel()
	alerts, records := readRules(t)
	recorded := map[string]string{}
	for _, r := range records {
		recorded[r.Record] = r.Expr
	}
	metrics := func(expr string) (names []string) {
		expr = regexp.MustCompile(`\bcachalot:[\w:]+`).ReplaceAllStringFunc(expr, func(name string) string { return recorded[name] })
		return regexp.MustCompile(`\b(?:cachalot_\w+|process_\w+|up)\b`).FindAllString(expr, -1)
	}
	shown := map[int]string{}
	for _, p := range readDashboard(t).Panels {
		for _, q := range p.Targets {
			shown[p.ID] += q.Expr + "\n"
		}
	}
	link := regexp.MustCompile(`^/d/cachalot\?var-namespace=\{\{ \$labels\.namespace \}\}&var-job=\{\{ \$labels\.job \}\}&viewPanel=(\d+)$`)
	for _, r := range alerts {
		found := link.FindStringSubmatch(r.Annotations["dashboard_url"])
		if found == nil {
			t.Errorf("%s leads to %q", r.Alert, r.Annotations["dashboard_url"])
			continue
		}
		id, err := strconv.Atoi(found[1])
		if err != nil {
			t.Fatal(err)
		}
		if !slices.ContainsFunc(metrics(r.Expr), func(name string) bool { return slices.Contains(metrics(shown[id]), name) }) {
			t.Errorf("%s leads to panel %d, which shows none of %v", r.Alert, id, metrics(r.Expr))
		}
	}
}

// TestRuleSelectors: each selector names the job, which the chart replaces.
func TestRuleSelectors(t *testing.T) {
	t.Parallel()
	alerts, records := readRules(t)
	for _, r := range slices.Concat(alerts, records) {
		for _, s := range regexp.MustCompile(`\b(?:cachalot[_:][\w:]+|process_\w+|up)\b(\{[^}]*\})?`).FindAllStringSubmatch(r.Expr, -1) {
			if !strings.HasPrefix(s[1], `{job=~".*cachalot.*"`) && !strings.HasPrefix(s[0], `cachalot_node_state{job=~".*cachalot.*-node"`) {
				t.Errorf("%s%s: %s is of all jobs", r.Alert, r.Record, s[0])
			}
		}
	}
}

// TestRules: promtool finds no error, and each alert behaves as in its unit tests.
func TestRules(t *testing.T) {
	t.Parallel()
	promtool := program(t, "promtool")
	for _, args := range [][]string{
		{"check", "rules", "--lint=all", "--lint-fatal", files + "alerts.yaml"},
		{"test", "rules", "alerts_test.yaml", "slo_test.yaml"},
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
