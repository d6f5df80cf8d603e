package storage

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// TestPassThrough_NoLength: the space ends in the middle of a blob without a length. Each
// client still gets the blob, and its last byte only if the blob is right.
func TestPassThrough_NoLength(t *testing.T) {
	t.Parallel()
	const mib = 1 << 20
	for _, size := range []int{mib + 1, 2 * mib, 3*mib + 7, 5 * mib} {
		s := openStore(t, t.TempDir(), func(c *Config) { c.MaxSize = Size{Bytes: mib + block} })
		o := &origin{content: upstreamtest.Random(uint64(size), size), noSize: true}
		for _, right := range []bool{true, false} {
			d := o.digest()
			if !right {
				d = digest.FromString("something else")
			}
			got, _, err := fetch(t, s, d, o.source)
			if right && (err != nil || !bytes.Equal(got, o.content)) || !right && (!errors.Is(err, ErrDigest) || len(got) >= size) {
				t.Errorf("%d bytes, right %v: %d bytes, %v", size, right, len(got), err)
			}
			b, err := s.Get(t.Context(), scope(), d, o.source)
			if err != nil {
				t.Fatal(err)
			}
			last := int64(size - 1)
			b.Hold(last)
			if _, err := b.Content.Seek(int64(mib-10), io.SeekStart); err != nil {
				t.Fatal(err)
			}
			part := make([]byte, last+1-(mib-10))
			n, err := io.ReadFull(b.Content, part)
			if right && (err != nil || !bytes.Equal(part, o.content[mib-10:])) || !right && (!errors.Is(err, ErrDigest) || n >= len(part)) {
				t.Errorf("%d bytes, right %v: a range of %d bytes, %v", size, right, n, err)
			}
			b.Close()
		}
		if got := testutil.ToFloat64(s.metrics.passedThrough); got == 0 {
			t.Errorf("%d bytes: all was kept", size)
		}
	}
}
