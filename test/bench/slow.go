package main

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// slowReader is a quick client of a cold blob, alone and beside an earlier client that
// reads the same blob very slowly.
type slowReader struct{ size int }

const slowTitle = "cold blob of 64 MiB at 100 MB/s, a quick client beside a slow one"

func theSlowReader() slowReader { return slowReader{size: 64 * mib} }

func (w slowReader) run(ctx context.Context, b *bench) ([]row, error) {
	b.say("%s: starting the upstream", slowTitle)
	up, err := b.startUpstream(ctx, upstreamOptions{rate: realisticRate}, ImageSpec{Seed: 4, Sizes: b.divided([]int{w.size})})
	if err != nil {
		return nil, err
	}
	defer up.stop()
	quick := func(ctx context.Context, r *rival) (pulled, error) {
		return newPuller(r.url).layers(ctx, time.Now(), up.Layers)
	}
	beside := func(ctx context.Context, r *rival) (pulled, error) {
		slow, err := startSlowly(ctx, r.url, up.Layers[0])
		if err != nil {
			return pulled{}, err
		}
		defer slow()
		return quick(ctx, r)
	}
	// One measurement runs both, so that its figure is their ratio.
	both := func(k kind) measurement {
		return func(ctx context.Context) (sample, error) {
			alone, err := b.afresh(ctx, k, up, quick)
			if err != nil {
				return sample{}, err
			}
			s, err := b.afresh(ctx, k, up, beside)
			s.alone = alone.wall
			s.fetched = float64(s.counted.Sent) / float64(up.Layers[0].Size) // no manifests in this work
			return s, err
		}
	}
	m := metric{name: "time beside it / time alone", unit: "x", of: func(s sample) float64 { return s.wall.Seconds() / s.alone.Seconds() }}
	const limit = 1.05 // the design says 1; clocks differ
	finish := func(r row, ours []sample) row {
		var figures []float64
		for _, s := range ours {
			figures = append(figures, m.of(s))
		}
		r.goal, r.verdict = fmt.Sprintf("cachalot <= %g x", limit), judge(spreadOf(figures).median <= limit)
		return r
	}
	ours := b.kinds[0]
	var rows []row
	for _, k := range b.kinds[1:] {
		if k.static {
			continue
		}
		b.say("%s: %s and %s", slowTitle, ours.name, k.name)
		pairs, err := measure(ctx, b.pairs, both(ours), both(k))
		if err != nil {
			return nil, err
		}
		mine, theirs := split(pairs)
		rows = append(rows, finish(compare(slowTitle, m, k.name, pairs), mine), bytesRow(slowTitle, mine, k.name, theirs))
	}
	if len(rows) == 0 {
		b.say("%s: %s", slowTitle, ours.name)
		mine, err := repeat(ctx, b.pairs, both(ours))
		if err != nil {
			return nil, err
		}
		rows = append(rows, finish(alone(slowTitle, m, mine), mine), bytesRow(slowTitle, mine, "", nil))
	}
	return rows, nil
}

// startSlowly requests a blob, and after its first bytes reads 16 KiB ten times a second
// until stop is called.
func startSlowly(ctx context.Context, base string, blob ocispec.Descriptor) (stop func(), err error) {
	u, err := url.Parse(base)
	if err != nil {
		return nil, err
	}
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", u.Host)
	if err != nil {
		return nil, err
	}
	if err := c.(*net.TCPConn).SetReadBuffer(64 << 10); err != nil {
		_ = c.Close()
		return nil, err
	}
	_, err = fmt.Fprintf(c, "GET /v2/%s/blobs/%s HTTP/1.1\r\nHost: %s\r\n\r\n", repository, blob.Digest, u.Host)
	buf := make([]byte, 16<<10)
	if err == nil {
		_, err = c.Read(buf)
	}
	if err != nil {
		_ = c.Close()
		return nil, fmt.Errorf("a slow client: %w", err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for tick := time.NewTicker(100 * time.Millisecond); ; <-tick.C {
			if _, err := c.Read(buf); err != nil {
				return // closed below
			}
		}
	}()
	return func() {
		_ = c.Close()
		<-ended
	}, nil
}
