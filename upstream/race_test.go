package upstream

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// racing makes a registry of two URLs, of which the first is a mirror.
func racing(t *testing.T, after time.Duration, mirror, itself *upstreamtest.Registry) *Registry {
	t.Helper()
	return dialing(t, Config{URLs: []string{mirror.URL, itself.URL}, RaceAfter: after})
}

// TestRace: if the first URL does not answer, content by digest is requested from the next URL
// too. The first response is read to its end.
func TestRace(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name   string
		kind   Kind
		op     upstreamtest.Op
		itself []upstreamtest.Fault
		want   error
	}{
		{"blob", KindBlob, upstreamtest.GetBlob, nil, nil},
		{"manifest", KindManifest, upstreamtest.GetManifest, nil, nil},
		{"the registry has it not", KindBlob, upstreamtest.GetBlob, []upstreamtest.Fault{upstreamtest.Status(404)}, ErrNotFound},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			mirror, img := image(t, upstreamtest.Options{})
			itself, _ := image(t, upstreamtest.Options{})
			arrived, release := make(chan struct{}), make(chan struct{})
			mirror.Fault(upstreamtest.Match{Op: tc.op}, upstreamtest.Arrived(arrived), upstreamtest.BlackHole())
			itself.Fault(upstreamtest.Match{Op: tc.op}, append(tc.itself, upstreamtest.Pause(release))...)
			go func() { // the answer comes after both have the request
				defer close(release)
				<-arrived
			}()
			content := img.Index
			if tc.kind == KindBlob {
				content = img.Layers[0]
			}
			c, err := racing(t, time.Millisecond, mirror, itself).Open(t.Context(), tc.kind, repo, content.Digest, Span{})
			if !errors.Is(err, tc.want) {
				t.Fatalf("got %v, want %v", err, tc.want)
			}
			if err == nil {
				b, err := io.ReadAll(c.Body)
				if err = errors.Join(err, c.Body.Close()); err != nil || string(b) != string(content.Bytes) {
					t.Errorf("%d bytes, %v", len(b), err)
				}
			}
			for _, up := range []*upstreamtest.Registry{mirror, itself} {
				wantCounts(t, up, map[upstreamtest.Op]int{upstreamtest.Ping: 1, tc.op: 1})
			}
			if n := mirror.Sent(content.Digest); n != 0 {
				t.Errorf("%d bytes from the one that was broken off", n)
			}
		})
	}
}

// TestRaceLost: the slower request is canceled, and the faster response is read to its end.
func TestRaceLost(t *testing.T) {
	t.Parallel()
	arrived, left := make(chan struct{}), make(chan struct{})
	slow := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/v2/" {
			close(arrived)
			<-r.Context().Done() // the client has left
			close(left)
		}
	}))
	defer slow.Close()
	itself, img := image(t, upstreamtest.Options{})
	itself.Fault(upstreamtest.Match{Op: upstreamtest.GetBlob}, upstreamtest.Pause(arrived))
	r := dialing(t, Config{URLs: []string{slow.URL, itself.URL}, RaceAfter: time.Millisecond})
	c, err := r.Open(t.Context(), KindBlob, repo, img.Layers[0].Digest, Span{})
	if err != nil {
		t.Fatal(err)
	}
	<-left
	b, err := io.ReadAll(c.Body)
	if err = errors.Join(err, c.Body.Close()); err != nil || string(b) != string(img.Layers[0].Bytes) {
		t.Errorf("%d bytes, %v", len(b), err)
	}
}

// TestNoRace: there is no race if the first URL answers in time, for tags and lists, or if
// races are switched off.
func TestNoRace(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name  string
		after time.Duration
		ask   func(context.Context, *Registry, upstreamtest.Image) error
		op    upstreamtest.Op
	}{
		{"in time", never, func(ctx context.Context, r *Registry, img upstreamtest.Image) error {
			c, err := r.Open(ctx, KindBlob, repo, img.Layers[0].Digest, Span{})
			if err == nil {
				err = c.Body.Close()
			}
			return err
		}, upstreamtest.GetBlob},
		{"switched off", 0, func(ctx context.Context, r *Registry, img upstreamtest.Image) error {
			_, err := r.Head(ctx, KindBlob, repo, img.Layers[0].Digest.String())
			return err
		}, upstreamtest.HeadBlob},
		{"tag", time.Nanosecond, func(ctx context.Context, r *Registry, _ upstreamtest.Image) error {
			_, err := r.Head(ctx, KindManifest, repo, "latest")
			return err
		}, upstreamtest.HeadManifest},
		{"tag, whole", time.Nanosecond, func(ctx context.Context, r *Registry, _ upstreamtest.Image) error {
			_, err := r.Manifest(ctx, repo, "latest")
			return err
		}, upstreamtest.GetManifest},
		{"list", time.Nanosecond, func(ctx context.Context, r *Registry, _ upstreamtest.Image) error {
			_, err := r.TagPage(ctx, repo, "")
			return err
		}, upstreamtest.Tags},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			mirror, img := image(t, upstreamtest.Options{})
			itself, _ := image(t, upstreamtest.Options{})
			r := racing(t, tc.after, mirror, itself)
			release, arrived := make(chan struct{}), make(chan struct{}, 1)
			mirror.Fault(upstreamtest.Match{Op: tc.op}, upstreamtest.Arrived(arrived), upstreamtest.Pause(release))
			var wg sync.WaitGroup
			wg.Go(func() {
				if err := tc.ask(t.Context(), r, img); err != nil {
					t.Error(err)
				}
			})
			<-arrived
			if tc.after != never { // time for a race: another registry has one, and ends it
				again, won := image(t, upstreamtest.Options{})
				again.Fault(upstreamtest.Match{Op: upstreamtest.GetBlob}, upstreamtest.BlackHole())
				other, _ := image(t, upstreamtest.Options{})
				c, err := racing(t, time.Millisecond, again, other).Open(t.Context(), KindBlob, repo, won.Layers[0].Digest, Span{})
				if err != nil {
					t.Error(err)
				} else if err := c.Body.Close(); err != nil {
					t.Error(err)
				}
			}
			close(release)
			wg.Wait()
			wantCounts(t, mirror, map[upstreamtest.Op]int{upstreamtest.Ping: 1, tc.op: 1})
			wantCounts(t, itself, map[upstreamtest.Op]int{})
		})
	}
}

// TestHealth: a URL that fails is not asked. A probe in the background finds that it works
// again. Then it is asked first. No request waits for the probe.
func TestHealth(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r, err := New(Config{Name: "r.test", URLs: []string{"http://mirror.test", "http://r.test"}}, NewMetrics(), slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		r.transport.Proxy = nil
		r.transport.DisableKeepAlives = true
		var mu sync.Mutex // guards the variables below
		dials := map[string]int{}
		down := true
		r.transport.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
			httptrace.ContextClientTrace(ctx).ConnectStart(network, addr)
			mu.Lock()
			defer mu.Unlock()
			dials[addr]++
			if addr == "mirror.test:80" && down { // a black hole: the connection times out
				mu.Unlock()
				select {
				case <-ctx.Done():
				case <-time.After(5 * time.Second):
				}
				mu.Lock()
				return nil, errors.New("timed out")
			}
			return answering(200)(ctx)
		}
		ask := func() (toMirror, toItself int, took time.Duration) {
			mu.Lock()
			clear(dials)
			mu.Unlock()
			start := time.Now()
			if _, err := r.Head(t.Context(), KindManifest, "a", "b"); err != nil {
				t.Error(err)
			}
			took = time.Since(start)
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			return dials["mirror.test:80"], dials["r.test:80"], took
		}
		for range breakerFailures {
			ask()
		}
		for range 3 {
			if m, i, took := ask(); m != 0 || i != 1 || took != 0 {
				t.Errorf("broken: %d questions to the mirror, %d to the registry, %s", m, i, took)
			}
		}
		time.Sleep(breakerPause + time.Millisecond)
		if m, i, took := ask(); m != 1 || i != 1 || took != 0 {
			t.Errorf("probed: %d questions to the mirror, %d to the registry, %s", m, i, took)
		}
		time.Sleep(2*breakerPause + time.Millisecond) // the probe fails, and another one is due
		mu.Lock()
		down = false
		mu.Unlock()
		ask()
		if m, i, took := ask(); m != 1 || i != 0 || took != 0 {
			t.Errorf("well again: %d questions to the mirror, %d to the registry, %s", m, i, took)
		}
	})
}

// TestLostRaces: a URL that loses races, or times out, is asked after the others for a while.
func TestLostRaces(t *testing.T) {
	oneProcessor(t)
	for name, tt := range map[string]struct {
		cfg  Config
		want int
	}{
		"races":    {Config{RaceAfter: time.Second}, lostRaces},
		"timeouts": {Config{Timeouts: Timeouts{ResponseHeader: time.Second}}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				network := upstreamtest.NewMemory()
				mirror, img := image(t, upstreamtest.Options{Memory: network})
				itself, _ := image(t, upstreamtest.Options{Memory: network})
				mirror.Fault(upstreamtest.Match{Op: upstreamtest.GetBlob}, upstreamtest.BlackHole())
				tt.cfg.URLs, tt.cfg.Dial = []string{mirror.URL, itself.URL}, network.DialContext
				r := dialing(t, tt.cfg)
				ask := func(want int) {
					t.Helper()
					for range 2 * lostRaces {
						c, err := r.Open(t.Context(), KindBlob, repo, img.Layers[0].Digest, Span{})
						if err != nil {
							t.Fatal(err)
						}
						if err := c.Body.Close(); err != nil {
							t.Error(err)
						}
					}
					if n := mirror.Count(upstreamtest.GetBlob); n != want {
						t.Errorf("asked %d times, want %d", n, want)
					}
				}
				ask(tt.want)
				time.Sleep(slowPause)
				ask(2 * tt.want)
			})
		})
	}
}
