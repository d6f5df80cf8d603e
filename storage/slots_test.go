package storage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/cachalot-registry/cachalot/storage/download"
	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// TestSlots_OneUpstreamStalls: if the downloads of one repository stall, other upstreams, other
// repositories and its own manifests still get slots. Stalled downloads give their slots to
// other blobs of that repository.
func TestSlots_OneUpstreamStalls(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := openStore(t, t.TempDir(), func(c *Config) { c.MaxFills = 32 })
		ctx, leave := context.WithCancel(t.Context())
		ended := make(chan error, 100)
		stalled := func(ctx context.Context, _ download.Span) (*download.Part, error) {
			r, w := io.Pipe()
			context.AfterFunc(ctx, func() { w.CloseWithError(context.Cause(ctx)) })
			go func() { _, _ = w.Write(make([]byte, 1000)) }() // then nothing more
			return &download.Part{Body: r, Size: 1 << 20}, nil
		}
		for i := range 30 {
			d := digest.FromString(fmt.Sprint("stalled ", i))
			go func() {
				b, err := s.Get(ctx, Scope{Upstream: "a", Repository: "r"}, d, stalled)
				if err == nil {
					_, err = io.ReadAll(b.Content)
					b.Close()
				}
				ended <- err
			}()
		}
		synctest.Wait()
		if n := s.slots.places.Taken(); n != 6 {
			t.Errorf("%d slots of 32 for one repository, of 8 for its upstream", n)
		}
		begun := time.Now()
		fetch := func(sc Scope, seed uint64) time.Duration {
			t.Helper()
			o := &origin{content: upstreamtest.Random(seed, 1000)}
			b, err := s.Get(t.Context(), sc, o.digest(), o.source)
			if err != nil {
				t.Fatal(err)
			}
			defer b.Close()
			if _, err := io.ReadAll(b.Content); err != nil {
				t.Error(err)
			}
			return time.Since(begun)
		}
		if took := fetch(Scope{Upstream: "b", Repository: "r"}, 1); took != 0 {
			t.Errorf("another upstream's blob took %s", took)
		}
		if took := fetch(Scope{Upstream: "a", Repository: "other"}, 4); took != 0 {
			t.Errorf("another repository's blob took %s", took)
		}
		if took := fetch(Scope{Upstream: "a", Repository: "r", Manifest: true}, 2); took != 0 {
			t.Errorf("a manifest took %s", took)
		}
		// It comes after the stalled downloads, which give up their slots one by one.
		if took := fetch(Scope{Upstream: "a", Repository: "r"}, 3); took > 30/6*(stalledFor+lookEvery)+2*stalledFor {
			t.Errorf("a blob of the same repository took %s", took)
		}
		leave()
		for range 30 {
			if err := <-ended; err == nil {
				t.Error("a stalled download ended well")
			} else if !errors.Is(err, errStalled) && !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}
