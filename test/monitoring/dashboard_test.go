package monitoring

import (
	"encoding/json"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

const files = "../../charts/cachalot/files/"

// dashboard is the part of Grafana's JSON model that the tests use.
type dashboard struct {
	UID           string  `json:"uid"`
	Title         string  `json:"title"`
	SchemaVersion int     `json:"schemaVersion"`
	Panels        []panel `json:"panels"`
	Templating    struct {
		List []struct{ Name, Type, Query, Definition any } `json:"list"`
	} `json:"templating"`
}

type panel struct {
	ID                       int
	Type, Title, Description string
	Datasource               source
	GridPos                  struct{ H, W, X, Y int }
	Targets                  []target
	FieldConfig              struct{ Defaults struct{ Unit string } }
}

type source struct{ Type, UID string }

type target struct {
	RefID, Expr, LegendFormat string
	Datasource                source
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
		"$job", ".*", "$instance", ".*",
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
		variables = append(variables, v.Name.(string))
	}
	if !slices.Equal(variables, []string{"datasource", "job", "instance"}) {
		t.Errorf("variables %v", variables)
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
		refs := map[string]bool{}
		for _, q := range p.Targets {
			if refs[q.RefID] || q.Datasource != ours || q.LegendFormat == "" {
				t.Errorf("%s: query %s is there twice, or has no data source or legend", p.Title, q.RefID)
			}
			refs[q.RefID] = true
			// Each metric is limited to the selected instances.
			for _, m := range regexp.MustCompile(`(?:cachalot|process)_\w+(\{[^}]*\})?`).FindAllStringSubmatch(q.Expr, -1) {
				if !strings.Contains(m[1], `job=~"$job",instance=~"$instance"`) {
					t.Errorf("%s: %s is of all instances", p.Title, m[0])
				}
			}
			for _, m := range regexp.MustCompile(`\$(\w+)`).FindAllStringSubmatch(q.Expr, -1) {
				if !slices.Contains([]string{"job", "instance", "__range", "__rate_interval"}, m[1]) {
					t.Errorf("%s: there is no variable %s", p.Title, m[0])
				}
			}
			if expr := substituted(q.Expr); strings.Contains(expr, "$") {
				t.Errorf("%s: %s is left", p.Title, expr)
			}
		}
	}
}

// TestQuickly_ScalesMinutes: a minute becomes half a second, in ranges, "for" and thresholds.
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
