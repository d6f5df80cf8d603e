package bounds

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"
)

func TestReadAll(t *testing.T) {
	t.Parallel()
	synctest.Test(t, testReadAll) // a refusal comes after a wait
}

func testReadAll(t *testing.T) {
	t.Helper()
	for _, size := range []int{0, 1, firstRead - 1, firstRead, firstRead + 1, 100_000} {
		want := bytes.Repeat([]byte{'x'}, size)
		m := NewMemory(10<<20, DefaultShare)
		ctx, closed := m.Account(t.Context(), Holder{Group: "r", Client: "c"})
		for announced, most := range map[int64]int{-1: 2*copies*size + copies*firstRead, int64(size): copies * (size + 1)} {
			before := m.Taken()
			got, err := ReadAll(ctx, iotest.HalfReader(bytes.NewReader(want)), announced)
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("%d bytes: %d, %v", size, len(got), err)
			}
			if taken := m.Taken() - before; taken < int64(copies*size) || taken > int64(most+kib) {
				t.Errorf("%d bytes, %d announced: %d charged, want %d at most", size, announced, taken, most)
			}
		}
		closed()
		if taken := m.Taken(); taken != 0 {
			t.Errorf("%d bytes are still charged", taken)
		}
		if err := Charge(ctx, 1); !errors.Is(err, ErrNoMemory) {
			t.Errorf("after the end: %v", err)
		}
	}
	if b, err := ReadAll(t.Context(), strings.NewReader("no account"), -1); err != nil || string(b) != "no account" {
		t.Errorf("%q, %v", b, err)
	}
	if b, err := ReadAll(t.Context(), iotest.TimeoutReader(iotest.OneByteReader(strings.NewReader("abc"))), -1); !errors.Is(err, iotest.ErrTimeout) || string(b) != "a" {
		t.Errorf("%q, %v", b, err)
	}
}

// TestMemory_Bound: a body that exceeds its registry's share of memory is refused after a wait.
// Other registries are not affected.
func TestMemory_Bound(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := NewMemory(1<<20, DefaultShare)
		endless := &counting{}
		ctx, closed := m.Account(t.Context(), Holder{Group: "hostile"})
		if _, err := ReadAll(ctx, endless, -1); !errors.Is(err, ErrNoMemory) {
			t.Errorf("endless: %v", err)
		}
		if group := m.Limit() / 4; endless.read*copies > group || m.Taken() > group {
			t.Errorf("%d bytes were read, %d are charged; the registry may have %d", endless.read, m.Taken(), group)
		}
		other, done := m.Account(t.Context(), Holder{Group: "honest"})
		if _, err := ReadAll(other, io.LimitReader(&counting{}, 10_000), 10_000); err != nil {
			t.Errorf("another registry: %v", err)
		}
		done()
		// A caller that waits gets the memory that others free.
		waiting, ended := m.Account(t.Context(), Holder{Group: "hostile"})
		got := make(chan error, 1)
		go func() { got <- Charge(waiting, int(m.Limit()/4)) }()
		synctest.Wait()
		if len(got) > 0 {
			t.Error("there is room for more than may be")
		}
		closed()
		if err := <-got; err != nil {
			t.Error(err)
		}
		ended()
		gone, leave := context.WithCancel(ctx)
		leave()
		if err := Charge(gone, int(m.Limit()/4)); !errors.Is(err, context.Canceled) {
			t.Errorf("who leaves: %v", err)
		}
		begun := time.Now()
		if err := Charge(ctx, int(m.Limit()/4)+1); !errors.Is(err, ErrNoMemory) || time.Since(begun) > 0 {
			t.Errorf("more than a registry may have at all: %v, after %s", err, time.Since(begun))
		}
		if m.Taken() != 0 {
			t.Errorf("%d bytes at rest", m.Taken())
		}
		var none *Memory
		unbounded, closed := none.Account(t.Context(), Holder{})
		defer closed()
		if err := Charge(unbounded, 1<<40); err != nil {
			t.Error(err)
		}
	})
}

// counting is an endless body.
type counting struct{ read int64 }

func (c *counting) Read(p []byte) (int, error) {
	c.read += int64(len(p))
	return len(p), nil
}
