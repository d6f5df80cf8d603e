package monitoring

import (
	"fmt"
	"math"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
)

// look runs each panel's queries, and returns the panels' values that are not 0.
func (s *story) look() map[string][]string {
	shown := map[string][]string{}
	for _, p := range s.dashboard.Panels {
		var values []string
		for i, q := range p.Targets {
			for _, v := range s.prom.query(s.t, substituted(q.Expr)) {
				if math.IsNaN(v.value) {
					continue
				}
				s.seen[[2]int{p.ID, i}] = true
				if text := format(p.FieldConfig.Defaults.Unit, v.value); v.value != 0 || p.FieldConfig.Defaults.Unit == "none" {
					values = append(values, strings.TrimSpace(legend(q.LegendFormat, v.labels)+" "+text))
				}
			}
		}
		slices.Sort(values)
		shown[p.Title] = values
	}
	return shown
}

// legend is a series' legend as in Grafana.
func legend(text string, labels map[string]string) string {
	return regexp.MustCompile(`\{\{\w+\}\}`).ReplaceAllStringFunc(strings.TrimPrefix(text, "{{instance}}: "), func(name string) string {
		if name == "{{instance}}" {
			return "" // there is only one
		}
		return labels[strings.Trim(name, "{}")]
	})
}

// format formats a value about as Grafana does for its unit.
func format(unit string, v float64) string {
	switch unit {
	case "percentunit":
		return fmt.Sprintf("%.0f %%", 100*v)
	case "bytes", "Bps":
		text := humanize.IBytes(uint64(math.Abs(v)))
		if v < 0 {
			text = "-" + text
		}
		if unit == "Bps" {
			text += "/s"
		}
		return text
	case "s":
		d := time.Duration(v * float64(time.Second))
		if d < time.Second {
			return fmt.Sprintf("%.1f ms", 1000*v)
		}
		return d.Round(time.Second).String()
	case "reqps", "ops":
		return fmt.Sprintf("%.2g/s", v)
	default:
		return fmt.Sprintf("%.3g", v)
	}
}

// tabled are the panels in the table.
func tabled() []string {
	return []string{
		"Bytes saved, share", "Errors to clients, share", "Failed requests to registries, share", "Stale answers and missing credentials", "Pulls left of a registry's limit",
		"Time to a registry's limit",
		"Disk used", "Disk free", "Age of what is evicted for space", "Downloads that went wrong",
	}
}

// table is the story as Markdown: a row per chapter, with the alerts that fired by its end,
// and values of some panels that are not 0.
func (s *story) table() string {
	var b strings.Builder
	b.WriteString("| | alerts |")
	for _, title := range tabled() {
		b.WriteString(" " + title + " |")
	}
	b.WriteString("\n|---|---|" + strings.Repeat("---|", len(tabled())) + "\n")
	for _, c := range s.chapters {
		fmt.Fprintf(&b, "| %s | %s |", c.title, strings.Join(c.alerts, "<br>"))
		for _, title := range tabled() {
			fmt.Fprintf(&b, " %s |", strings.Join(c.panels[title], "<br>"))
		}
		b.WriteString("\n")
	}
	return b.String()
}
