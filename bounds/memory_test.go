package bounds

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

func TestReadAll(t *testing.T) {
	t.Parallel()
	for _, size := range []int{0, 1, firstRead - 1, firstRead, firstRead + 1, 100_000} {
		want := bytes.Repeat([]byte{'x'}, size)
		m := NewMemory(10<<20, DefaultShare)
		ctx, closed := m.Account(t.Context(), Holder{Group: "r", Client: "c"})
		got, err := ReadAll(ctx, iotest.HalfReader(bytes.NewReader(want)))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d bytes: %d, %v", size, len(got), err)
		}
		if taken := m.Taken(); taken < int64(size) || taken > int64(2*copies*size+copies*firstRead+kib) {
			t.Errorf("%d bytes: %d charged", size, taken)
		}
		closed()
		if taken := m.Taken(); taken != 0 {
			t.Errorf("%d bytes are still charged", taken)
		}
		if err := Charge(ctx, 1); !errors.Is(err, ErrNoMemory) {
			t.Errorf("after the end: %v", err)
		}
	}
	if b, err := ReadAll(t.Context(), strings.NewReader("no account")); err != nil || string(b) != "no account" {
		t.Errorf("%q, %v", b, err)
	}
	if b, err := ReadAll(t.Context(), iotest.TimeoutReader(iotest.OneByteReader(strings.NewReader("abc")))); !errors.Is(err, iotest.ErrTimeout) || string(b) != "a" {
		t.Errorf("%q, %v", b, err)
	}
}

// TestMemory_Bound: what does not fit is refused before it is read; other registries' does.
func TestMemory_Bound(t *testing.T) {
	t.Parallel()
	m := NewMemory(1<<20, DefaultShare)
	endless := &counting{}
	ctx, closed := m.Account(context.Background(), Holder{Group: "hostile"})
	if _, err := ReadAll(ctx, endless); !errors.Is(err, ErrNoMemory) {
		t.Errorf("endless: %v", err)
	}
	if group := m.Limit() / 4; endless.read*copies > group || m.Taken() > group {
		t.Errorf("%d bytes were read, %d are charged; the registry may have %d", endless.read, m.Taken(), group)
	}
	other, done := m.Account(context.Background(), Holder{Group: "honest"})
	if _, err := ReadAll(other, io.LimitReader(&counting{}, 10_000)); err != nil {
		t.Errorf("another registry: %v", err)
	}
	done()
	closed()
	var none *Memory
	if ctx, closed := none.Account(t.Context(), Holder{}); Charge(ctx, 1<<40) != nil {
		t.Error("no budget refuses")
	} else {
		closed()
	}
}

// counting is an endless body.
type counting struct{ read int64 }

func (c *counting) Read(p []byte) (int, error) {
	c.read += int64(len(p))
	return len(p), nil
}
