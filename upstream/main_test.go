package upstream

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cenkalti/backoff/v5"
	"go.uber.org/goleak"

	"github.com/cachalot-registry/cachalot/upstream/distributiontest"
	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(upstreamtest.Waiting{Tests: m}, distributiontest.IgnoreBroadcaster())
}

const repo = "library/busybox"

// never is a deadline that no test reaches.
const never = time.Minute

// oneProcessor runs a test on one processor. The test must not be parallel. If two processors
// run timers of a bubble that are due at once, as those of connections in memory, the race
// detector of Go 1.26 crashes.
func oneProcessor(t *testing.T) {
	t.Helper()
	before := runtime.GOMAXPROCS(1)
	t.Cleanup(func() { runtime.GOMAXPROCS(before) })
}

// dialing makes a registry of cfg without pauses and without a proxy.
func dialing(tb testing.TB, cfg Config) *Registry {
	tb.Helper()
	r, err := New(defaults(cfg), NewMetrics(), slog.New(slog.DiscardHandler))
	if err != nil {
		tb.Fatal(err)
	}
	r.pause = func() backoff.BackOff { return &backoff.ZeroBackOff{} }
	r.transport.Proxy = nil
	tb.Cleanup(func() {
		r.Close()
		for begun := time.Now(); taken(r) != 0 && time.Since(begun) < 10*time.Second; {
			runtime.Gosched() // background work may take a moment
		}
		if n := taken(r); n != 0 {
			tb.Errorf("%d places are still taken: a body was not closed", n)
		}
	})
	return r
}

// taken returns how many places requests take: 0 after all bodies are closed.
func taken(r *Registry) int {
	n := r.downloads.Taken()
	for _, places := range r.connections.places.Values() {
		n += places.Taken()
	}
	return n
}

func defaults(cfg Config) Config {
	if cfg.Name == "" {
		cfg.Name = "docker.io"
	}
	if cfg.Timeouts == (Timeouts{}) {
		cfg.Timeouts = Timeouts{Dial: never, TLSHandshake: never, ResponseHeader: never, Progress: never}
	}
	return cfg
}

// asking makes a registry whose URLs are those of the fakes.
func asking(tb testing.TB, fakes ...*upstreamtest.Registry) *Registry {
	tb.Helper()
	var cfg Config
	for _, f := range fakes {
		cfg.URLs = append(cfg.URLs, f.URL)
	}
	return dialing(tb, cfg)
}

// resolve makes r dial addresses for host:port names.
func resolve(r *Registry, names map[string]string) {
	var d net.Dialer
	r.transport.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		if to, ok := names[strings.ToLower(addr)]; ok {
			addr = to
		}
		return d.DialContext(ctx, network, addr)
	}
}

// journal is a log that tests can read.
type journal struct {
	mu  sync.Mutex // guards buf
	buf bytes.Buffer
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.buf.Write(p)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.buf.String()
}
