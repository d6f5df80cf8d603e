package monitoring

import (
	"encoding/json"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

const (
	files    = "../../charts/cachalot/files/"
	runbooks = "https://github.com/cachalot-registry/cachalot/blob/main/docs/operations.md#"
)

// dashboard is the part of Grafana's JSON model that the tests use.
type dashboard struct {
	UID           string  `json:"uid"`
	Title         string  `json:"title"`
	SchemaVersion int     `json:"schemaVersion"`
	Panels        []panel `json:"panels"`
	Links         []link  `json:"links"`
	Annotations   struct {
		List []struct {
			Name, Expr, TitleFormat string
			Enable                  bool
			Datasource              source
		} `json:"list"`
	} `json:"annotations"`
	Templating struct {
		List []variable `json:"list"`
	} `json:"templating"`
}

type variable struct {
	Name, AllValue, Definition string
	IncludeAll                 bool
}

type panel struct {
	ID                       int
	Type, Title, Description string
	Datasource               source
	GridPos                  struct{ H, W, X, Y int }
	Links                    []link
	Targets                  []target
	Options                  struct {
		Legend struct {
			DisplayMode string
			Calcs       []string
		}
	}
	FieldConfig struct{ Defaults struct{ Unit string } }
}

type link struct{ Title, URL string }

type source struct{ Type, UID string }

type target struct {
	RefID, Expr, LegendFormat string
	Datasource                source
	Exemplar                  bool
}

func readDashboard(t *testing.T) dashboard {
	t.Helper()
	b, err := os.ReadFile(files + "dashboard.json")
	if err != nil {
		t.Fatal(err)
	}
	var d dashboard
	if err := json.Unmarshal(b, &d); err != nil {
		t.Fatal(err)
	}
	return d
}

// substituted is a query as Grafana sends it, in the test's time scale.
func substituted(expr string) string {
	return quickly(strings.NewReplacer(
		"$cluster", ".*", "$namespace", ".*", "$job", ".*", "$instance", ".*",
		"$__rate_interval", (10 * minute).String(), "$__range", (2 * time.Minute).String(),
	).Replace(expr))
}

// TestDashboardModel: the dashboard has what Grafana needs, and each panel what users need.
func TestDashboardModel(t *testing.T) {
	t.Parallel()
	d := readDashboard(t)
	if d.UID == "" || d.Title == "" || d.SchemaVersion < 39 {
		t.Errorf("uid %q, title %q, schemaVersion %d", d.UID, d.Title, d.SchemaVersion)
	}
	var variables []string
	for _, v := range d.Templating.List {
		variables = append(variables, v.Name)
	}
	if !slices.Equal(variables, []string{"datasource", "loki", "cluster", "namespace", "job", "instance"}) {
		t.Errorf("variables %v", variables)
	}
	for _, v := range d.Templating.List[2:] { // where a label is absent, all of its values are chosen
		if !v.IncludeAll || v.AllValue != ".*" || !strings.HasPrefix(v.Definition, "label_values(cachalot_build_info") {
			t.Errorf("variable %+v", v)
		}
	}
	ids, titles, taken := map[int]bool{}, map[string]bool{}, map[[2]int]string{}
	for _, p := range d.Panels {
		if ids[p.ID] || p.ID == 0 || titles[p.Title] || p.Title == "" {
			t.Errorf("panel %d %q is there twice, or has no name", p.ID, p.Title)
		}
		ids[p.ID], titles[p.Title] = true, true
		g := p.GridPos
		if g.W < 1 || g.H < 1 || g.X < 0 || g.X+g.W > 24 {
			t.Errorf("%s is at %+v", p.Title, g)
		}
		for x := range g.W {
			for y := range g.H {
				at := [2]int{g.X + x, g.Y + y}
				if other, ok := taken[at]; ok {
					t.Fatalf("%s overlaps %s", p.Title, other)
				}
				taken[at] = p.Title
			}
		}
		if p.Type == "row" {
			continue
		}
		ours := source{"prometheus", "${datasource}"}
		if p.Description == "" || p.FieldConfig.Defaults.Unit == "" || p.Datasource != ours || len(p.Targets) == 0 {
			t.Errorf("%s has no description, unit, data source or query", p.Title)
		}
		if legend := p.Options.Legend; p.Type == "timeseries" && (legend.DisplayMode != "table" || !slices.Equal(legend.Calcs, []string{"lastNotNull", "mean", "max"})) {
			t.Errorf("%s has the legend %+v", p.Title, legend)
		}
		refs := map[string]bool{}
		for _, q := range p.Targets {
			if refs[q.RefID] || q.Datasource != ours || q.LegendFormat == "" {
				t.Errorf("%s: query %s is there twice, or has no data source or legend", p.Title, q.RefID)
			}
			refs[q.RefID] = true
			// Each metric is of the instances that were chosen. Not all alerts have an instance.
			for _, m := range regexp.MustCompile(`\b(?:cachalot_\w+|process_\w+|up|ALERTS)\b(\{[^}]*\})?`).FindAllStringSubmatch(q.Expr, -1) {
				chosen := `cluster=~"$cluster",namespace=~"$namespace",job=~"$job"`
				switch {
				case strings.HasPrefix(m[0], "cachalot_node_"): // nodes are no instances of the mirror
					chosen = `cluster=~"$cluster",namespace=~"$namespace"`
				case !strings.HasPrefix(m[0], "ALERTS"):
					chosen += `,instance=~"$instance"`
				}
				if !strings.HasSuffix(m[1], chosen+"}") {
					t.Errorf("%s: %s is of all instances", p.Title, m[0])
				}
			}
			for _, m := range regexp.MustCompile(`\$(\w+)`).FindAllStringSubmatch(q.Expr, -1) {
				if !slices.Contains([]string{"cluster", "namespace", "job", "instance", "__range", "__rate_interval"}, m[1]) {
					t.Errorf("%s: there is no variable %s", p.Title, m[0])
				}
			}
			if expr := substituted(q.Expr); strings.Contains(expr, "$") {
				t.Errorf("%s: %s is left", p.Title, expr)
			}
		}
	}
}

// TestDashboardLinks: each panel leads to the log of the chosen pods, the dashboard to the
// runbooks, and a slow request to its trace. Alerts are marks on the graphs.
func TestDashboardLinks(t *testing.T) {
	t.Parallel()
	d := readDashboard(t)
	logs := func(l link) {
		t.Helper()
		text := strings.NewReplacer("${loki}", "uid", "${namespace:pipe}", "apps", "${instance:pipe}", "a-0|a-1", "${__from}", "1", "${__to}", "2").Replace(l.URL)
		u, err := url.Parse(text)
		if err != nil || u.Path != "/explore" || strings.Contains(text, "${") {
			t.Fatalf("%s leads to %s: %v", l.Title, text, err)
		}
		var panes map[string]struct {
			Datasource string
			Queries    []struct{ Expr string }
			Range      struct{ From, To string }
		}
		if err := json.Unmarshal([]byte(u.Query().Get("panes")), &panes); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		p := panes["logs"]
		if p.Datasource != "uid" || len(p.Queries) != 1 || p.Range.From != "1" || p.Range.To != "2" ||
			!strings.HasPrefix(p.Queries[0].Expr, "{namespace=~`apps`,pod=~`a-0|a-1`,container=`cachalot`} | json") {
			t.Errorf("%s shows %+v", l.Title, p)
		}
	}
	if len(d.Links) != 2 || d.Links[0].URL != strings.TrimSuffix(runbooks, "#")+"#alerts" {
		t.Fatalf("links %v", d.Links)
	}
	logs(d.Links[1])
	exemplars := false
	for _, p := range d.Panels {
		if p.Type == "row" {
			continue
		}
		if len(p.Links) != 1 {
			t.Fatalf("%s has the links %v", p.Title, p.Links)
		}
		logs(p.Links[0])
		for _, q := range p.Targets {
			exemplars = exemplars || q.Exemplar && strings.Contains(q.Expr, "cachalot_first_byte_seconds_bucket")
		}
	}
	if !exemplars {
		t.Error("no panel shows exemplars")
	}
	marks := d.Annotations.List[len(d.Annotations.List)-1]
	const firing = `ALERTS{alertname=~"Cachalot.*",alertstate="firing",cluster=~"$cluster",namespace=~"$namespace",job=~"$job"}`
	if marks.Expr != firing || !marks.Enable || marks.TitleFormat != "{{alertname}}" || marks.Datasource != (source{"prometheus", "${datasource}"}) {
		t.Errorf("the marks are %+v", marks)
	}
}

// TestQuickly_ScalesMinutes: a minute is half a second, wherever it stands.
func TestQuickly_ScalesMinutes(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"rate(x[10m]) < 60 * 60":       "rate(x[5000ms]) < 60 * 0.5",
		"rate(x[6h]) < 24 * 60 * 60":   "rate(x[180000ms]) < 24 * 0.5 * 60",
		"  - alert: X\n    for: 5m\n":  "  - alert: X\n    for: 2500ms\n",
		`x{what="for: 5m"} * 600 > 60`: `x{what="for: 5m"} * 600 > 60`,
	} {
		if got := quickly(text); got != want {
			t.Errorf("%q becomes %q, want %q", text, got, want)
		}
	}
}
