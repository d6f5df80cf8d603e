package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// TestPing: the response to GET /v2/, and the requests that it and three HEADs cost.
func TestPing(t *testing.T) {
	t.Parallel()
	type counts = map[upstreamtest.Op]int
	const (
		ping  = upstreamtest.Ping
		heads = upstreamtest.HeadManifest
		token = upstreamtest.Token
	)
	foreign := `Bearer realm="http://127.0.0.1:1/token",service="foreign"`
	for _, tt := range []struct {
		name    string
		options upstreamtest.Options
		fault   []upstreamtest.Fault
		scope   string // of the ping's challenge, if it differs from the registry's
		account bool
		want    counts
		refused int // answers 401
		err     error
	}{
		{name: "no authentication", want: counts{ping: 1, heads: 3}},
		{name: "bearer", options: upstreamtest.Options{Auth: upstreamtest.Bearer}, want: counts{ping: 1, heads: 3, token: 1}, refused: 1},
		{name: "basic", options: upstreamtest.Options{Auth: upstreamtest.Basic}, account: true, want: counts{ping: 1, heads: 3}, refused: 1},
		{
			name: "basic, no credential", options: upstreamtest.Options{Auth: upstreamtest.Basic, Username: "me", Password: "canary"},
			want: counts{ping: 1, heads: 3}, refused: 4, err: ErrDenied,
		},
		{
			name: "200, then 401", options: upstreamtest.Options{Auth: upstreamtest.Bearer},
			fault: []upstreamtest.Fault{upstreamtest.Status(200, "WWW-Authenticate", foreign)},
			want:  counts{ping: 1, heads: 4, token: 1}, refused: 1,
		},
		{
			name: "200, then basic", options: upstreamtest.Options{Auth: upstreamtest.Basic}, account: true,
			fault: []upstreamtest.Fault{upstreamtest.Status(200)}, want: counts{ping: 1, heads: 4}, refused: 1,
		},
		{
			name: "404", options: upstreamtest.Options{Auth: upstreamtest.Bearer},
			fault: []upstreamtest.Fault{upstreamtest.Status(404)}, want: counts{ping: 1, heads: 4, token: 1}, refused: 1,
		},
		{
			name: "429", options: upstreamtest.Options{Auth: upstreamtest.Bearer},
			fault: []upstreamtest.Fault{upstreamtest.Status(429, "Retry-After", "30")}, want: counts{ping: 1, heads: 4, token: 1}, refused: 1,
		},
		{
			name: "500", options: upstreamtest.Options{Auth: upstreamtest.Bearer},
			fault: []upstreamtest.Fault{upstreamtest.Status(500)}, want: counts{ping: 1, heads: 4, token: 1}, refused: 1,
		},
		{
			name: "401 without a challenge", options: upstreamtest.Options{Auth: upstreamtest.Bearer},
			fault: []upstreamtest.Fault{upstreamtest.Status(401)}, want: counts{ping: 1, heads: 4, token: 1}, refused: 2,
		},
		{
			name: "401 that names a token server that is down", options: upstreamtest.Options{Auth: upstreamtest.Bearer},
			fault: []upstreamtest.Fault{upstreamtest.Status(401, "WWW-Authenticate", foreign)}, want: counts{ping: 1, heads: 4, token: 1}, refused: 2,
		},
		{
			name: "401 with the scope of another repository", options: upstreamtest.Options{Auth: upstreamtest.Bearer},
			scope: "repository:user/image:pull", want: counts{ping: 1, heads: 3, token: 1}, refused: 1, // ghcr.io
		},
		{
			name: "401 with a scope that is of no use", options: upstreamtest.Options{Auth: upstreamtest.Bearer},
			scope: "registry:catalog:*", want: counts{ping: 1, heads: 4, token: 2}, refused: 2,
		},
		{
			name: "401, then open", fault: []upstreamtest.Fault{upstreamtest.Status(401, "WWW-Authenticate", foreign)},
			want: counts{ping: 1, heads: 3}, refused: 1,
		},
		{
			name: "broken", options: upstreamtest.Options{Auth: upstreamtest.Bearer},
			fault: []upstreamtest.Fault{upstreamtest.Body("text/html", []byte("<html>")), upstreamtest.CutAfter(3)},
			want:  counts{ping: 1, heads: 4, token: 1}, refused: 1,
		},
		{
			name: "endless", options: upstreamtest.Options{Auth: upstreamtest.Bearer},
			fault: []upstreamtest.Fault{upstreamtest.Endless()}, want: counts{ping: 1, heads: 4, token: 1}, refused: 1,
		},
		{
			name: "redirect loop", options: upstreamtest.Options{Auth: upstreamtest.Bearer},
			fault: []upstreamtest.Fault{upstreamtest.RedirectLoop()}, want: counts{ping: 1, heads: 4, token: 1}, refused: 1,
		},
		{
			name: "redirect to nowhere", options: upstreamtest.Options{Auth: upstreamtest.Bearer},
			fault: []upstreamtest.Fault{upstreamtest.Redirect("ftp://x")}, want: counts{ping: 1, heads: 4, token: 1}, refused: 1,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			cfg := Config{}
			if tt.account {
				cfg.Accounts = []Account{{Username: "me", Password: "canary"}}
				tt.options.Username, tt.options.Password = "me", "canary"
			}
			up, _ := image(t, tt.options)
			if tt.scope != "" {
				tt.fault = []upstreamtest.Fault{upstreamtest.Status(401, "WWW-Authenticate",
					fmt.Sprintf(`Bearer realm=%q,service="upstreamtest",scope=%q`, up.TokenURL, tt.scope))}
			}
			if tt.fault != nil {
				up.Fault(upstreamtest.Match{Op: ping, AnyAuth: true}, tt.fault...)
			}
			cfg.URLs = []string{up.URL}
			r := dialing(t, cfg)
			for range 3 {
				if _, err := r.Head(t.Context(), KindManifest, repo, "latest"); !errors.Is(err, tt.err) {
					t.Fatalf("got %v, want %v", err, tt.err)
				}
			}
			wantCounts(t, up, tt.want)
			refused := 0
			for _, q := range up.Requests() {
				if q.Status == http.StatusUnauthorized {
					refused++
				}
				if q.Op == ping && q.Header.Get("Authorization") != "" {
					t.Error("the ping was authorised")
				}
			}
			if refused != tt.refused {
				t.Errorf("%d answers 401, want %d", refused, tt.refused)
			}
		})
	}
}

// TestPingRedirected: the ping does not follow a redirect to another origin.
func TestPingRedirected(t *testing.T) {
	t.Parallel()
	up, _ := image(t, upstreamtest.Options{Auth: upstreamtest.Bearer, Username: "me", Password: "canary"})
	other := upstreamtest.New(t, upstreamtest.Options{Auth: upstreamtest.Basic, Username: "me", Password: "canary"})
	up.Fault(upstreamtest.Match{Op: upstreamtest.Ping, AnyAuth: true}, upstreamtest.Redirect(other.URL+"/v2/"))
	r := dialing(t, Config{URLs: []string{up.URL}, Accounts: []Account{{Username: "me", Password: "canary"}}})
	head(t, r, repo)
	wantCounts(t, up, map[upstreamtest.Op]int{upstreamtest.HeadManifest: 2, upstreamtest.Ping: 1, upstreamtest.Token: 1})
	wantCounts(t, other, map[upstreamtest.Op]int{})
	for i, q := range up.Select(upstreamtest.Match{Op: upstreamtest.HeadManifest}) {
		if got, want := q.Header.Get("Authorization"), []string{"", "Bearer canary-token-1"}[i]; got != want {
			t.Errorf("request %d was sent %q, want %q", i, got, want)
		}
	}
}

// TestOnePing: concurrent first requests cost one ping with one 401. A caller that leaves does
// not cancel the ping.
func TestOnePing(t *testing.T) {
	t.Parallel()
	const askers = 50
	up, _ := image(t, upstreamtest.Options{Auth: upstreamtest.Bearer})
	r := asking(t, up)
	release, arrived := make(chan struct{}), make(chan struct{})
	up.Fault(upstreamtest.Match{Op: upstreamtest.Ping, AnyAuth: true}, upstreamtest.Arrived(arrived), upstreamtest.Pause(release))
	ctx, leave := context.WithCancel(t.Context())
	left := make(chan error)
	go func() {
		_, err := r.Head(ctx, KindManifest, repo, "latest")
		left <- err
	}()
	<-arrived
	leave()
	if err := <-left; !errors.Is(err, context.Canceled) || errors.Is(err, ErrUnavailable) {
		t.Errorf("who left got %v", err)
	}
	late, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if _, err := r.Head(late, KindManifest, repo, "latest"); !errors.Is(err, ErrTimeout) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("who had no time got %v", err)
	}
	var wg sync.WaitGroup
	for range askers {
		wg.Go(func() {
			if _, err := r.Head(t.Context(), KindManifest, repo, "latest"); err != nil {
				t.Error(err)
			}
		})
	}
	close(release)
	wg.Wait()
	wantCounts(t, up, map[upstreamtest.Op]int{upstreamtest.HeadManifest: askers, upstreamtest.Ping: 1, upstreamtest.Token: 1})
	for _, q := range up.Requests() {
		if q.Status == http.StatusUnauthorized && q.Op != upstreamtest.Ping {
			t.Errorf("%s was answered 401", q.Op)
		}
	}
}

// TestPingDown: a registry that is down at the first request works when it is up.
func TestPingDown(t *testing.T) {
	t.Parallel()
	up, _ := image(t, upstreamtest.Options{Auth: upstreamtest.Bearer})
	r := asking(t, up)
	up.Down()
	if _, err := r.Head(t.Context(), KindManifest, repo, "latest"); !errors.Is(err, ErrUnavailable) || errors.Is(err, ErrTimeout) {
		t.Errorf("down: %v", err)
	}
	up.Up()
	head(t, r, repo, repo)
	// The first HEAD gets the 401 instead of the ping.
	wantCounts(t, up, map[upstreamtest.Op]int{upstreamtest.HeadManifest: 3, upstreamtest.Token: 1})
}

// TestPingSilent: a ping without a response, or without an end, delays only the first requests,
// for pingTime.
func TestPingSilent(t *testing.T) {
	t.Parallel()
	for name, answer := range map[string]string{
		"no answer": "", "no end": "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r, err := New(Config{Name: "r.test", URLs: []string{"http://r.test"}}, NewMetrics(), slog.New(slog.DiscardHandler))
				if err != nil {
					t.Fatal(err)
				}
				defer r.Close()
				r.transport.Proxy = nil
				var dials atomic.Int64
				pipes(r, func(ctx context.Context) (net.Conn, error) {
					if dials.Add(1) > 1 {
						return answering(200)(ctx)
					}
					client, server := net.Pipe()
					go func() {
						defer server.Close()
						buf := make([]byte, 4096)
						if _, err := server.Read(buf); err == nil {
							_, _ = io.WriteString(server, answer)
							_, _ = server.Read(buf) // until the client gives up
						}
					}()
					return client, nil
				})
				start := time.Now()
				var wg sync.WaitGroup
				for range 2 {
					wg.Go(func() {
						if _, err := r.Head(t.Context(), KindManifest, "a", "b"); err != nil || time.Since(start) != pingTime {
							t.Errorf("%v after %s, want %s", err, time.Since(start), pingTime)
						}
					})
				}
				wg.Wait()
				start = time.Now()
				head(t, r, "a")
				if took := time.Since(start); took != 0 || dials.Load() != 4 {
					t.Errorf("the next took %s; %d connections, want 4", took, dials.Load())
				}
			})
		})
	}
}
