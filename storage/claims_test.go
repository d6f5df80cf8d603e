package storage

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"testing"
	"testing/iotest"

	"github.com/opencontainers/go-digest"

	"github.com/cachalot-registry/cachalot/storage/download"
	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// TestFill_Claims: an announced length evicts nothing. Received bytes evict as many bytes, and
// at most one step more.
func TestFill_Claims(t *testing.T) {
	t.Parallel()
	const mib = 1 << 20
	const kept = 30
	for _, sent := range []int64{1, mib, 3 * mib, 9 * mib} {
		t.Run(fmt.Sprint(sent), func(t *testing.T) {
			t.Parallel()
			s := openStore(t, t.TempDir(), func(c *Config) {
				c.MaxSize, c.HighMark, c.LowMark = Size{Bytes: 32 * mib}, 100, 100
			})
			for n := range uint64(kept) {
				o := &origin{content: upstreamtest.Random(n, mib)}
				if _, _, err := fetch(t, s, o.digest(), o.source); err != nil {
					t.Fatal(err)
				}
				s.IsStored(o.digest())
			}
			before := s.ledger.total()
			if before != kept*mib {
				t.Fatalf("%d bytes are kept", before)
			}
			liar := func(context.Context, download.Span) (*download.Part, error) {
				body := io.MultiReader(bytes.NewReader(upstreamtest.Random(99, int(sent))), iotest.ErrReader(download.ErrRefused))
				return &download.Part{Body: io.NopCloser(body), Size: 30 * mib}, nil
			}
			d := digest.FromString("what is not sent")
			if _, _, err := fetch(t, s, d, liar); err == nil {
				t.Fatal("no error")
			}
			s.IsStored(d) // waits until the fill has ended
			gone := before - s.ledger.total()
			if most := max(0, sent+max(min(sent, mostStep), leastStep)-2*mib); gone > most {
				t.Errorf("%d bytes went for %d, and 2 MiB were free: at most %d may", gone, sent, most)
			}
		})
	}
}

// TestFill_TooLong: a blob that is too large to be stored evicts nothing.
func TestFill_TooLong(t *testing.T) {
	t.Parallel()
	const mib = 1 << 20
	s := openStore(t, t.TempDir(), func(c *Config) { c.MaxSize, c.HighMark, c.LowMark = Size{Bytes: 8 * mib}, 100, 100 })
	o := &origin{content: upstreamtest.Random(1, 6*mib)}
	if _, _, err := fetch(t, s, o.digest(), o.source); err != nil {
		t.Fatal(err)
	}
	s.IsStored(o.digest())
	long := &origin{content: upstreamtest.Random(2, 12*mib)}
	if got, _, err := fetch(t, s, long.digest(), long.source); err != nil || !bytes.Equal(got, long.content) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if !s.IsStored(o.digest()) || s.IsStored(long.digest()) {
		t.Error("what was kept went for what cannot be")
	}
	if long.sent.Load() != int64(len(long.content)) {
		t.Errorf("%d bytes were sent for %d", long.sent.Load(), len(long.content))
	}
}
