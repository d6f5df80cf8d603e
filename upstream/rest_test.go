package upstream

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// lines is a listener of connections in memory.
type lines struct {
	conns chan net.Conn
	ended chan struct{}
	once  sync.Once
}

func (l *lines) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.ended:
		return nil, net.ErrClosed
	}
}

func (l *lines) Close() error {
	l.once.Do(func() { close(l.ended) })
	return nil
}

func (l *lines) Addr() net.Addr { return &net.UnixAddr{Name: "memory"} }

// served makes a registry that h serves in memory, on the clock of a synctest bubble. Its ping
// has been sent.
func served(t *testing.T, h http.HandlerFunc) *Registry {
	t.Helper()
	r, err := New(Config{Name: "r.test", URLs: []string{"http://r.test"}}, NewMetrics(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	l := &lines{conns: make(chan net.Conn), ended: make(chan struct{})}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.URL.Path != "/v2/" {
			h(w, req)
		}
	})}
	serving := make(chan struct{})
	go func() {
		defer close(serving)
		_ = server.Serve(l) // ends with ErrServerClosed
	}()
	t.Cleanup(func() {
		r.Close()
		synctest.Wait()
		if n := taken(r); n != 0 {
			t.Errorf("%d places are still taken: a body was not closed", n)
		}
		_ = server.Close() // breaks the open connections on purpose
		<-serving
	})
	r.transport.Proxy = nil
	pipes(r, func(context.Context) (net.Conn, error) {
		client, server := net.Pipe()
		select {
		case l.conns <- server:
			return client, nil
		case <-l.ended:
			return nil, net.ErrClosed
		}
	})
	if err := r.endpoints[0].discoverChallenge(t.Context()); err != nil {
		t.Fatal(err)
	}
	return r
}

// blobDigest is a digest for content that is not verified.
const blobDigest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

// TestRetryAfter: no request is sent before the time in Retry-After. If that is too long to
// wait, the caller gets the error at once.
func TestRetryAfter(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		status int
		after  string
		times  int           // responses with that status; 0: all
		within time.Duration // the caller's deadline
		asked  []time.Duration
		want   error
		rest   time.Duration // in the error
	}{
		{name: "503", status: 503, after: "3", times: 1, asked: []time.Duration{0, 3 * time.Second}},
		{name: "503 twice", status: 503, after: "4", times: 2, asked: []time.Duration{0, 4 * time.Second, 8 * time.Second}},
		{name: "500", status: 500, after: "2", times: 1, asked: []time.Duration{0, 2 * time.Second}},
		{name: "a date", status: 503, after: "Sat, 01 Jan 2000 00:00:07 GMT", times: 1, asked: []time.Duration{0, 7 * time.Second}},
		{name: "503 that does not say", status: 503, times: 1, asked: []time.Duration{0, 0}},
		{name: "garbage", status: 503, after: "soon", times: 1, asked: []time.Duration{0, 0}},
		{name: "longer than all tries", status: 503, after: "60", asked: []time.Duration{0}, want: ErrUnavailable, rest: time.Minute},
		{name: "longer than the caller's deadline", status: 503, after: "5", within: 2 * time.Second, asked: []time.Duration{0}, want: ErrUnavailable, rest: 5 * time.Second},
		{name: "429", status: 429, after: "3", asked: []time.Duration{0}, want: ErrRateLimited, rest: 3 * time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				start := time.Now() // 2000-01-01, as bubbles begin
				var asked []time.Duration
				r := served(t, func(w http.ResponseWriter, _ *http.Request) {
					asked = append(asked, time.Since(start))
					if tt.times == 0 || len(asked) <= tt.times {
						if tt.after != "" {
							w.Header().Set("Retry-After", tt.after)
						}
						w.WriteHeader(tt.status)
					}
				})
				ctx := t.Context()
				if tt.within > 0 {
					var cancel context.CancelFunc
					ctx, cancel = context.WithTimeout(ctx, tt.within)
					defer cancel()
				}
				c, err := r.Open(ctx, KindBlob, repo, blobDigest, Span{})
				if err == nil {
					c.Body.Close()
				}
				if !errors.Is(err, tt.want) || restOf(err) != tt.rest || tt.want != nil && time.Since(start) != 0 {
					t.Errorf("after %s: %v, ask again after %s; want %v, %s", time.Since(start), err, restOf(err), tt.want, tt.rest)
				}
				// The usual pauses are added: at most 150 ms and 225 ms.
				if !slices.EqualFunc(asked, tt.asked, func(got, want time.Duration) bool { return got >= want && got <= want+400*time.Millisecond }) {
					t.Errorf("asked at %s, want %s", asked, tt.asked)
				}
			})
		})
	}
}

// TestRetryAfter_AllCallersWait: an object that rests is not requested, and each caller gets the time that is left.
// After a short rest, the waiting callers ask at different times.
func TestRetryAfter_AllCallersWait(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		var mu sync.Mutex // guards asked and after
		var asked []time.Duration
		after := "60"
		r := served(t, func(w http.ResponseWriter, _ *http.Request) {
			mu.Lock()
			defer mu.Unlock()
			asked = append(asked, time.Since(start))
			if after != "" {
				w.Header().Set("Retry-After", after)
				w.WriteHeader(http.StatusServiceUnavailable)
			}
		})
		ask := func() error {
			_, err := r.Head(t.Context(), KindManifest, repo, "latest")
			return err
		}
		for _, passed := range []time.Duration{0, 20 * time.Second, 25 * time.Second} {
			time.Sleep(passed)
			left := time.Minute - time.Since(start)
			if err := ask(); !errors.Is(err, ErrUnavailable) || passed > 0 && !errors.Is(err, errResting) || restOf(err) != left {
				t.Errorf("after %s: %v, ask again after %s, want %s", time.Since(start), err, restOf(err), left)
			}
		}
		// One object that rests does not affect the others. Three make all rest.
		for n, other := range []string{"a", "b", "c"} {
			_, err := r.TagPage(t.Context(), other, "")
			if errors.Is(err, errResting) != (n == 2) || restOf(err) == 0 || len(asked) != 1+min(n+1, 2) {
				t.Errorf("another question: %v; asked %d times", err, len(asked))
			}
		}
		time.Sleep(time.Minute)
		mu.Lock()
		after = "3"
		mu.Unlock()
		time.AfterFunc(time.Second, func() {
			mu.Lock()
			defer mu.Unlock()
			after = ""
		})
		start, asked = time.Now(), nil
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				time.Sleep(time.Millisecond) // after the first one's answer
				if err := ask(); err != nil {
					t.Error(err)
				}
			})
		}
		if err := ask(); err != nil {
			t.Error(err)
		}
		wg.Wait()
		moments := map[time.Duration]bool{}
		for i, at := range asked {
			moments[at] = true
			if i > 0 && (at < 3*time.Second || at > 3200*time.Millisecond) {
				t.Errorf("asked after %s, want 3 s and a little", at)
			}
		}
		if len(asked) != 22 || len(moments) < 15 {
			t.Errorf("asked %d times, at %d moments", len(asked), len(moments))
		}
	})
}

// TestRetryAfter_TokenServerAndCDN: Retry-After of a token server or a CDN is respected too.
func TestRetryAfter_TokenServerAndCDN(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		op     upstreamtest.Op
		status int
		want   error
	}{
		{upstreamtest.Token, 429, ErrRateLimited},
		{upstreamtest.Token, 503, ErrUnavailable},
		{upstreamtest.CDN, 429, ErrRateLimited},
		{upstreamtest.CDN, 503, ErrUnavailable},
	} {
		t.Run(string(tt.op)+" "+http.StatusText(tt.status), func(t *testing.T) {
			t.Parallel()
			up, img := image(t, upstreamtest.Options{Auth: upstreamtest.Bearer, TokenElsewhere: true, CDN: true})
			s := up.Fault(upstreamtest.Match{Op: tt.op}, upstreamtest.Status(tt.status, "Retry-After", "240"))
			r := asking(t, up)
			for i := range 5 {
				_, err := r.Open(t.Context(), KindBlob, repo, img.Layers[0].Digest, Span{})
				if rest := restOf(err); i == 0 && !errors.Is(err, tt.want) || rest < 230*time.Second || rest > 240*time.Second {
					t.Errorf("%d: %v, ask again after %s", i, err, rest)
				}
			}
			if n := s.Applied(); n != 1 {
				t.Errorf("asked %d times, want once", n)
			}
		})
	}
}

// TestRestingURL: of several URLs, one that rests is skipped. Its rest does not affect the
// others.
func TestRestingURL(t *testing.T) {
	t.Parallel()
	mirror, _ := image(t, upstreamtest.Options{})
	itself, _ := image(t, upstreamtest.Options{})
	resting := mirror.Fault(upstreamtest.Match{Op: upstreamtest.HeadManifest}, upstreamtest.Status(503, "Retry-After", "240"))
	failing := itself.Fault(upstreamtest.Match{Op: upstreamtest.HeadManifest, Times: 2}, upstreamtest.Status(502))
	r := asking(t, mirror, itself)
	head(t, r, repo, repo)
	if resting.Applied() != 1 || failing.Applied() != 2 || itself.Count(upstreamtest.HeadManifest) != 4 {
		t.Errorf("asked %v and %v", mirror.Counts(), itself.Counts())
	}
}

// TestJitter: the pauses between tries are within bounds, and differ between callers.
func TestJitter(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const callers = 20
		seen := map[time.Duration]bool{}
		for range callers {
			var asked []time.Time
			r := served(t, func(w http.ResponseWriter, _ *http.Request) {
				asked = append(asked, time.Now())
				w.WriteHeader(http.StatusBadGateway)
			})
			if _, err := r.Head(t.Context(), KindManifest, repo, "latest"); !errors.Is(err, ErrUnavailable) || len(asked) != maxTries {
				t.Fatalf("%v, asked %d times", err, len(asked))
			}
			for i, bounds := range [][2]time.Duration{{50 * time.Millisecond, 150 * time.Millisecond}, {75 * time.Millisecond, 225 * time.Millisecond}} {
				pause := asked[i+1].Sub(asked[i])
				seen[pause] = true
				if pause < bounds[0] || pause > bounds[1] {
					t.Errorf("pause %d was %s, want %s", i+1, pause, bounds)
				}
			}
		}
		if len(seen) < callers {
			t.Errorf("%d different pauses of %d", len(seen), 2*callers)
		}
	})
}

// TestHalfOpen: a half-open breaker lets one request through. The other callers do not wait for
// its result.
func TestHalfOpen(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex // guards asked and release
		asked := 0
		var release chan struct{} // nil: an answer at once
		r := served(t, func(w http.ResponseWriter, req *http.Request) {
			mu.Lock()
			asked++
			wait := release
			mu.Unlock()
			if wait == nil {
				w.WriteHeader(http.StatusInternalServerError)
				return
			}
			select {
			case <-wait:
			case <-req.Context().Done():
			}
		})
		ask := func() error {
			_, err := r.Head(t.Context(), KindManifest, repo, "latest")
			return err
		}
		for range 2 { // three tries each
			if err := ask(); !errors.Is(err, ErrUnavailable) {
				t.Fatal(err)
			}
		}
		time.Sleep(breakerPause + time.Millisecond)
		mu.Lock()
		asked, release = 0, make(chan struct{})
		mu.Unlock()
		errs := make(chan error, 20)
		for range cap(errs) {
			go func() { errs <- ask() }()
		}
		synctest.Wait()
		if asked != 1 || len(errs) != cap(errs)-1 {
			t.Errorf("half open: %d requests, %d answered without", asked, len(errs))
		}
		for range cap(errs) - 1 {
			if err := <-errs; !errors.Is(err, errNotAsked) {
				t.Error(err)
			}
		}
		close(release)
		if err := <-errs; err != nil {
			t.Error("who was let through: ", err)
		}
		if err := ask(); err != nil {
			t.Error("closed again: ", err)
		}
	})
}
