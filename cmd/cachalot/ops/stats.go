package ops

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/cachalot-registry/cachalot/proxy/admin"
	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"
)

func newStats() *cobra.Command {
	a := &asking{}
	return a.flags(&cobra.Command{
		Use:   "stats",
		Short: "Show what is stored, and what that saves",
		Long: `stats shows what a running mirror stores and may store, the requests and bytes since
it started, and how many bytes it did not have to fetch. Then it shows the same by
upstream, with its state and the rest of its rate limit.

A hit is a request answered without its own download.`,
		Example: `  cachalot stats
  cachalot stats --output json | jq .traffic.saved_bytes`,
		Args: cobra.NoArgs,
		RunE: a.run(func(cmd *cobra.Command, _ []string, c *client) error {
			body, err := c.get(cmd.Context(), "stats", nil)
			if err != nil {
				return err
			}
			if a.output.json() {
				return showJSON(cmd.OutOrStdout(), body)
			}
			var st admin.StatsAnswer
			if err := c.read(body, &st); err != nil {
				return err
			}
			health, err := c.upstreams(cmd.Context())
			if err != nil {
				return err
			}
			return showStats(cmd.OutOrStdout(), c.base.String(), st, health)
		}),
	})
}

// upstreams returns the states of the mirror's upstreams, by name.
func (c *client) upstreams(ctx context.Context) (map[string]admin.UpstreamAnswer, error) {
	body, err := c.get(ctx, "upstreams", nil)
	if err != nil {
		return nil, err
	}
	var answer admin.UpstreamsAnswer
	if err := c.read(body, &answer); err != nil {
		return nil, err
	}
	byName := map[string]admin.UpstreamAnswer{}
	for _, u := range answer.Upstreams {
		byName[u.Name] = u
	}
	return byName, nil
}

func showStats(w io.Writer, at string, st admin.StatsAnswer, health map[string]admin.UpstreamAnswer) error {
	t := newTable(w)
	t.row("Mirror", fmt.Sprintf("cachalot %s at %s, started %s", st.Version, at, when(st.Started, st.Now)))
	t.row("Stored", stored(st.Storage))
	t.row("Disk", fmt.Sprintf("%s free of %s; %s of it stay free", size(st.Storage.DiskFreeBytes), size(st.Storage.DiskBytes), size(st.Storage.MinFreeBytes)))
	if n := st.Storage.QuarantineBytes; n > 0 {
		t.row("Damaged", size(n)+" in quarantine")
	}
	t.row("Requests", fmt.Sprintf("%s, of which %s hit", humanize.Comma(st.Traffic.Requests), percent(hits(st.Traffic), st.Traffic.Requests)))
	t.row("Bytes", fmt.Sprintf("%s served, %s fetched: %s", size(st.Traffic.ServedBytes), size(st.Traffic.FetchedBytes), saved(st.Traffic)))
	t.row("Downloads", fmt.Sprintf("%d running, at most %d at once", st.Fills.Running, st.Fills.Limit))
	if err := t.end(); err != nil {
		return err
	}
	if _, err := fmt.Fprintln(w); err != nil {
		return err
	}
	t = newTable(w, "UPSTREAM", "STATE", "PULLS LEFT", "REPOSITORIES", "TAGS", "BLOBS", "ON DISK", "REQUESTS", "HIT", "SERVED", "FETCHED", "SAVED")
	for _, u := range st.Upstreams {
		h := health[u.Name]
		t.row(u.Name, orDash(h.State), quota(h, st.Now), humanize.Comma(u.Repositories), humanize.Comma(u.Tags), humanize.Comma(u.Blobs), size(u.Bytes),
			humanize.Comma(u.Requests), percent(hits(u.TrafficStats), u.Requests), size(u.ServedBytes), size(u.FetchedBytes), percent(max(u.SavedBytes, 0), u.ServedBytes))
	}
	return t.end()
}

func stored(s admin.StorageStats) string {
	text := fmt.Sprintf("%s in %s", size(s.Bytes), things(s.Blobs, "blob"))
	if s.LimitBytes > 0 {
		text += fmt.Sprintf(", %s of the limit of %s", percent(s.Bytes, s.LimitBytes), size(s.LimitBytes))
	}
	if !s.Counted {
		text += "; still counting"
	}
	return text
}

// saved says how many bytes were not fetched; none while more was fetched than served.
func saved(t admin.TrafficStats) string {
	if t.SavedBytes <= 0 {
		return "none saved yet"
	}
	return fmt.Sprintf("%s (%s) saved", size(t.SavedBytes), percent(t.SavedBytes, t.ServedBytes))
}

// hits counts responses that needed no download of their own, as the dashboard does.
func hits(t admin.TrafficStats) int64 {
	return t.Results["hit"] + t.Results["revalidated"] + t.Results["collapsed"] + t.Results["stale"]
}

// quota says what is left of an upstream's rate limit, by account. Accounts without a limit are
// left out.
func quota(u admin.UpstreamAnswer, now time.Time) string {
	var left []string
	for _, url := range u.URLs {
		for _, a := range url.Accounts {
			if a.Limit == nil || a.Remaining == nil {
				continue
			}
			text := fmt.Sprintf("%d of %d", *a.Remaining, *a.Limit)
			if a.Key != "" {
				text = a.Name + ": " + text
			}
			if a.RestingUntil.After(now) {
				text += ", again " + when(a.RestingUntil, now)
			}
			left = append(left, text)
		}
	}
	return orDash(strings.Join(left, "; "))
}

func orDash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}
