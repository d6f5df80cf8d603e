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

// look asks each panel's queries, and returns what the panels show.
func (s *story) look() map[string]string {
	shown := map[string]string{}
	for _, p := range s.dashboard.Panels {
		var values []string
		for i, q := range p.Targets {
			for _, v := range s.prom.query(s.t, substituted(q.Expr)) {
				if math.IsNaN(v.value) {
					continue
				}
				s.seen[[2]int{p.ID, i}] = true
				values = append(values, legend(q.LegendFormat, v.labels)+" "+format(p.FieldConfig.Defaults.Unit, v.value))
			}
		}
		slices.Sort(values)
		shown[p.Title] = strings.Join(values, "<br>")
	}
	return shown
}

// legend is Grafana's, of a series.
func legend(text string, labels map[string]string) string {
	return regexp.MustCompile(`\{\{(\w+)\}\}`).ReplaceAllStringFunc(text, func(name string) string {
		return labels[strings.Trim(name, "{}")]
	})
}

// format writes a value as Grafana does for a unit, more or less.
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

// tabled are the panels that the table has, with what is left of their legends.
func tabled() []string {
	return []string{
		"Bytes saved, share", "Requests saved, share", "Errors to clients, share", "Bytes", "Asked", "Failed requests, share",
		"Stale answers", "Pulls left", "Time to the limit", "Disk used", "Disk free", "Age of what is removed for others",
		"Downloads", "Downloads that went wrong", "Connections of clients",
	}
}

// table is the story as Markdown: a line for each chapter's alerts, and what
// some of the panels showed at its end.
func (s *story) table() string {
	var b strings.Builder
	host := regexp.MustCompile(`127\.0\.0\.1:\d+(: )?`)
	b.WriteString("| chapter | alerts that fire at its end |\n|---|---|\n")
	for _, c := range s.chapters {
		alerts := strings.Join(c.alerts, ", ")
		if alerts == "" {
			alerts = "none"
		}
		fmt.Fprintf(&b, "| %s | %s |\n", c.title, alerts)
	}
	b.WriteString("\n| panel |")
	for _, c := range s.chapters {
		fmt.Fprintf(&b, " %s |", c.title)
	}
	b.WriteString("\n|---|" + strings.Repeat("---|", len(s.chapters)) + "\n")
	for _, title := range tabled() {
		fmt.Fprintf(&b, "| %s |", title)
		for _, c := range s.chapters {
			fmt.Fprintf(&b, " %s |", host.ReplaceAllString(c.panels[title], ""))
		}
		b.WriteString("\n")
	}
	return b.String()
}
