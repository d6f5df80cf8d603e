package storage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/opencontainers/go-digest"

	"github.com/cachalot-registry/cachalot/storage/download"
	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

func TestColdThenWarm(t *testing.T) {
	t.Parallel()
	s := openStore(t, t.TempDir())
	for _, size := range []int{0, 1, 17, chunk, chunk + 1, 1 << 20} {
		o := &origin{content: upstreamtest.Random(uint64(size), size)}
		mustFetch(t, s, o, Miss)
		settle(t, s)
		mustFetch(t, s, o, Hit)
		if o.opens.Load() != 1 || o.sent.Load() != int64(size) {
			t.Errorf("size %d: %d opens, %d bytes from upstream", size, o.opens.Load(), o.sent.Load())
		}
	}
	checkDisk(t, s)
}

func TestSHA512(t *testing.T) {
	t.Parallel()
	s := openStore(t, t.TempDir())
	b := upstreamtest.Random(1, 1000)
	d := digest.SHA512.FromBytes(b)
	got, _, err := fetch(t, s, d, download.Bytes("", b))
	if err != nil || !bytes.Equal(got, b) {
		t.Fatalf("got %d bytes, %v", len(got), err)
	}
	settle(t, s)
	if _, err := os.Stat(filepath.Join(s.disk.root, "blobs", "sha512", d.Encoded()[:2], d.Encoded())); err != nil {
		t.Error(err)
	}
	checkDisk(t, s)
}

// TestFill_BreaksAtEveryByte cuts the upstream at every byte. Readers do not notice. If the
// upstream supports ranges, no byte is downloaded twice.
func TestFill_BreaksAtEveryByte(t *testing.T) {
	t.Parallel()
	s := openStore(t, t.TempDir())
	for cut := range int64(64) {
		o := &origin{content: upstreamtest.Random(uint64(1000+cut), 64), cuts: []int64{cut}}
		mustFetch(t, s, o, Miss)
		if o.sent.Load() != 64 {
			t.Errorf("cut at %d: %d bytes from upstream", cut, o.sent.Load())
		}
		noRange := &origin{content: upstreamtest.Random(uint64(2000+cut), 64), cuts: []int64{cut}, noRange: true}
		mustFetch(t, s, noRange, Miss)
		noSize := &origin{content: upstreamtest.Random(uint64(3000+cut), 64), cuts: []int64{cut}, noSize: true}
		mustFetch(t, s, noSize, Miss)
	}
}

func TestManyReadersOneFill(t *testing.T) {
	t.Parallel()
	s := openStore(t, t.TempDir())
	o := &origin{content: upstreamtest.Random(7, 8<<20), cuts: []int64{1 << 20, 3 << 20, 7<<20 + 1}}
	var wg sync.WaitGroup
	var misses atomic.Int64
	for i := range 50 {
		wg.Go(func() {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			b, err := s.Get(ctx, scope(), o.digest(), o.source)
			if err != nil {
				t.Error(err)
				return
			}
			defer b.Close()
			if b.Outcome == Miss {
				misses.Add(1)
			}
			switch i % 3 {
			case 0: // leaves half-way
				if _, err := io.CopyN(io.Discard, b.Content, int64(len(o.content)/2)); err != nil {
					t.Error(err)
				}
				return
			case 1: // a range
				if _, err := b.Content.Seek(5<<20, io.SeekStart); err != nil {
					t.Error(err)
				}
				got, err := io.ReadAll(b.Content)
				if err != nil || !bytes.Equal(got, o.content[5<<20:]) {
					t.Errorf("range: %d bytes, %v", len(got), err)
				}
			default:
				got, err := io.ReadAll(b.Content)
				if err != nil || !bytes.Equal(got, o.content) {
					t.Errorf("%d bytes, %v", len(got), err)
				}
			}
		})
	}
	wg.Wait()
	if misses.Load() != 1 || o.sent.Load() != int64(len(o.content)) {
		t.Errorf("%d misses, %d bytes from upstream for a blob of %d", misses.Load(), o.sent.Load(), len(o.content))
	}
	settle(t, s)
	checkDisk(t, s)
}

// TestFill_AllReadersLeave checks the second half of invariant I7.
func TestFill_AllReadersLeave(t *testing.T) {
	t.Parallel()
	s := openStore(t, t.TempDir())
	o := &origin{content: upstreamtest.Random(8, 1<<20), hold: make(chan struct{})}
	ctx, cancel := context.WithCancel(t.Context())
	b, err := s.Get(ctx, scope(), o.digest(), o.source)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(io.Discard, b.Content, 1000); err != nil {
		t.Fatal(err)
	}
	cancel()
	b.Close()
	close(o.hold)
	settle(t, s)
	mustFetch(t, s, o, Hit)
	if o.opens.Load() != 1 {
		t.Errorf("%d opens", o.opens.Load())
	}
}

// TestWrongBytes checks invariant I1: no client gets the last byte, nothing is stored, and the
// next fill is right.
func TestWrongBytes(t *testing.T) {
	t.Parallel()
	for _, size := range []int{0, 1, 100, 3 * chunk} {
		for _, noSize := range []bool{false, true} {
			t.Run(fmt.Sprintf("size %d unknown %v", size, noSize), func(t *testing.T) {
				t.Parallel()
				s := openStore(t, t.TempDir())
				d := digest.FromBytes(upstreamtest.Random(42, size+1))
				lie := &origin{content: upstreamtest.Random(43, size), noSize: noSize}
				got, _, err := fetch(t, s, d, lie.source)
				if !errors.Is(err, ErrDigest) {
					t.Fatalf("error %v, want ErrDigest", err)
				}
				if len(got) >= size && size > 0 {
					t.Errorf("reader got %d of %d wrong bytes", len(got), size)
				}
				settle(t, s)
				if left, _ := os.ReadDir(s.disk.fills()); len(left) > 0 {
					t.Errorf("%d files left in fills/", len(left))
				}
				truth := &origin{content: upstreamtest.Random(42, size+1)}
				mustFetch(t, s, truth, Miss)
				checkDisk(t, s)
			})
		}
	}
}

// TestBlob_Hold: the last byte of a range is held back until the blob has verified.
func TestBlob_Hold(t *testing.T) {
	t.Parallel()
	s := openStore(t, t.TempDir())
	o := &origin{content: upstreamtest.Random(9, 1<<20), hold: make(chan struct{})}
	b, err := s.Get(t.Context(), scope(), o.digest(), o.source)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	b.Hold(99)
	first := make([]byte, 200)
	n, err := io.ReadAtLeast(b.Content, first, 99)
	if err != nil || n != 99 {
		t.Fatalf("read %d bytes before the digest is known, want 99 (%v)", n, err)
	}
	close(o.hold)
	if _, err := io.ReadFull(b.Content, first[99:]); err != nil || !bytes.Equal(first, o.content[:200]) {
		t.Errorf("after: %v", err)
	}
}

func TestSourceErrors(t *testing.T) {
	t.Parallel()
	s := openStore(t, t.TempDir())
	boom := errors.New("boom")
	o := &origin{content: upstreamtest.Random(10, 1000), refuse: func(n int) error {
		if n == 0 {
			return boom
		}
		return nil
	}}
	if _, _, err := fetch(t, s, o.digest(), o.source); !errors.Is(err, boom) {
		t.Fatalf("error %v, want the source's", err)
	}
	mustFetch(t, s, o, Miss)

	reading := make(chan struct{})
	refused := &origin{content: upstreamtest.Random(11, 1000), cuts: []int64{500}, refuse: func(n int) error {
		if n > 0 {
			<-reading
			return fmt.Errorf("%w: gone", download.ErrRefused)
		}
		return nil
	}}
	b, err := s.Get(t.Context(), scope(), refused.digest(), refused.source)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	close(reading)
	if got, err := io.ReadAll(b.Content); !errors.Is(err, download.ErrRefused) || len(got) != 500 {
		t.Errorf("%d bytes, error %v", len(got), err)
	}
	changed := &origin{content: upstreamtest.Random(12, 1000), cuts: []int64{500}, size: func(n int) int64 { return int64(1000 + n) }}
	if _, _, err := fetch(t, s, changed.digest(), changed.source); !errors.Is(err, download.ErrChanged) {
		t.Errorf("error %v, want ErrChanged", err)
	}
}

func TestGetWithoutSource(t *testing.T) {
	t.Parallel()
	s := openStore(t, t.TempDir())
	if _, err := s.Get(t.Context(), scope(), digest.FromString("x"), nil); !errors.Is(err, ErrNotFound) {
		t.Errorf("error %v, want ErrNotFound", err)
	}
}

// TestLinks: content from one repository is not served to another until the upstream confirms
// it there, during the download and from disk.
func TestLinks(t *testing.T) {
	t.Parallel()
	s := openStore(t, t.TempDir())
	o := &origin{content: upstreamtest.Random(13, 1<<20), hold: make(chan struct{})}
	d := o.digest()
	b, err := s.Get(t.Context(), scope(), d, o.source)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	others := []Scope{
		{Upstream: "quay.io", Repository: scope().Repository},
		{Upstream: scope().Upstream, Repository: "library/b"},
		{Upstream: scope().Upstream, Repository: scope().Repository, Manifest: true},
	}
	never := func(context.Context, download.Span) (*download.Part, error) {
		t.Error("source called for content that is here")
		return nil, io.ErrUnexpectedEOF
	}
	for _, when := range []string{"in flight", "on disk"} {
		for _, sc := range others {
			if when == "in flight" && sc.Upstream != scope().Upstream {
				continue // it starts its own fill: see TestOrigins
			}
			if _, err := s.Get(t.Context(), sc, d, never); !errors.Is(err, ErrUnlinked) {
				t.Errorf("%s, %v: error %v, want ErrUnlinked", when, sc, err)
			}
		}
		if when == "in flight" {
			close(o.hold)
			settle(t, s)
		}
	}
	if err := s.PutLink(others[1], d, "x/y"); err != nil {
		t.Fatal(err)
	}
	linked, err := s.Get(t.Context(), others[1], d, never)
	if err != nil {
		t.Fatal(err)
	}
	defer linked.Close()
	if linked.MediaType != "x/y" || linked.Outcome != Hit {
		t.Errorf("media type %q, outcome %d", linked.MediaType, linked.Outcome)
	}
}

func TestFillSlots(t *testing.T) {
	t.Parallel()
	s := openStore(t, t.TempDir(), func(c *Config) { c.MaxFills = 1 })
	first := &origin{content: upstreamtest.Random(14, 1000), hold: make(chan struct{})}
	b, err := s.Get(t.Context(), scope(), first.digest(), first.source)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	second := &origin{content: upstreamtest.Random(15, 1000)}
	if _, err := s.Get(ctx, scope(), second.digest(), second.source); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want to wait for a slot", err)
	}
	if second.opens.Load() != 0 {
		t.Error("second fill started beside the first")
	}
	for waiting := true; waiting; runtime.Gosched() { // until the second fill is given up
		waiting = s.Filling(second.digest())
	}
	close(first.hold)
	mustFetch(t, s, second, Miss)
}

// TestWaitForSlot: clients that wait for a slot for the same blob share one download, even if
// the first client leaves.
func TestWaitForSlot(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		leave bool // the first client leaves
		close bool // the store closes
		want  error
		opens int64
	}{
		"all wait":         {opens: 1},
		"the first leaves": {leave: true, opens: 1},
		"closed":           {close: true, want: ErrClosed},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := openStore(t, t.TempDir(), func(c *Config) { c.MaxFills = 1 })
				o := &origin{content: upstreamtest.Random(265, 1000)}
				other := newFill(s, scope(), o.digest(), o.source)
				give, ok := s.slots.take(t.Context(), t.Context(), other)
				if !ok {
					t.Fatal("no slot")
				}
				first, leave := context.WithCancel(t.Context())
				defer leave()
				var wg sync.WaitGroup
				get := func(ctx context.Context, want error) {
					wg.Go(func() {
						b, err := s.Get(ctx, noStore(), o.digest(), o.source)
						if err == nil {
							defer b.Close()
							_, err = io.ReadAll(b.Content)
						}
						if !errors.Is(err, want) {
							t.Errorf("error %v, want %v", err, want)
						}
					})
					synctest.Wait()
				}
				if tc.leave {
					get(first, context.Canceled)
				}
				for range 10 {
					get(t.Context(), tc.want)
				}
				leave()
				synctest.Wait()
				if tc.close {
					if err := s.Close(); err != nil {
						t.Error(err)
					}
				} else {
					give()
				}
				wg.Wait()
				if o.opens.Load() != tc.opens {
					t.Errorf("%d downloads, want %d", o.opens.Load(), tc.opens)
				}
			})
		})
	}
}
