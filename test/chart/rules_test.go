package chart

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	sigsyaml "sigs.k8s.io/yaml"
)

// rulesOf renders the PrometheusRule of a release.
func rulesOf(t *testing.T, name, values string) monitoring.PrometheusRuleSpec {
	t.Helper()
	rules := all[*monitoring.PrometheusRule](render(t, name, values))
	if len(rules) != 1 {
		t.Fatalf("%d PrometheusRules", len(rules))
	}
	return rules[0].Spec
}

// shippedRules are those of the file, which test/monitoring tests.
func shippedRules(t *testing.T) monitoring.PrometheusRuleSpec {
	t.Helper()
	file, err := os.ReadFile(filepath.Join(dir, "files/alerts.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var spec monitoring.PrometheusRuleSpec
	if err := sigsyaml.UnmarshalStrict(file, &spec); err != nil {
		t.Fatal(err)
	}
	return spec
}

// alertNames are the names of all alerts of rules.
func alertNames(spec monitoring.PrometheusRuleSpec) []string {
	var names []string
	for _, g := range spec.Groups {
		for _, r := range g.Rules {
			if r.Alert != "" {
				names = append(names, r.Alert)
			}
		}
	}
	return names
}

// alertNamed finds an alert.
func alertNamed(t *testing.T, spec monitoring.PrometheusRuleSpec, name string) monitoring.Rule {
	t.Helper()
	for _, g := range spec.Groups {
		for _, r := range g.Rules {
			if r.Alert == name {
				return r
			}
		}
	}
	t.Fatalf("no alert %s", name)
	panic("unreachable")
}

// waits is how long an alert must hold before it fires.
func waits(r monitoring.Rule) string {
	if r.For == nil {
		return ""
	}
	return string(*r.For)
}

// TestRules: a release has the rules of the file, each of which selects the targets of that
// release alone.
func TestRules(t *testing.T) {
	const plain = `job=~".*cachalot.*"`
	for values, selector := range map[string]string{
		`{metrics: {serviceMonitor: {enabled: true}, prometheusRule: {enabled: true}}}`:                                              `job="mirror-cachalot",namespace="apps"`,
		`{metrics: {podMonitor: {enabled: true}, prometheusRule: {enabled: true, grafanaURL: "https://grafana.corp/"}}}`:             `job="mirror-cachalot",namespace="apps"`,
		`{fullnameOverride: hub, metrics: {podMonitor: {enabled: true}, prometheusRule: {enabled: true}}}`:                           `job="hub",namespace="apps"`,
		`{metrics: {prometheusRule: {enabled: true, selector: 'job="pods",app=~"mirror|hub"', grafanaURL: "https://grafana.corp"}}}`: `job="pods",app=~"mirror|hub"`,
	} {
		got, want := rulesOf(t, "mirror", values), shippedRules(t)
		if len(got.Groups) != len(want.Groups) {
			t.Fatalf("%d groups", len(got.Groups))
		}
		grafana := strings.Contains(values, "grafana.corp")
		ofNodes := fmt.Sprintf(`job="%s-node",namespace=%q`, statefulSet(t, render(t, "mirror", values)).Name, namespace)
		for i, g := range want.Groups {
			for j, w := range g.Rules {
				r := got.Groups[i].Rules[j]
				expr := strings.NewReplacer(plain, selector, `job=~".*cachalot.*-node"`, ofNodes).Replace(w.Expr.StrVal)
				expr = strings.NewReplacer("0.999)", "99.9 / 100)", "0.99)", "99 / 100)").Replace(expr)
				if w.Alert != "CachalotDown" && r.Expr.StrVal != expr || w.Expr.StrVal == expr {
					t.Errorf("%s%s is\n%s\nwant\n%s", w.Alert, w.Record, r.Expr.StrVal, expr)
				}
				for _, s := range regexp.MustCompile(`\b(?:up|process_\w+|cachalot[\w:]+)(\{[^}]*\})?`).FindAllStringSubmatch(r.Expr.StrVal, -1) {
					if !strings.HasPrefix(s[1], "{"+selector) && !strings.HasPrefix(s[0], "cachalot_node_state{"+ofNodes) {
						t.Errorf("%s%s selects %s", w.Alert, w.Record, s[0])
					}
				}
				if r.Alert != w.Alert || r.Record != w.Record || fmt.Sprint(r.Labels) != fmt.Sprint(w.Labels) || waits(r) != waits(w) {
					t.Errorf("%+v, want %+v", r, w)
				}
				if w.Alert == "" {
					continue
				}
				if strings.HasPrefix(r.Annotations["dashboard_url"], "https://grafana.corp/d/cachalot?") != grafana || !strings.Contains(r.Annotations["dashboard_url"], "/d/cachalot?") {
					t.Errorf("%s: dashboard %s", r.Alert, r.Annotations["dashboard_url"])
				}
				if r.Annotations["runbook_url"] != w.Annotations["runbook_url"] || r.Annotations["summary"] != w.Annotations["summary"] {
					t.Errorf("%s says %v", r.Alert, r.Annotations)
				}
			}
		}
	}
}

// TestRuleChanges: values change each alert, and the objectives.
func TestRuleChanges(t *testing.T) {
	const enabled = "serviceMonitor: {enabled: true}, prometheusRule: {enabled: true, "
	before := rulesOf(t, "mirror", "{metrics: {"+enabled+"}}}")
	after := rulesOf(t, "mirror", "{replicas: 2, metrics: {"+enabled+`
  alerts: {CachalotStale: {enabled: false}, CachalotErrors: {for: 30m, severity: page}, CachalotDiskErrors: {for: 1h}, CachalotQuotaLow: {enabled: true}},
  slo: {availability: 99.5, latency: 95, latencySeconds: 0.25}}}}`)
	without := slices.DeleteFunc(alertNames(before), func(name string) bool { return name == "CachalotStale" })
	if got := alertNames(after); !slices.Equal(got, without) {
		t.Errorf("alerts %v, want %v", got, without)
	}
	for name, want := range map[string][2]string{
		"CachalotErrors": {"30m", "page"}, "CachalotDiskErrors": {"1h", "critical"}, "CachalotQuotaLow": {"5m", "warning"}, "CachalotSlow": {"2m", "critical"},
	} {
		a := alertNamed(t, after, name)
		if waits(a) != want[0] || a.Labels["severity"] != want[1] {
			t.Errorf("%s: for %s, labels %v, want %v", name, waits(a), a.Labels, want)
		}
	}
	text := func(spec monitoring.PrometheusRuleSpec) string {
		b, err := json.Marshal(spec)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	for what, n := range map[string]int{"(1 - 99.5 / 100)": 6, "(1 - 95 / 100)": 6, `le=\"0.25\"`: 5, "99.9": 0, `le=\"0.1\"`: 0, `absent(up{job=\"mirror-cachalot\",namespace=\"apps\",pod=\"mirror-cachalot-1\"})`: 1} {
		if got := strings.Count(text(after), what); got != n {
			t.Errorf("%s is there %d times, want %d", what, got, n)
		}
	}
	none := alertNamed(t, rulesOf(t, "mirror", "{replicas: 0, metrics: {"+enabled+"}}}"), "CachalotDown")
	if want := `up{job="mirror-cachalot",namespace="apps"} == 0`; none.Expr.StrVal != want {
		t.Errorf("without replicas: %s, want %s", none.Expr.StrVal, want)
	}
}

// TestRuleMistakes: a wrong name or value is named before anything is changed.
func TestRuleMistakes(t *testing.T) {
	for values, want := range map[string]string{
		`alerts: {CachalotFull: {enabled: false}}`: "'CachalotFull'",
		`alerts: {CachalotDown: {expr: up}}`:       "'expr'",
		`alerts: {CachalotDown: {for: soon}}`:      "/alerts/CachalotDown/for",
		`selector: job`:                            "/selector",
		`grafanaURL: grafana.corp`:                 "/grafanaURL",
		`slo: {availability: 100}`:                 "/slo/availability",
		`slo: {latencySeconds: 0.2}`:               "/slo/latencySeconds",
	} {
		_, err := tryRender(t, loadChart(t), "mirror", "{metrics: {prometheusRule: {"+values+"}}}")
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", values, err, want)
		}
	}
}

// TestRuleNames: the schema has the names of all alerts, and latencySeconds the histogram's
// buckets.
func TestRuleNames(t *testing.T) {
	file, err := os.ReadFile(filepath.Join(dir, "values.schema.json"))
	if err != nil {
		t.Fatal(err)
	}
	type properties struct {
		Properties    map[string]properties
		PropertyNames struct{ Enum []string }
		Enum          []any
	}
	var schema properties
	if err := json.Unmarshal(file, &schema); err != nil {
		t.Fatal(err)
	}
	rule := schema.Properties["metrics"].Properties["prometheusRule"].Properties
	if got, want := rule["alerts"].PropertyNames.Enum, alertNames(shippedRules(t)); !slices.Equal(got, want) {
		t.Errorf("the schema has the alerts %v, want %v", got, want)
	}
	source, err := os.ReadFile("../../proxy/metrics.go")
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile(`Buckets: \[\]float64\{(.*)\}`).FindSubmatch(source)
	if found == nil {
		t.Fatal("no buckets in proxy/metrics.go")
	}
	buckets := map[float64]bool{}
	for text := range strings.SplitSeq(string(found[1]), ", ") {
		b, err := strconv.ParseFloat(text, 64)
		if err != nil {
			t.Fatal(err)
		}
		buckets[b] = true
	}
	for _, v := range rule["slo"].Properties["latencySeconds"].Enum {
		if seconds, ok := v.(float64); !ok || !buckets[seconds] {
			t.Errorf("no bucket of %v", v)
		}
	}
}

// TestTwoReleases: of two releases with rules, only the one that has lost a pod, or that fails,
// has an alert, and only one.
func TestTwoReleases(t *testing.T) {
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		t.Skip("no promtool: apt-get install --no-install-recommends prometheus")
	}
	folder := t.TempDir()
	for _, name := range []string{"one", "two"} {
		spec := rulesOf(t, name, "{replicas: 2, metrics: {serviceMonitor: {enabled: true}, prometheusRule: {enabled: true}}}")
		text, err := sigsyaml.Marshal(spec)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(folder, name+".yaml"), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	series := func(metric, release, pod, more, values string) string {
		return fmt.Sprintf("- {series: '%s{job=\"%s-cachalot\",namespace=\"apps\",pod=\"%[2]s-cachalot-%s\",instance=\"%[2]s-cachalot-%[3]s\"%s}', values: '%s'}\n", metric, release, pod, more, values)
	}
	test := `rule_files: [one.yaml, two.yaml]
evaluation_interval: 1m
tests:
- interval: 1m
  input_series:
  ` + series("up", "one", "0", "", "1x120") +
		"  " + series("up", "one", "1", "", "1x120") +
		"  " + series("up", "two", "0", "", "1x60 _x60") + // all of it goes
		"  " + series("up", "two", "1", "", "1x9 _x111") +
		"  " + series("cachalot_requests_total", "one", "0", `,upstream="docker.io",kind="blob",result="hit"`, "0+50x120") +
		"  " + series("cachalot_requests_total", "two", "0", `,upstream="docker.io",kind="blob",result="hit"`, "0+50x50") +
		"  " + series("cachalot_requests_total", "two", "0", `,upstream="docker.io",kind="blob",result="error"`, "0x25 0+50x25") + `
  promql_expr_test:
  - {expr: 'ALERTS{alertstate="firing"}', eval_time: 12m, exp_samples: []}
  - expr: 'ALERTS{alertstate="firing"}'
    eval_time: 22m
    exp_samples:
    - {labels: 'ALERTS{alertname="CachalotDown",alertstate="firing",severity="critical",job="two-cachalot",namespace="apps",pod="two-cachalot-1"}', value: 1}
  - expr: 'ALERTS{alertstate="firing",alertname="CachalotErrors"}'
    eval_time: 40m
    exp_samples:
    - {labels: 'ALERTS{alertname="CachalotErrors",alertstate="firing",severity="critical",job="two-cachalot",namespace="apps"}', value: 1}
  - expr: 'ALERTS{alertstate="firing",alertname="CachalotDown"}'
    eval_time: 80m
    exp_samples:
    - {labels: 'ALERTS{alertname="CachalotDown",alertstate="firing",severity="critical",job="two-cachalot",namespace="apps",pod="two-cachalot-0"}', value: 1}
    - {labels: 'ALERTS{alertname="CachalotDown",alertstate="firing",severity="critical",job="two-cachalot",namespace="apps",pod="two-cachalot-1"}', value: 1}
`
	if err := os.WriteFile(filepath.Join(folder, "test.yaml"), []byte(test), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), promtool, "test", "rules", "test.yaml")
	cmd.Dir = folder
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("promtool: %v\n%s", err, out)
	}
}
