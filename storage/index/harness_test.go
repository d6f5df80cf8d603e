package index

import (
	"context"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(upstreamtest.Waiting{Tests: m})
}

// openIndex opens an index in a folder. By default nothing is pinned. Nothing runs in the
// background, and nothing rests.
func openIndex(tb testing.TB, dir string, cfg Config) *Index {
	tb.Helper()
	cfg.Dir = filepath.Join(dir, "index")
	cfg.Rest = func(context.Context, time.Duration) {}
	if cfg.Pinned == nil {
		cfg.Pinned = func(string, string) bool { return false }
	}
	x := Open(cfg, NewMetrics(), slog.New(slog.DiscardHandler))
	tb.Cleanup(func() {
		if err := x.Close(); err != nil {
			tb.Error(err)
		}
	})
	return x
}

// library is the place of an image's layers.
func library() Place { return Place{Upstream: "docker.io", Repository: "library/a"} }
