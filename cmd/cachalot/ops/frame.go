package ops

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cachalot-registry/cachalot/proxy/admin"
	"github.com/dustin/go-humanize"
)

const headerLines = 5 // of a frame, with the empty one after it

// frame draws the sample now: with rates since the sample before, if there is one, and with
// trouble, if the mirror does not answer. It fits into width and height; 0: no limit.
func frame(at string, now looked, before *looked, trouble string, width, height int) []byte {
	var took time.Duration
	if before == nil || before.stats.Started != now.stats.Started {
		before = &looked{}
	} else {
		took = now.stats.Now.Sub(before.stats.Now)
	}
	upstreams := upstreamLines(now, before, took)
	meterWidth := 20
	if width > 0 && width < 110 {
		meterWidth = 8
	}
	fills := fillLines(now, before, took, meterWidth)
	if height > 0 {
		left := max(height-headerLines-1, 2) // less the empty line between
		// Upstreams get at least half of the lines, downloads the rest.
		part := max(left-len(fills), left/2)
		upstreams = fit(upstreams, part)
		fills = fit(fills, left-len(upstreams))
	}
	lines := slices.Concat(header(at, now, before, took, trouble), []string{""}, upstreams, []string{""}, fills)
	if height > 0 && len(lines) > height {
		lines = lines[:height]
	}
	var b bytes.Buffer
	for _, line := range lines {
		if runes := []rune(line); width > 0 && len(runes) > width {
			line = string(runes[:width])
		}
		b.WriteString(strings.TrimRight(line, " ") + "\n")
	}
	return b.Bytes()
}

// fit cuts lines to height, and says in the last one how many it left out.
func fit(lines []string, height int) []string {
	if len(lines) <= height || height < 1 {
		return lines[:min(len(lines), max(height, 0))]
	}
	return append(slices.Clone(lines[:height-1]), fmt.Sprintf("and %d more", len(lines)-height+1))
}

func header(at string, now looked, before *looked, took time.Duration, trouble string) []string {
	st, was := now.stats, before.stats.Traffic
	t := st.Traffic
	first := fmt.Sprintf("cachalot %s at %s, started %s; %s UTC", st.Version, at, when(st.Started, st.Now), st.Now.UTC().Format(time.TimeOnly))
	if trouble != "" {
		first = "NO ANSWER: " + trouble
	}
	var grown admin.TrafficStats
	if took > 0 {
		grown = admin.TrafficStats{Requests: t.Requests - was.Requests, Results: map[string]int64{"hit": hits(t) - hits(was)}}
	}
	return []string{
		safe(first),
		fmt.Sprintf("Stored %s", stored(st.Storage)),
		fmt.Sprintf("Total  %s requests, %s hit; %s served, %s fetched, %s", humanize.Comma(t.Requests), percent(hits(t), t.Requests),
			size(t.ServedBytes), size(t.FetchedBytes), saved(t)),
		fmt.Sprintf("Now    %s requests, %s hit; %s served, %s fetched; %d of %d downloads", perSecond(t.Requests, was.Requests, took, number),
			percent(hits(grown), grown.Requests), perSecond(t.ServedBytes, was.ServedBytes, took, size), perSecond(t.FetchedBytes, was.FetchedBytes, took, size),
			st.Fills.Running, st.Fills.Limit),
	}
}

// aligned returns the lines of a table.
func aligned(fill func(t *table), columns ...string) []string {
	var b bytes.Buffer
	t := newTable(&b, columns...)
	fill(t)
	_ = t.end() // a buffer does not fail
	return strings.Split(strings.TrimSuffix(b.String(), "\n"), "\n")
}

// upstreamLines returns the upstreams that are not ok first, then those with the most requests.
func upstreamLines(now looked, before *looked, took time.Duration) []string {
	was := map[string]admin.UpstreamStats{}
	for _, u := range before.stats.Upstreams {
		was[u.Name] = u
	}
	all := slices.Clone(now.stats.Upstreams)
	well := func(u admin.UpstreamStats) int {
		if s := now.upstreams[u.Name].State; s != "" && s != "ok" {
			return 0
		}
		return 1
	}
	slices.SortStableFunc(all, func(a, b admin.UpstreamStats) int {
		return cmp.Or(cmp.Compare(well(a), well(b)), cmp.Compare(b.Requests-was[b.Name].Requests, a.Requests-was[a.Name].Requests),
			cmp.Compare(b.Requests, a.Requests), cmp.Compare(a.Name, b.Name))
	})
	return aligned(func(t *table) {
		for _, u := range all {
			h, w := now.upstreams[u.Name], was[u.Name]
			t.row(u.Name, orDash(h.State), h.Downloads, perSecond(u.Requests, w.Requests, took, number), perSecond(u.ServedBytes, w.ServedBytes, took, size),
				perSecond(u.FetchedBytes, w.FetchedBytes, took, size), quota(h, now.stats.Now))
		}
	}, "UPSTREAM", "STATE", "DOWNLOADS", "REQUESTS", "SERVED", "FETCHED", "PULLS LEFT")
}

// fillLines returns the downloads. A narrow terminal cuts off the last columns, the least
// important.
func fillLines(now looked, before *looked, took time.Duration, meterWidth int) []string {
	if len(now.fills) == 0 {
		return []string{"No downloads."}
	}
	was := map[string]admin.FillAnswer{}
	for _, f := range before.fills {
		was[string(f.Digest)] = f
	}
	return aligned(func(t *table) {
		for _, f := range now.fills {
			rate := "-"
			if w, ok := was[string(f.Digest)]; ok && w.Started.Equal(f.Started) {
				rate = perSecond(f.Done, w.Done, took, size)
			}
			t.row(f.Name, f.State, meter(f, meterWidth), done(f), rate, f.Readers, short(f.Digest))
		}
	}, "DOWNLOAD OF", "STATE", "", "DONE", "RATE", "READERS", "DIGEST")
}

func done(f admin.FillAnswer) string {
	if f.Size == nil {
		return size(f.Done)
	}
	return size(f.Done) + " of " + size(*f.Size)
}

func meter(f admin.FillAnswer, width int) string {
	if f.Size == nil || *f.Size <= 0 {
		return "[" + strings.Repeat("?", width) + "]"
	}
	n := int(min(max(f.Done, 0), *f.Size) * int64(width) / *f.Size)
	return "[" + strings.Repeat("#", n) + strings.Repeat(".", width-n) + "]"
}
