package main

import (
	"context"
	"fmt"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
	"golang.org/x/sync/errgroup"
)

// storm is many clients that pull the same cold image at once.
type storm struct {
	clients int
	// rivals is the number of clients for a rival. Distribution downloads the image for
	// nearly each client, which takes long.
	rivals int
	sizes  []int
}

const stormTitle = "200 clients, one cold image of 64 MiB, at 100 MB/s"

func theStorm() storm {
	return storm{clients: 200, rivals: 50, sizes: []int{32 * mib, 16 * mib, 16 * mib}}
}

// pull runs this many clients at once, and returns when the last is done.
func (s storm) pull(clients int) func(context.Context, *rival) (pulled, error) {
	return func(ctx context.Context, r *rival) (pulled, error) {
		begin := time.Now()
		var bytes atomic.Int64
		group, ctx := errgroup.WithContext(ctx)
		for range clients {
			group.Go(func() error {
				p := newPuller(r.url) // its own connections
				p.buffer = 128 << 10
				done, err := p.pull(ctx)
				bytes.Add(done.bytes)
				return err
			})
		}
		err := group.Wait()
		return pulled{bytes: bytes.Load(), wall: time.Since(begin)}, err
	}
}

func (s storm) run(ctx context.Context, b *bench) ([]row, error) {
	b.say("%s: starting the upstream", stormTitle)
	up, err := b.startUpstream(ctx, upstreamOptions{rate: realisticRate}, ImageSpec{Seed: 3, Sizes: b.divided(s.sizes)})
	if err != nil {
		return nil, err
	}
	defer up.stop()
	s.clients, s.rivals = max(s.clients/b.divide, 2), max(s.rivals/b.divide, 2)
	ours := b.kinds[0]
	b.say("%s: %s", stormTitle, ours.name)
	// A bound must hold each time, so the worst sample counts.
	mine, err := repeat(ctx, min(b.pairs, 3), func(ctx context.Context) (sample, error) {
		return b.afresh(ctx, ours, up, s.pull(s.clients))
	})
	if err != nil {
		return nil, err
	}
	rows := s.rows(mine)
	for _, k := range b.kinds[1:] {
		if k.static {
			continue
		}
		b.say("%s: %s, with %d clients", stormTitle, k.name, s.rivals)
		theirs, err := b.afresh(ctx, k, up, s.pull(s.rivals))
		if err != nil {
			b.note("%s: %s with %d clients: %v", stormTitle, k.name, s.rivals, err)
			continue
		}
		more := s.rows(mine)
		for i, r := range s.rows([]sample{theirs}) {
			more[i].rival, more[i].theirs = fmt.Sprintf("%s, %d clients", k.name, s.rivals), r.ours
		}
		if rows[0].rival == "" {
			rows = nil
		}
		rows = append(rows, more...)
	}
	return rows, nil
}

// rows are the worst figures of the samples.
func (s storm) rows(samples []sample) []row {
	worst := func(of func(sample) float64) float64 {
		var figures []float64
		for _, x := range samples {
			figures = append(figures, of(x))
		}
		return spreadOf(figures).most
	}
	count := func(measure string, limit int, of func(Counted) int) row {
		n := worst(func(x sample) float64 { return float64(of(x.counted)) })
		return row{
			work: stormTitle, measure: measure, ours: strconv.Itoa(int(n)),
			goal: fmt.Sprintf("<= %d", limit), verdict: judge(int(n) <= limit),
		}
	}
	requests := count("requests for blobs", 0, func(c Counted) int { return c.Requests[upstreamtest.GetBlob] })
	requests.goal, requests.verdict = "", noGoal // a long blob comes in several requests
	fetched := bytesRow(stormTitle, samples, "", nil)
	peak := worst(func(x sample) float64 { return float64(x.peak) / mib })
	return []row{
		fetched,
		count("tokens", 1, func(c Counted) int { return c.Requests[upstreamtest.Token] }),
		count("HEADs of manifests", 1, func(c Counted) int { n, _ := c.manifests(); return n }),
		count("GETs of manifests", 2, func(c Counted) int { _, n := c.manifests(); return n }),
		requests,
		{
			work: stormTitle, measure: "peak memory", ours: figure(peak, "MiB"), goal: "<= 100 MiB", verdict: judge(peak <= 100),
		},
		{work: stormTitle, measure: "wall", ours: figure(worst(func(x sample) float64 { return x.wall.Seconds() }), "s")},
		{work: stormTitle, measure: "CPU", ours: figure(worst(func(x sample) float64 { return x.cpu.Seconds() / float64(x.bytes) * gib }), "s/GiB served")},
	}
}
