package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// realisticRate is the bandwidth to a registry, in bytes a second.
const realisticRate = 100e6

// cold is one client's pull of content that is not stored. Each measurement uses a new
// process with an empty folder that has pulled another image before.
type cold struct {
	name, title string
	upstream    upstreamOptions
	sizes       []int // of layers
	metrics     []metric
	withCaches  bool // compare with distribution too, not only with a direct pull
}

const direct = "direct"

func milliseconds(name string, of func(sample) time.Duration) metric {
	return metric{name: name, unit: "ms", difference: true, of: func(s sample) float64 { return of(s).Seconds() * 1e3 }}
}

func seconds(name string, of func(sample) time.Duration) metric {
	return metric{name: name, unit: "s", of: func(s sample) float64 { return of(s).Seconds() }}
}

func coldWorks() []cold {
	image := []int{16 * mib, 96 * mib, 32 * mib, 64 * mib, 48 * mib}
	first := []metric{
		milliseconds("first byte, from its request", func(s sample) time.Duration { return s.pulled.blob }),
		milliseconds("first byte, from the start", func(s sample) time.Duration { return s.pulled.first }).withGoal(5, direct),
	}
	wall := seconds("wall", wallOf)
	return []cold{
		{
			name: "cold", title: "cold pull, 256 MiB at 100 MB/s", sizes: image, withCaches: true,
			upstream: upstreamOptions{rate: realisticRate}, metrics: append([]metric{wall.withGoal(1.02, direct)}, first...),
		},
		{
			name: "cold-fast", title: "cold pull, 256 MiB, no limit", sizes: image, withCaches: true,
			metrics: append([]metric{wall}, first...),
		},
		{
			name: "slow-cdn", title: "cold blob, 128 MiB, CDN of 16 MiB/s a connection", sizes: []int{128 * mib},
			upstream: upstreamOptions{cdn: true, each: 16 * mib}, metrics: []metric{wall.withGoal(0.333, direct)},
		},
	}
}

func (w cold) run(ctx context.Context, b *bench) ([]row, error) {
	b.say("%s: starting the upstream", w.title)
	up, err := b.startUpstream(ctx, w.upstream, ImageSpec{Seed: 2, Sizes: b.divided(w.sizes)})
	if err != nil {
		return nil, err
	}
	defer up.stop()
	pull := func(verify bool) func(context.Context, *rival) (pulled, error) {
		return func(ctx context.Context, r *rival) (pulled, error) {
			p := newPuller(r.url)
			p.verify = verify
			return p.pull(ctx)
		}
	}
	straight := func(ctx context.Context) (sample, error) {
		done, err := pull(false)(ctx, &rival{name: direct, url: up.URL})
		return sample{wall: done.wall, bytes: done.bytes, pulled: done}, err
	}
	through := func(k kind, verify bool) measurement {
		return func(ctx context.Context) (sample, error) { return b.afresh(ctx, k, up, pull(verify)) }
	}
	others := []struct {
		name string
		run  measurement
	}{{direct, straight}}
	ours := b.kinds[0]
	checked := []measurement{through(ours, true)}
	for _, k := range b.kinds[1:] {
		if !k.static && (w.withCaches || k.again) {
			others = append(others, struct {
				name string
				run  measurement
			}{k.name, through(k, false)})
			checked = append(checked, through(k, true))
		}
	}
	// One run without a clock checks the bytes, and takes the slow first run.
	for _, m := range append(checked, straight) {
		if _, err := m(ctx); err != nil {
			return nil, err
		}
	}
	var rows []row
	var mine, theirs []sample // of the rival whose upstream bytes are reported
	var counted string
	for _, o := range others {
		b.say("%s: %s and %s", w.title, ours.name, o.name)
		pairs, err := measure(ctx, b.pairs, through(ours, false), o.run)
		if err != nil {
			return nil, err
		}
		for _, m := range w.metrics {
			rows = append(rows, compare(w.title, m, o.name, pairs))
		}
		a, z := split(pairs)
		mine = append(mine, a...)
		if o.name != direct && counted == "" {
			counted, theirs = o.name, z
		}
	}
	return append(rows, bytesRow(w.title, mine, counted, theirs)), nil
}

// bytesRow reports the largest number of bytes from upstream per byte of content.
func bytesRow(work string, ours []sample, rival string, theirs []sample) row {
	most := func(samples []sample) float64 {
		var figures []float64
		for _, s := range samples {
			figures = append(figures, s.fetched)
		}
		return spreadOf(figures).most
	}
	// A thousandth of 256 MiB is more than all headers. Only bodies are counted.
	r := row{
		work: work, measure: "bytes upstream / content", ours: fmt.Sprintf("%.3f x", most(ours)), rival: rival,
		goal: "1.000 x", verdict: judge(most(ours) < 1.0005),
	}
	if len(theirs) > 0 {
		r.theirs = fmt.Sprintf("%.3f x", most(theirs))
	}
	return r
}

// afresh starts a rival with an empty folder. It pulls another image first, because a
// process' first pull is slow and mirrors run for weeks. Then it measures f.
func (b *bench) afresh(ctx context.Context, k kind, up *registry, f func(context.Context, *rival) (pulled, error)) (sample, error) {
	r, err := k.start(ctx, b, serverOptions{upstream: up.URL})
	if err != nil {
		return sample{}, err
	}
	defer r.stop()
	before := newPuller(r.url)
	before.repository = earlier
	if _, err := before.pull(ctx); err != nil {
		return sample{}, fmt.Errorf("%s: %w", k.name, err)
	}
	if err := up.forget(); err != nil {
		return sample{}, err
	}
	began, err := cpuTime(r.pid)
	if err != nil {
		return sample{}, err
	}
	done, err := f(ctx, r)
	if err != nil {
		return sample{}, fmt.Errorf("%s: %w", k.name, err)
	}
	after, err := cpuTime(r.pid)
	peak, err2 := peakMemory(r.pid)
	counted, err3 := up.count()
	s := sample{
		cpu: after - began, wall: done.wall, bytes: done.bytes, pulled: done, peak: peak,
		upstream: counted.all(), counted: counted, fetched: float64(counted.Sent) / float64(up.Size),
	}
	return s, errors.Join(err, err2, err3)
}

// divided makes the image smaller, for tests of the benchmark.
func (b *bench) divided(sizes []int) []int {
	small := make([]int, len(sizes))
	for i, n := range sizes {
		small[i] = max(n/b.divide, 1)
	}
	return small
}

// manifests returns the number of requests for manifests.
func (c Counted) manifests() (heads, gets int) {
	return c.Requests[upstreamtest.HeadManifest], c.Requests[upstreamtest.GetManifest]
}
