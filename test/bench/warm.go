package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
	"github.com/opencontainers/go-digest"
)

// warm is work on stored content.
type warm struct {
	name, title string
	path        func(*content) (path string, part upstreamtest.Content)
	tls         bool
	metrics     []metric
	atLeast     int64 // the fewest requests in a measurement
}

const (
	warmClients  = 16
	warmBlobSize = 64 * mib
)

func perGiB(name string, of func(sample) time.Duration) metric {
	return metric{name: name, unit: "s/GiB", of: func(s sample) float64 { return of(s).Seconds() / float64(s.bytes) * gib }}
}

func perRequest(name string, of func(sample) time.Duration) metric {
	return metric{name: name, unit: "us", of: func(s sample) float64 { return of(s).Seconds() * 1e6 / float64(s.requests) }}
}

func (m metric) withGoal(limit float64, rival string) metric {
	m.goal, m.goalFor = limit, rival
	return m
}

func cpuOf(s sample) time.Duration  { return s.cpu }
func wallOf(s sample) time.Duration { return s.wall }

func warmWorks() []warm {
	blob := func(c *content) (string, upstreamtest.Content) {
		return "/v2/" + repository + "/blobs/" + c.Layers[0].Digest.String(), c.Layers[0]
	}
	manifest := func(c *content) (string, upstreamtest.Content) {
		return "/v2/" + repository + "/manifests/" + c.Manifest.Digest.String(), c.Manifest
	}
	tagged := func(c *content) (string, upstreamtest.Content) {
		return "/v2/" + repository + "/manifests/" + tag, c.Index
	}
	ofBlobs := func(goal float64) []metric {
		return []metric{perGiB("CPU", cpuOf).withGoal(goal, "nginx"), perGiB("wall", wallOf)}
	}
	ofManifests := []metric{perRequest("CPU a request", cpuOf).withGoal(2, "nginx"), perRequest("wall / requests", wallOf)}
	return []warm{
		{name: "warm-blob", title: "warm blob", path: blob, metrics: ofBlobs(1.05), atLeast: warmClients},
		{name: "warm-blob-tls", title: "warm blob, TLS", path: blob, tls: true, metrics: ofBlobs(1.25), atLeast: warmClients},
		{name: "manifest", title: "warm manifest by digest", path: manifest, metrics: ofManifests, atLeast: 1000},
		{name: "tag", title: "fresh tag", path: tagged, metrics: ofManifests, atLeast: 1000},
	}
}

// contestant is a rival that is ready for warm work.
type contestant struct {
	*rival
	request  request
	requests int64 // in each measurement
	upstream *registry
}

func (w warm) run(ctx context.Context, b *bench) ([]row, error) {
	c := warmContent(warmBlobSize / b.divide)
	if w.tls {
		if err := b.speaksTLS(ctx); err != nil {
			b.note("%s: not measured: %v", w.title, err)
			return nil, nil
		}
	}
	b.say("%s: starting the servers", w.title)
	var list []*contestant
	defer func() {
		for _, s := range list {
			if s.rival != nil {
				s.stop()
			}
			if s.upstream != nil {
				s.upstream.stop()
			}
		}
	}()
	for _, k := range b.kinds {
		next := &contestant{}
		o := serverOptions{content: c, tls: w.tls}
		var err error
		if !k.static {
			// Each has its own upstream, so that the counts are separate.
			if next.upstream, err = b.startUpstream(ctx, upstreamOptions{}, c.spec); err != nil {
				return nil, err
			}
			o.upstream = next.upstream.URL
		}
		list = append(list, next)
		if next.rival, err = k.start(ctx, b, o); err != nil {
			return nil, err
		}
	}
	for _, e := range b.externals {
		if (e.url.Scheme == "https") != w.tls {
			continue
		}
		r, err := e.join(b)
		if err != nil {
			return nil, err
		}
		list = append(list, &contestant{rival: r})
	}
	for _, s := range list {
		if err := w.prepare(ctx, b, s, c); err != nil {
			return nil, fmt.Errorf("%s: %w", s.name, err)
		}
	}
	return w.compare(ctx, b, list[0], list[1:])
}

// compare measures all rivals and makes the rows.
func (w warm) compare(ctx context.Context, b *bench, ours *contestant, others []*contestant) ([]row, error) {
	var rows []row
	var mine, theirs []sample // of the rival whose upstream requests are reported
	var counted string
	for _, s := range others {
		b.say("%s: %s and %s", w.title, ours.name, s.name)
		pairs, err := measure(ctx, b.pairs, ours.measurement(), s.measurement())
		if err != nil {
			return nil, err
		}
		for _, m := range w.metrics {
			rows = append(rows, compare(w.title, m, s.name, pairs))
		}
		a, z := split(pairs)
		mine = append(mine, a...)
		b.noteIdle(w.title, ours.name, a)
		b.noteIdle(w.title, s.name, z)
		if s.upstream != nil && counted == "" {
			counted, theirs = s.name, z
		}
		if w.tls {
			b.note("%s: %s with %s, %s with %s.", w.title, ours.name, a[0].cipher, s.name, z[0].cipher)
		}
	}
	if len(others) == 0 {
		var err error
		if mine, err = repeat(ctx, b.pairs, ours.measurement()); err != nil {
			return nil, err
		}
		for _, m := range w.metrics {
			rows = append(rows, alone(w.title, m, mine))
		}
	}
	return append(rows, upstreamRow(w.title, mine, counted, theirs)), nil
}

// noteIdle warns if the server was not the bottleneck: a server that waits uses more CPU
// time per request.
func (b *bench) noteIdle(work, name string, samples []sample) {
	var busy []float64
	for _, s := range samples {
		busy = append(busy, s.cpu.Seconds()/s.wall.Seconds())
	}
	const enough = 0.8
	if share := spreadOf(busy).median; share < enough {
		b.note("%s: %s was busy %.0f %% of the time; the clients, or something else on the machine, held it up.", work, name, 100*share)
	}
}

// upstreamRow reports the upstream requests of warm work. The goal is none.
func upstreamRow(work string, ours []sample, rival string, theirs []sample) row {
	total := func(samples []sample) (requests, upstream int64) {
		for _, s := range samples {
			requests += s.requests
			upstream += s.upstream
		}
		return requests, upstream
	}
	_, upstream := total(ours)
	r := row{
		work: work, measure: "requests upstream", ours: strconv.FormatInt(upstream, 10),
		rival: rival, goal: "0", verdict: judge(upstream == 0),
	}
	if len(theirs) > 0 {
		requests, upstream := total(theirs)
		r.theirs = fmt.Sprintf("%d for %d", upstream, requests)
	}
	return r
}

// prepare brings the content into the server, checks the bytes, and finds the number of
// requests for a measurement.
func (w warm) prepare(ctx context.Context, b *bench, s *contestant, c *content) error {
	path, part := w.path(c)
	var err error
	if s.request, err = parseRequest(s.url, path, part.MediaType, part.Size); err != nil {
		return err
	}
	if err := fetch(ctx, s.url+path, part); err != nil {
		return fmt.Errorf("%w; it must serve what `go run ./test/bench push` pushes, `files` writes or `upstream` offers", err)
	}
	for n := w.atLeast; ; n *= 2 {
		got, err := load(ctx, s.pid, warmClients, n, s.request)
		if err != nil {
			return err
		}
		// A quarter of the time is enough for an estimate, also of a slow server.
		if got.wall >= b.during/4 {
			s.requests = max(w.atLeast, int64(float64(n)*b.during.Seconds()/got.wall.Seconds()))
			return nil
		}
	}
}

func (s *contestant) measurement() measurement {
	return func(ctx context.Context) (sample, error) {
		if s.upstream == nil {
			return load(ctx, s.pid, warmClients, s.requests, s.request)
		}
		if err := s.upstream.forget(); err != nil {
			return sample{}, err
		}
		got, err := load(ctx, s.pid, warmClients, s.requests, s.request)
		if err != nil {
			return sample{}, fmt.Errorf("%s: %w", s.name, err)
		}
		asked, err := s.upstream.count()
		got.upstream = asked.all()
		return got, err
	}
}

// fetch gets a URL and checks the content.
func fetch(ctx context.Context, url string, want upstreamtest.Content) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Accept", want.MediaType)
	client := httpClient()
	defer client.CloseIdleConnections()
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("GET %s: %s", url, resp.Status)
	}
	got, err := digest.FromReader(io.LimitReader(resp.Body, want.Size+1))
	if err != nil {
		return fmt.Errorf("GET %s: %w", url, err)
	}
	if got != want.Digest {
		return errors.New("GET " + url + ": it is not the content that is asked for")
	}
	return nil
}
