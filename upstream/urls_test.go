package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptrace"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// bundle joins PEM files.
func bundle(t *testing.T, files ...string) string {
	t.Helper()
	var all []byte
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, b...)
	}
	file := filepath.Join(t.TempDir(), "bundle.pem")
	if err := os.WriteFile(file, all, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// TestSeveralURLs: the result of a request, by the responses of two URLs.
func TestSeveralURLs(t *testing.T) {
	t.Parallel()
	fault := func(f upstreamtest.Fault) *upstreamtest.Fault { return &f }
	for _, tt := range []struct {
		name          string
		first, second *upstreamtest.Fault
		want          error
		asked         [2]int
	}{
		{name: "first answers", asked: [2]int{1, 0}},
		{name: "first has it not", first: fault(upstreamtest.Status(404)), asked: [2]int{1, 1}},
		{name: "first denies", first: fault(upstreamtest.Status(403)), asked: [2]int{1, 1}},
		{name: "first fails", first: fault(upstreamtest.Status(503)), asked: [2]int{1, 1}},
		{name: "first breaks", first: fault(upstreamtest.Redirect("http://127.0.0.1:1/")), asked: [2]int{1, 1}},
		{name: "first limits", first: fault(upstreamtest.Status(429)), asked: [2]int{1, 1}},
		{name: "first is mad", first: fault(upstreamtest.RedirectLoop()), asked: [2]int{1, 1}},
		{name: "neither has it", first: fault(upstreamtest.Status(404)), second: fault(upstreamtest.Status(404)), want: ErrNotFound, asked: [2]int{1, 1}},
		{name: "the last has it not", first: fault(upstreamtest.Status(502)), second: fault(upstreamtest.StatusError(404, "MANIFEST_UNKNOWN", "")), want: ErrNotFound, asked: [2]int{1, 1}},
		{name: "a 404 says less than a failure", first: fault(upstreamtest.Status(404)), second: fault(upstreamtest.Status(502)), want: ErrUnavailable, asked: [2]int{3, 3}},
		{name: "both limit", first: fault(upstreamtest.Status(429)), second: fault(upstreamtest.Status(429)), want: ErrRateLimited, asked: [2]int{1, 1}},
		{name: "a limit says more than a failure", first: fault(upstreamtest.Status(429)), second: fault(upstreamtest.Status(500)), want: ErrRateLimited, asked: [2]int{1, 1}},
		{name: "both fail", first: fault(upstreamtest.Status(500)), second: fault(upstreamtest.Status(500)), want: ErrUnavailable, asked: [2]int{3, 3}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var ups []*upstreamtest.Registry
			for _, f := range []*upstreamtest.Fault{tt.first, tt.second} {
				up, _ := image(t, upstreamtest.Options{})
				if f != nil {
					up.Fault(upstreamtest.Match{Op: upstreamtest.GetManifest}, *f)
				}
				ups = append(ups, up)
			}
			_, err := asking(t, ups...).Manifest(t.Context(), repo, "latest")
			if !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
			for i, n := range tt.asked {
				want := map[upstreamtest.Op]int{}
				if n > 0 {
					want = map[upstreamtest.Op]int{upstreamtest.GetManifest: n, upstreamtest.Ping: 1}
				}
				wantCounts(t, ups[i], want)
			}
		})
	}
}

// TestCredentialsStayApart: each URL has its own tokens.
func TestCredentialsStayApart(t *testing.T) {
	t.Parallel()
	one, _ := image(t, upstreamtest.Options{Auth: upstreamtest.Bearer})
	two, _ := image(t, upstreamtest.Options{Auth: upstreamtest.Bearer})
	r := asking(t, one, two)
	one.AddImage("a/b", "latest", upstreamtest.NewImage(2, 10))
	head(t, r, "a/b", repo) // so that the first URL's second token is repo's
	one.Fault(upstreamtest.Match{Op: upstreamtest.HeadManifest}, upstreamtest.Status(404))
	head(t, r, repo)
	for up, want := range map[*upstreamtest.Registry][]string{
		one: {"ping", "token", "head_manifest Bearer canary-token-1", "token", "head_manifest Bearer canary-token-2", "head_manifest Bearer canary-token-2"},
		two: {"ping", "token", "head_manifest Bearer canary-token-1"},
	} {
		var got []string
		for _, q := range up.Requests() {
			got = append(got, strings.TrimSpace(string(q.Op)+" "+q.Header.Get("Authorization")))
		}
		if !slices.Equal(got, want) {
			t.Errorf("asked %q, want %q", got, want)
		}
	}
}

func TestRetry(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		fault upstreamtest.Fault
		times int
		want  error
		asked int
	}{
		{"one 500", upstreamtest.Status(500), 1, nil, 2},
		{"two 503", upstreamtest.Status(503), 2, nil, 3},
		{"always 502", upstreamtest.Status(502), 0, ErrUnavailable, 3},
		{"429", upstreamtest.Status(429, "Retry-After", "3"), 0, ErrRateLimited, 1},
		{"404", upstreamtest.Status(404), 0, ErrNotFound, 1},
		{"403", upstreamtest.Status(403), 0, ErrDenied, 1},
		{"gzip", upstreamtest.Gzip(), 0, nil, 1}, // the digest check comes later
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			up, img := image(t, upstreamtest.Options{})
			up.Fault(upstreamtest.Match{Op: upstreamtest.GetBlob, Times: tt.times}, tt.fault)
			c, err := asking(t, up).Open(t.Context(), KindBlob, repo, img.Config.Digest, Span{})
			if err == nil {
				c.Body.Close()
			}
			if !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
			var e *Error
			if errors.Is(tt.want, ErrRateLimited) && (!errors.As(err, &e) || e.RetryAfter != 3*time.Second || e.Code != "TOOMANYREQUESTS") {
				t.Errorf("error %+v", e)
			}
			wantCounts(t, up, map[upstreamtest.Op]int{upstreamtest.GetBlob: tt.asked, upstreamtest.Ping: 1})
		})
	}
}

// TestManifestBroken: a broken manifest is requested again, because it cannot be resumed.
func TestManifestBroken(t *testing.T) {
	t.Parallel()
	up, img := image(t, upstreamtest.Options{})
	up.Fault(upstreamtest.Match{Op: upstreamtest.GetManifest, Times: 1}, upstreamtest.CutAfter(10))
	m, err := asking(t, up).Manifest(t.Context(), repo, "latest")
	if err != nil || string(m.Content) != string(img.Index.Bytes) {
		t.Errorf("%d bytes, %v", len(m.Content), err)
	}
	wantCounts(t, up, map[upstreamtest.Op]int{upstreamtest.GetManifest: 2, upstreamtest.Ping: 1})
}

// TestManifestStalls: if one URL stops in the middle of a manifest, the next one is asked.
func TestManifestStalls(t *testing.T) {
	oneProcessor(t)
	synctest.Test(t, func(t *testing.T) {
		network := upstreamtest.NewMemory()
		mirror, _ := image(t, upstreamtest.Options{Memory: network})
		up, img := image(t, upstreamtest.Options{Memory: network})
		mirror.Fault(upstreamtest.Match{Op: upstreamtest.GetManifest}, upstreamtest.StallAfter(10, nil))
		m, err := dialing(t, Config{URLs: []string{mirror.URL, up.URL}, Dial: network.DialContext}).Manifest(t.Context(), repo, "latest")
		if err != nil || string(m.Content) != string(img.Index.Bytes) {
			t.Errorf("%d bytes, %v", len(m.Content), err)
		}
		wantCounts(t, mirror, map[upstreamtest.Op]int{upstreamtest.GetManifest: 1, upstreamtest.Ping: 1})
	})
}

func TestDown(t *testing.T) {
	t.Parallel()
	up, _ := image(t, upstreamtest.Options{})
	r := asking(t, up)
	up.Down()
	_, err := r.Head(t.Context(), KindManifest, repo, "latest")
	if !errors.Is(err, ErrUnavailable) || errors.Is(err, ErrTimeout) {
		t.Errorf("got %v", err)
	}
	up.Up()
	head(t, r, repo)
}

// pipes makes r connect by dial, in memory, so that a synctest bubble's clock runs.
func pipes(r *Registry, dial func(context.Context) (net.Conn, error)) {
	r.transport.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		httptrace.ContextClientTrace(ctx).ConnectStart(network, addr) // as a net.Dialer does
		return dial(ctx)
	}
	r.transport.DisableKeepAlives = true
}

// TestBreaker: after five failures in a row no request is sent for a while, then one. If that
// one succeeds, the breaker closes.
func TestBreaker(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		fail func(ctx context.Context) (net.Conn, error)
		want error
	}{
		{"refused", func(context.Context) (net.Conn, error) { return nil, errors.New("refused") }, ErrUnavailable},
		{"black hole", func(ctx context.Context) (net.Conn, error) {
			ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
			defer cancel()
			<-ctx.Done()
			return nil, ctx.Err()
		}, ErrTimeout},
		{"500", answering(500), ErrUnavailable},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r, err := New(Config{Name: "r.test", URLs: []string{"http://r.test"}}, NewMetrics(), slog.New(slog.DiscardHandler))
				if err != nil {
					t.Fatal(err)
				}
				defer r.Close()
				r.transport.Proxy = nil
				var dials atomic.Int64
				conn := tt.fail
				pipes(r, func(ctx context.Context) (net.Conn, error) {
					dials.Add(1)
					return conn(ctx)
				})
				ask := func() error {
					_, err := r.Head(t.Context(), KindManifest, "a", "b")
					return err
				}
				for range 5 {
					if err := ask(); !errors.Is(err, ErrUnavailable) {
						t.Fatal(err)
					}
				}
				asked := int64(breakerFailures)
				if tt.name == "500" {
					asked++ // the ping is a request for another object
				}
				if n := dials.Load(); n != asked {
					t.Errorf("%d connections, want %d", n, asked)
				}
				start := time.Now()
				if err := ask(); !errors.Is(err, ErrUnavailable) || time.Since(start) != 0 {
					t.Errorf("open, it answered %v after %s", err, time.Since(start))
				}
				// The retry fails: one connection, and the breaker opens again.
				time.Sleep(breakerPause + time.Millisecond)
				if err := ask(); !errors.Is(err, tt.want) {
					t.Errorf("half open: %v, want %v", err, tt.want)
				}
				if n := dials.Load(); n != asked+1 {
					t.Errorf("half open: %d connections, want 1 more", n)
				}
				time.Sleep(breakerPause + time.Millisecond)
				conn = answering(200)
				for range 2 {
					if err := ask(); err != nil {
						t.Errorf("recovered: %v", err)
					}
				}
			})
		})
	}
}

// answering serves one request of a connection with a status.
func answering(status int) func(context.Context) (net.Conn, error) {
	return func(context.Context) (net.Conn, error) {
		client, server := net.Pipe()
		go func() {
			defer server.Close()
			buf := make([]byte, 4096)
			if _, err := server.Read(buf); err == nil {
				_, _ = fmt.Fprintf(server, "HTTP/1.1 %d %s\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", status, http.StatusText(status))
			}
		}()
		return client, nil
	}
}

// silent reads a request and never answers.
func silent(context.Context) (net.Conn, error) {
	client, server := net.Pipe()
	go func() {
		defer server.Close()
		_, _ = io.Copy(io.Discard, server) // until the client leaves
	}()
	return client, nil
}

// TestCallersDoNotTrip: callers that leave do not open the breaker. Their deadlines do.
func TestCallersDoNotTrip(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r, err := New(Config{Name: "r.test", URLs: []string{"http://r.test"}}, NewMetrics(), slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		r.transport.Proxy = nil
		pipes(r, answering(200))
		head(t, r, "a")
		dials := 0
		pipes(r, func(ctx context.Context) (net.Conn, error) {
			dials++
			return silent(ctx)
		})
		for range 2 * breakerFailures {
			ctx, cancel := context.WithCancel(t.Context())
			time.AfterFunc(time.Second, cancel)
			if _, err := r.Head(ctx, KindManifest, "a", "b"); !errors.Is(err, context.Canceled) {
				t.Fatal(err)
			}
		}
		if dials != 2*breakerFailures {
			t.Errorf("%d connections, want %d", dials, 2*breakerFailures)
		}
		for range 2 * breakerFailures {
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			if _, err := r.Head(ctx, KindManifest, "a", "b"); !errors.Is(err, ErrUnavailable) {
				t.Fatal(err)
			}
			cancel()
		}
		if dials != 3*breakerFailures {
			t.Errorf("%d connections, want %d: the breaker did not open", dials, 3*breakerFailures)
		}
	})
}

// TestQueueDoesNotTrip: a timeout in the queue for our own connections does not open the
// breaker.
func TestQueueDoesNotTrip(t *testing.T) {
	t.Parallel()
	up, _ := image(t, upstreamtest.Options{})
	release, arrived := make(chan struct{}), make(chan struct{})
	up.Fault(upstreamtest.Match{Op: upstreamtest.HeadManifest, Times: 2}, upstreamtest.Arrived(arrived), upstreamtest.Pause(release))
	r := dialing(t, Config{URLs: []string{up.URL}, MaxConnections: 2})
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			if _, err := r.Head(t.Context(), KindManifest, repo, "latest"); err != nil {
				t.Error(err)
			}
		})
		<-arrived
	}
	for range 2 * breakerFailures {
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		if _, err := r.Head(ctx, KindManifest, repo, "latest"); !errors.Is(err, ErrTimeout) {
			t.Error(err)
		}
		cancel()
	}
	close(release)
	wg.Wait()
	head(t, r, repo)
	wantCounts(t, up, map[upstreamtest.Op]int{upstreamtest.HeadManifest: 3, upstreamtest.Ping: 1})
}

// TestBoundedRetries: a call does not take much longer than maxRetryTime.
func TestBoundedRetries(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r, err := New(Config{Name: "r.test", URLs: []string{"http://r.test"}}, NewMetrics(), slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		r.transport.Proxy = nil
		pipes(r, func(ctx context.Context) (net.Conn, error) {
			select {
			case <-ctx.Done():
			case <-time.After(8 * time.Second):
			}
			return nil, errors.New("refused")
		})
		start := time.Now()
		_, err = r.Head(t.Context(), KindManifest, "a", "b")
		if took := time.Since(start); !errors.Is(err, ErrUnavailable) || took > 2*8*time.Second+time.Second {
			t.Errorf("%v after %s", err, took)
		}
	})
}
