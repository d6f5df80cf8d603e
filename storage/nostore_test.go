package storage

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/cachalot-registry/cachalot/storage/download"
	"github.com/cachalot-registry/cachalot/storage/index"
	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// TestNoStore: content that is not to be stored is downloaded once for all waiting clients,
// even if the upstream breaks off. The file is removed while they still read it.
func TestNoStore(t *testing.T) {
	t.Parallel()
	const size = 4 << 20
	for name, o := range map[string]*origin{
		"plain":     {content: upstreamtest.Random(200, size)},
		"breaks":    {content: upstreamtest.Random(201, size), cuts: []int64{0, 100, 1 << 20, size - 1}},
		"no length": {content: upstreamtest.Random(202, size), noSize: true},
		"no ranges": {content: upstreamtest.Random(203, size), noRange: true},
		"one byte":  {content: upstreamtest.Random(204, 1)},
		"empty":     {content: []byte{}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := openStore(t, t.TempDir())
			size := int64(len(o.content))
			blobs := make([]*Blob, 1)
			if size > 1 { // the upstream waits after the first half until all have joined
				o.hold, blobs = make(chan struct{}), make([]*Blob, 12)
			}
			for i := range blobs {
				blobs[i] = open(t, s, noStore(), o.digest(), o.source)
				if blobs[i].Stored {
					t.Error("said to be stored")
				}
			}
			if o.hold != nil {
				close(o.hold)
			}
			settle(t, s)
			checkNothing(t, s)
			var wg sync.WaitGroup
			for i, b := range blobs {
				wg.Go(func() {
					want := o.content
					if i%2 == 1 {
						want = want[size/3:]
						if _, err := b.Content.Seek(size/3, io.SeekStart); err != nil {
							t.Error(err)
						}
					}
					if got, err := io.ReadAll(b.Content); err != nil || !bytes.Equal(got, want) {
						t.Errorf("%d bytes of %d, %v", len(got), len(want), err)
					}
					if err := b.Wait(t.Context()); err != nil {
						t.Errorf("wait: %v", err)
					}
				})
			}
			wg.Wait()
			if o.sent.Load() != size || o.cuts == nil && o.opens.Load() != 1 {
				t.Errorf("%d opens, %d bytes from upstream for %d", o.opens.Load(), o.sent.Load(), size)
			}
			if got := testutil.ToFloat64(s.metrics.evictedBytes.WithLabelValues(reasonSpace)); got != 0 {
				t.Errorf("%v bytes evicted", got)
			}
		})
	}
}

// TestNoStoreEnds: when a fill that is not to be stored ends, for any reason, its partial is
// removed, with the partial of an earlier fill and the links.
func TestNoStoreEnds(t *testing.T) {
	t.Parallel()
	refused := func(from int) func(int) error {
		return func(n int) error {
			if n >= from {
				return fmt.Errorf("%w: gone", download.ErrRefused)
			}
			return nil
		}
	}
	const size = 1 << 20
	for name, tc := range map[string]struct {
		origin  *origin       // the content is set below
		digest  digest.Digest // a wrong digest; "": the right one
		partial int           // bytes that an earlier fill left
		maxSize int64
		want    error
		sent    int64
	}{
		"verified":            {sent: size},
		"verified, resumed":   {partial: 1000, sent: size - 1000},
		"partial was whole":   {partial: size, sent: size},
		"refused":             {origin: &origin{refuse: refused(0)}, want: download.ErrRefused},
		"refused, resumed":    {origin: &origin{refuse: refused(0)}, partial: 1000, want: download.ErrRefused},
		"broken":              {origin: &origin{refuse: refused(1), cuts: []int64{size / 2}}, want: download.ErrRefused, sent: size / 2},
		"wrong bytes":         {digest: digest.FromString("x"), want: ErrDigest, sent: size},
		"wrong bytes before":  {digest: digest.FromString("x"), partial: 1000, want: ErrDigest, sent: size - 1000},
		"too big":             {maxSize: size / 2, sent: size},
		"too big, no length":  {maxSize: size / 2, origin: &origin{noSize: true}, sent: size},
		"too big, and broken": {maxSize: size / 2, origin: &origin{cuts: []int64{10, size / 2}}, sent: size},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			if err := openStore(t, dir).Close(); err != nil {
				t.Fatal(err)
			}
			o := cmp.Or(tc.origin, &origin{})
			o.content = upstreamtest.Random(210, size)
			d := o.digest()
			if tc.digest != "" {
				d = tc.digest
			}
			if tc.partial > 0 {
				if err := os.WriteFile(disk{root: dir}.partial(partialOf(d, scope().Upstream)), o.content[:tc.partial], 0o600); err != nil {
					t.Fatal(err)
				}
			}
			s := openStore(t, dir, func(c *Config) { c.MaxSize = Size{Bytes: tc.maxSize} })
			for _, sc := range []Scope{noStore(), {Upstream: "quay.io", Repository: "b"}} {
				if err := s.PutLink(sc, d, ""); err != nil {
					t.Fatal(err)
				}
			}
			b, err := s.Get(t.Context(), noStore(), d, o.source)
			var got []byte
			if err == nil {
				defer b.Close()
				got, err = io.ReadAll(b.Content)
			}
			if !errors.Is(err, tc.want) {
				t.Errorf("error %v, want %v", err, tc.want)
			}
			if tc.want == nil && !bytes.Equal(got, o.content) || tc.want != nil && len(got) >= size {
				t.Errorf("got %d bytes", len(got))
			}
			if o.sent.Load() != tc.sent {
				t.Errorf("%d bytes from upstream, want %d", o.sent.Load(), tc.sent)
			}
			settle(t, s)
			checkNothing(t, s)
		})
	}
}

// TestNoStoreClose: Close leaves a partial to resume only if a reader wants the blob stored.
func TestNoStoreClose(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		scopes []Scope
		want   int64
	}{
		"not to be kept":      {scopes: []Scope{noStore(), noStore()}},
		"to be kept by one":   {scopes: []Scope{noStore(), scope(), noStore()}, want: 1 << 19},
		"to be kept a while":  {scopes: []Scope{noStore(), keeping(Retention{For: 1})}, want: 1 << 19},
		"to be kept at first": {scopes: []Scope{scope(), noStore()}, want: 1 << 19},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			s := openStore(t, dir)
			o := &origin{content: upstreamtest.Random(220, 1<<20), hold: make(chan struct{})}
			var b *Blob
			for _, sc := range tc.scopes {
				b = open(t, s, sc, o.digest(), o.source)
			}
			if _, err := io.CopyN(io.Discard, b.Content, 1<<19); err != nil {
				t.Fatal(err)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadAll(b.Content); !errors.Is(err, ErrClosed) {
				t.Errorf("reader of a closed store: %v, want ErrClosed", err)
			}
			s = openStore(t, dir)
			if got := s.space.filling(); got != tc.want {
				t.Errorf("%d bytes left in fills/, want %d", got, tc.want)
			}
			checkDisk(t, s)
		})
	}
}

// TestNoStoreJoined: a blob is stored if one of its readers wants it stored.
func TestNoStoreJoined(t *testing.T) {
	t.Parallel()
	hour := Retention{For: time.Hour}
	other := Scope{Upstream: "docker.io", Repository: "library/b", Keep: hour}
	for name, tc := range map[string]struct {
		scopes []Scope
		want   time.Duration
	}{
		"without limit": {scopes: []Scope{noStore(), scope()}},
		"with a limit":  {scopes: []Scope{noStore(), keeping(hour), noStore()}, want: time.Hour},
		"the longer":    {scopes: []Scope{keeping(hour), noStore(), keeping(Retention{For: 3 * time.Hour}), keeping(hour)}, want: 3 * time.Hour},
		"none at all":   {scopes: []Scope{keeping(hour), scope(), keeping(hour)}},
		"another place": {scopes: []Scope{noStore(), other}, want: time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := openStore(t, t.TempDir())
				o := &origin{content: upstreamtest.Random(230, 1<<20), hold: make(chan struct{})}
				for i, sc := range tc.scopes {
					if i > 0 && sc.place() != scope().place() {
						if _, err := s.Get(t.Context(), sc, o.digest(), nil); !errors.Is(err, ErrUnlinked) {
							t.Errorf("error %v, want ErrUnlinked", err)
						}
						if !s.Admit(sc, o.digest(), "") {
							t.Fatal("not admitted")
						}
					}
					kept := i > 0 || !sc.Keep.NoStore
					if b := open(t, s, sc, o.digest(), o.source); b.Stored != kept {
						t.Errorf("joined by %v: stored %v", sc.Keep, b.Stored)
					}
				}
				time.Sleep(10 * time.Minute) // the limit counts from the end of the fill
				close(o.hold)
				settle(t, s)
				r, ok, err := s.index.Record(o.digest())
				if err != nil || !ok {
					t.Fatal("not kept", err)
				}
				var want int64
				if tc.want > 0 {
					want = time.Now().Add(tc.want).Unix()
				}
				if r.Until != want {
					t.Errorf("limit %d, want %d", r.Until, want)
				}
				for _, sc := range tc.scopes {
					if b := open(t, s, sc, o.digest(), nil); !b.Stored || b.Outcome != Hit {
						t.Errorf("afterwards: stored %v, outcome %d", b.Stored, b.Outcome)
					}
				}
				if o.opens.Load() != 1 {
					t.Errorf("%d downloads", o.opens.Load())
				}
				checkDisk(t, s)
			})
		})
	}
}

// begin adds a fill to the table. The test runs it step by step.
func begin(s *Store, sc Scope, o *origin) *fill {
	f := newFill(s, sc, o.digest(), o.source)
	s.gate.add(f)
	return f
}

// TestJoinWhileCommitting: a reader that stores the blob for longer joins after the record was
// written. The longer limit applies.
func TestJoinWhileCommitting(t *testing.T) {
	t.Parallel()
	s := openStore(t, t.TempDir())
	f := begin(s, keeping(Retention{For: time.Hour}), &origin{content: upstreamtest.Random(240, 1000)})
	if err := f.fetch(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.publish(func() { f.phase = verified })
	if !f.settle(t.Context()) {
		t.Fatal("not kept")
	}
	if b := open(t, s, scope(), f.digest, nil); b.Outcome != Hit {
		t.Errorf("outcome %d", b.Outcome)
	}
	s.access.flush()
	s.ended(f)
	s.access.flush()
	if r, ok, err := s.index.Record(f.digest); err != nil || !ok || r.Until != 0 {
		t.Errorf("record %+v %v %v, want no limit", r, ok, err)
	}
	f.release()
	checkDisk(t, s)
}

// TestJoinTooLate: after the decision not to store a blob, a reader that wants it stored waits
// until the fill ends, then starts another.
func TestJoinTooLate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := openStore(t, t.TempDir())
		o := &origin{content: upstreamtest.Random(250, 1000)}
		f := begin(s, noStore(), o)
		if err := f.fetch(t.Context()); err != nil {
			t.Fatal(err)
		}
		f.publish(func() { f.phase = verified })
		if !f.noStore() {
			t.Fatal("a reader wants it stored")
		}
		got := make(chan *Blob, 1)
		go func() {
			b, err := s.Get(t.Context(), scope(), o.digest(), o.source)
			if err != nil {
				t.Error(err)
			}
			got <- b
		}()
		synctest.Wait()
		if len(got) > 0 {
			t.Error("joined what is not kept")
		}
		f.discard()
		s.ended(f)
		f.release()
		if b := <-got; b != nil {
			if b.Outcome != Miss || !b.Stored {
				t.Errorf("outcome %d, stored %v", b.Outcome, b.Stored)
			}
			b.Close()
		}
		settle(t, s)
		if !s.exists(o.digest()) {
			t.Error("not kept")
		}
		checkDisk(t, s)
	})
}

// TestLinkGoesWhileWaiting: a reader has a link when it asks. While it waits, the content and
// its links are removed. It is not refused: it joins another reader's fill.
func TestLinkGoesWhileWaiting(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := openStore(t, t.TempDir())
		o := &origin{content: upstreamtest.Random(260, 1000)}
		other := Scope{Upstream: scope().Upstream, Repository: "library/b", Keep: Retention{NoStore: true}}
		if err := s.index.PutLink(other.place(), o.digest(), index.Link{Size: -1}); err != nil {
			t.Fatal(err)
		}
		s.gate.hold(o.digest())
		got := make(chan error)
		go func() {
			b, err := s.Get(context.WithoutCancel(t.Context()), other, o.digest(), nil)
			if err == nil {
				b.Close()
			}
			got <- err
		}()
		synctest.Wait()
		s.forget(o.digest())
		f := begin(s, noStore(), o)
		s.gate.free(f.digest)
		synctest.Wait()
		f.run(t.Context())
		if err := <-got; err != nil {
			t.Errorf("error %v", err)
		}
		checkNothing(t, s)
	})
}

// TestNoStoreHit: a reader with NoStore gets a stored blob. Its hit does not change the record.
func TestNoStoreHit(t *testing.T) {
	t.Parallel()
	s := openStore(t, t.TempDir())
	o := &origin{content: upstreamtest.Random(270, 1000)}
	d := o.digest()
	open(t, s, keeping(Retention{For: time.Hour}), d, o.source)
	settle(t, s)
	setRecord(t, s, d, func(r *index.Record) { r.Accessed, r.Until, r.Orphaned = 5, 10, true })
	b := open(t, s, noStore(), d, o.source)
	if got, err := io.ReadAll(b.Content); err != nil || !bytes.Equal(got, o.content) || b.Outcome != Hit || !b.Stored {
		t.Errorf("%d bytes, %v, outcome %d, stored %v", len(got), err, b.Outcome, b.Stored)
	}
	s.access.flush()
	want := index.Record{Size: 1000, Accessed: 5, Until: 10, Orphaned: true}
	if r, ok, err := s.index.Record(d); err != nil || !ok || r != want {
		t.Errorf("record %+v %v %v, want %+v", r, ok, err, want)
	}
	if o.opens.Load() != 1 {
		t.Errorf("%d downloads", o.opens.Load())
	}
	checkDisk(t, s)
}

// TestNoStoreCrowd: many clients request the same small content again and again, with NoStore.
// No request fails.
func TestNoStoreCrowd(t *testing.T) {
	t.Parallel()
	s := openStore(t, t.TempDir(), func(c *Config) { c.MaxFills = 1 })
	o := &origin{content: upstreamtest.Random(280, 100)}
	var wg sync.WaitGroup
	var misses atomic.Int64
	for range 300 {
		wg.Go(func() {
			for range 40 {
				b, err := s.Get(t.Context(), noStore(), o.digest(), o.source)
				if err != nil {
					t.Error(err)
					return
				}
				if got, err := io.ReadAll(b.Content); err != nil || !bytes.Equal(got, o.content) {
					t.Errorf("%d bytes, %v", len(got), err)
				}
				if b.Outcome == Miss {
					misses.Add(1)
				}
				b.Close()
			}
		})
	}
	wg.Wait()
	if misses.Load() != o.opens.Load() {
		t.Errorf("%d misses, %d downloads", misses.Load(), o.opens.Load())
	}
	checkNothing(t, s)
}
