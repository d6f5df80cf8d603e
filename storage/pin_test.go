package storage

import (
	"bytes"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// pinnedBase pins one repository, not that of put or scope.
func pinnedBase(upstream, repository string) bool {
	return upstream == "docker.io" && repository == "acme/base"
}

// pin links stored blobs to the pinned repository.
func pin(t *testing.T, s *Store, digests ...digest.Digest) {
	t.Helper()
	for _, d := range digests {
		if err := s.PutLink(Scope{Upstream: "docker.io", Repository: "acme/base", Manifest: true}, d, "x/y"); err != nil {
			t.Fatal(err)
		}
	}
}

// TestPinned: a blob with a link from a pinned repository is not evicted, even if it is the
// first in the order. Without the pin, it is.
func TestPinned(t *testing.T) {
	t.Parallel()
	s := openStore(t, t.TempDir(), func(c *Config) { c.MaxSize, c.LowMark, c.Pinned = Size{Bytes: 1 << 20}, 100, pinnedBase })
	const size = 250 << 10
	kept, gone := put(t, s, 1, size, 1, false), put(t, s, 2, size, 2, false)
	pin(t, s, kept)
	if err := s.MarkOrphaned([]digest.Digest{kept}); err != nil {
		t.Fatal(err)
	}
	// Repositories with similar names.
	for _, sc := range []Scope{
		{Upstream: "docker.io", Repository: "acme/bas"},
		{Upstream: "docker.io", Repository: "acme/base/x"},
		{Upstream: "docker.i", Repository: "oacme/base"},
	} {
		if err := s.PutLink(sc, gone, ""); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 3 {
		put(t, s, uint64(10+i), size, int64(10+i), false)
	}
	if !s.exists(kept) || s.exists(gone) {
		t.Errorf("the pinned blob is here: %v, the other: %v", s.exists(kept), s.exists(gone))
	}
	s.SetPinned(nil)
	put(t, s, 20, size, 20, false)
	settle(t, s)
	if s.exists(kept) {
		t.Error("still here without its pin")
	}
	checkDisk(t, s)
}

// TestPinnedExpiry: a pinned blob does not expire. If its limit has passed, it expires when the
// pin is removed.
func TestPinnedExpiry(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := openStore(t, t.TempDir(), func(c *Config) { c.Pinned = pinnedBase })
		o := &origin{content: upstreamtest.Random(1, 1000)}
		open(t, s, keeping(Retention{For: 10 * time.Minute}), o.digest(), o.source).Close()
		settle(t, s)
		pin(t, s, o.digest())
		time.Sleep(10*time.Minute + pinnedExpiry + 2*maintenance)
		if !s.exists(o.digest()) {
			t.Fatal("dropped in spite of its pin")
		}
		s.SetPinned(nil)
		time.Sleep(pinnedExpiry + 2*maintenance)
		if s.exists(o.digest()) {
			t.Error("still here without its pin")
		}
		checkNothing(t, s)
	})
}

// TestAllPinned: if evicting all blobs without a pin would make too little room, none is
// evicted, and a new blob is passed through.
func TestAllPinned(t *testing.T) {
	t.Parallel()
	s := openStore(t, t.TempDir(), func(c *Config) {
		c.MaxSize, c.HighMark, c.LowMark, c.Pinned = Size{Bytes: 1 << 20}, 100, 100, pinnedBase
	})
	const size = 250 << 10
	var kept []digest.Digest
	for i := range 3 {
		kept = append(kept, put(t, s, uint64(1+i), size, int64(i), false))
	}
	pin(t, s, kept...)
	kept = append(kept, put(t, s, 9, size, 9, false))
	o := &origin{content: upstreamtest.Random(20, size+(100<<10))}
	for range 2 {
		b, err := s.Get(t.Context(), scope(), o.digest(), o.source)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(b.Content); err != nil || !bytes.Equal(got, o.content) {
			t.Errorf("%d bytes, %v", len(got), err)
		}
		b.Close()
		settle(t, s)
	}
	if n := testutil.ToFloat64(s.metrics.passedThrough); n != 2 || s.exists(o.digest()) {
		t.Errorf("passed on %v times, kept: %v", n, s.exists(o.digest()))
	}
	for _, d := range kept {
		if !s.exists(d) {
			t.Errorf("%s went in vain", d)
		}
	}
	checkDisk(t, s)

	small := &origin{content: upstreamtest.Random(21, size)} // evicting the blob without a pin makes enough room
	mustFetch(t, s, small, Miss)
	settle(t, s)
	if !s.exists(small.digest()) || s.exists(kept[3]) {
		t.Error("no room made of what is not pinned")
	}
	checkDisk(t, s)
}
