// Command hitratio prints a Markdown table of hit ratios of eviction policies, for a
// generated trace or for files of the FAST 2018 docker-registry traces.
//
//	go run ./test/trace/hitratio -seed 1 -scan 15
//	go run ./test/trace/hitratio prod-dal09-logstash-2017.06.20-*.json
package main

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"io"
	"iter"
	"math"
	"os"
	"slices"
	"strings"

	"github.com/cachalot-registry/cachalot/test/trace"
)

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "hitratio:", err)
		os.Exit(1)
	}
}

func run(args []string, out io.Writer) error {
	flags := flag.NewFlagSet("hitratio", flag.ContinueOnError)
	seed := flags.Uint64("seed", 1, "of the generated trace")
	days := flags.Int("days", 30, "of the generated trace")
	burst := flags.Float64("burst", 3, "clients that a job of the generated trace has on average")
	scan := flags.Int("scan", 0, "the day on which somebody pulls everything; 0: none")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		requests, err := read(flags.Args())
		if err != nil {
			return err
		}
		return table(slices.Values(requests), out)
	}
	w := trace.DefaultWorkload(*seed)
	w.Days, w.Scan = *days, *scan
	w.Jobs, w.Burst = int(float64(w.Jobs)*w.Burst/max(*burst, 1)), *burst // the number of clients stays the same
	if err := w.Validate(); err != nil {
		return err
	}
	return table(w.Requests(), out)
}

// read reads all files, which overlap and are not sorted.
func read(names []string) ([]trace.Request, error) {
	var requests []trace.Request
	// The size of a blob that was read in ranges or in part is the largest size seen.
	sizes := make(map[uint64]int64)
	for _, name := range names {
		f, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		err = trace.ReadFAST18(f, func(r trace.Request) bool {
			requests = append(requests, r)
			sizes[r.Key] = max(sizes[r.Key], r.Size)
			return true
		})
		_ = f.Close() // only read
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	for i := range requests {
		requests[i].Size = sizes[requests[i].Key]
	}
	slices.SortStableFunc(requests, func(a, b trace.Request) int { return cmp.Compare(a.Time, b.Time) })
	return requests, nil
}

func table(requests iter.Seq[trace.Request], out io.Writer) error {
	const week = 7 * 24 * 60 * 60
	replay := func(p func(int64) trace.Policy) func(int64) trace.Result {
		return func(capacity int64) trace.Result { return trace.Replay(requests, p(capacity)) }
	}
	rows := []struct {
		name string
		of   func(capacity int64) trace.Result
	}{
		{"no policy exceeds", func(capacity int64) trace.Result { return trace.Bound(requests, capacity) }},
		{"LRU", replay(trace.LRU)},
		{"TTL, 7 days from the first fetch", replay(func(capacity int64) trace.Policy { return trace.TTL(capacity, week) })},
		{"LRU, small last", replay(trace.ClassedLRU)},
		{"SIEVE", replay(trace.SIEVE)},
		{"S3-FIFO", replay(trace.S3FIFO)},
		{"W-TinyLFU, size-aware", replay(trace.TinyLFU)},
		{"GDSF", replay(trace.GDSF)},
		{"LFU-DA", replay(trace.LFUDA)},
		{"2Q, small last", replay(trace.TwoQ)},
	}
	unique := trace.UniqueBytes(requests)
	all := rows[0].of(math.MaxInt64)
	_, err := fmt.Fprintf(out, "%d requests for %d GB, of which %d GB differ; with room for all: %.1f %% of bytes, %.1f %% of requests.\n\n"+
		"| byte / object hit ratio, %% | 1 %% | 5 %% | 10 %% | 25 %% |\n|---|---|---|---|---|\n",
		all.Objects, all.Bytes/1e9, unique/1e9, 100*all.ByteRatio(), 100*all.ObjectRatio())
	for _, row := range rows {
		line := []string{row.name}
		for _, percent := range []int64{1, 5, 10, 25} {
			res := row.of(unique * percent / 100)
			line = append(line, fmt.Sprintf("%.1f / %.1f", 100*res.ByteRatio(), 100*res.ObjectRatio()))
		}
		if err == nil {
			_, err = fmt.Fprintln(out, "| "+strings.Join(line, " | ")+" |")
		}
	}
	return err
}
