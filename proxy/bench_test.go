package proxy

import (
	"io"
	"log/slog"
	"net/http"
	"testing"
	"time"

	"github.com/cachalot-registry/cachalot/storage"
	"github.com/cachalot-registry/cachalot/upstream"
	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// sink is a client that discards the response.
type sink struct {
	header http.Header
	status int
}

func (s *sink) Header() http.Header         { return s.header }
func (s *sink) WriteHeader(status int)      { s.status = status }
func (s *sink) Write(p []byte) (int, error) { return len(p), nil }

// BenchmarkWarm measures a stored manifest with a fresh tag, in the proxy alone, with
// metrics and the log.
func BenchmarkWarm(b *testing.B) {
	up := upstreamtest.New(b, upstreamtest.Options{})
	img := up.AddImage("library/app", "latest", upstreamtest.NewImage(1, 1000))
	p := newBenchProxy(b, testConfig(), up)
	for name, reference := range map[string]string{"tag": "latest", "digest": img.Index.Digest.String()} {
		b.Run(name, func(b *testing.B) {
			req, err := http.NewRequestWithContext(b.Context(), http.MethodGet, "/v2/library/app/manifests/"+reference, http.NoBody)
			if err != nil {
				b.Fatal(err)
			}
			req.RemoteAddr = "192.0.2.1:41234"
			req.Header.Set("User-Agent", "containerd/v2.1.4")
			b.ReportAllocs()
			for b.Loop() {
				w := &sink{header: http.Header{}}
				p.ServeHTTP(w, req)
				if w.status != http.StatusOK {
					b.Fatal(w.status)
				}
			}
		})
	}
}

func newBenchProxy(b *testing.B, cfg Config, up *upstreamtest.Registry) *Proxy {
	b.Helper()
	quiet := slog.New(slog.DiscardHandler)
	r, err := upstream.New(upstream.Config{Name: "docker.io", URLs: []string{up.URL}, Timeouts: upstream.Timeouts{Dial: time.Minute}}, upstream.NewMetrics(), quiet)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(r.Close)
	store, err := storage.Open(storage.Config{Path: b.TempDir(), MaxFills: 4}, storage.NewMetrics(), quiet)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = store.Close() })
	p, err := New(cfg, store, []Upstream{{Registry: r}}, NewMetrics(), slog.New(slog.NewJSONHandler(io.Discard, nil))) //nolint:sloglint // what the line costs counts
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(p.Close)
	return p
}
