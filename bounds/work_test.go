package bounds

import (
	"context"
	"errors"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// TestWork: heavy work runs on at most half of the processors. Light work does not wait for it.
// A caller stops waiting when its context ends.
func TestWork(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := NewMemory(1<<20, DefaultShare)
		ctx, closed := m.Account(t.Context(), Holder{Group: "hostile"})
		defer closed()
		release := make(chan struct{})
		var working atomic.Int64
		ended := make(chan error)
		for range runtime.GOMAXPROCS(0) + 3 {
			go func() {
				ended <- Work(ctx, heavy, func() { working.Add(1); <-release })
			}()
			synctest.Wait()
		}
		if most := int64(max(1, runtime.GOMAXPROCS(0)/2)); working.Load() != most {
			t.Errorf("%d work at once, want %d", working.Load(), most)
		}
		ran := false
		if err := Work(ctx, heavy-1, func() { ran = true }); err != nil || !ran {
			t.Errorf("what is small: %v", err)
		}
		gone, leave := context.WithCancel(ctx)
		leave()
		if err := m.Work(gone, -1, func() { t.Error("it has left") }); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		close(release)
		for range runtime.GOMAXPROCS(0) + 3 {
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
	})
}

// TestRest: the rest is at least three times as long as the work. The factor grows with the
// work until the rest is maxRest.
func TestRest(t *testing.T) {
	t.Parallel()
	for took, want := range map[time.Duration]time.Duration{
		0: 0, 100 * time.Microsecond: 300 * time.Microsecond, time.Millisecond: 3 * time.Millisecond,
		5 * time.Millisecond: 50 * time.Millisecond, 20 * time.Millisecond: 800 * time.Millisecond,
		100 * time.Millisecond: maxRest, time.Second: 3 * time.Second, time.Hour: 3 * time.Hour,
	} {
		if got := rest(took); got != want {
			t.Errorf("after %s it rests for %s, want %s", took, got, want)
		}
	}
}

// TestWork_Rests: after heavy work, no other heavy work uses its processor for a while.
func TestWork_Rests(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := NewMemory(1<<20, DefaultShare)
		var all sync.WaitGroup
		for range cap(m.turns) {
			all.Go(func() {
				if err := m.Work(t.Context(), heavy, func() { time.Sleep(time.Second) }); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		ended := time.Now()
		soon, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := m.Work(soon, heavy, func() { t.Error("it works at once") }); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		if err := m.Work(t.Context(), heavy, func() {}); err != nil {
			t.Error(err)
		}
		if rested := time.Since(ended); rested != 3*time.Second {
			t.Errorf("a processor was left to others for %s, want 3s", rested)
		}
	})
}

// TestUnmarshal: JSON that would need more memory than is available is not parsed.
func TestUnmarshal(t *testing.T) {
	t.Parallel()
	m := NewMemory(1<<20, DefaultShare)
	ctx, closed := m.Account(t.Context(), Holder{Group: "hostile"})
	var list []string
	words := int(m.Limit())/4/perElement + 16
	if err := Unmarshal(ctx, []byte(`["a"`+strings.Repeat(`,""`, words)+`]`), &list); !errors.Is(err, ErrNoMemory) || list != nil {
		t.Errorf("a list of %d little words: %v, %d of them", words, err, len(list))
	}
	if err := Unmarshal(ctx, []byte(`["a","b"]`), &list); err != nil || len(list) != 2 {
		t.Errorf("a short list: %v, %d of them", err, len(list))
	}
	if err := Unmarshal(ctx, []byte(`["a"`), &list); err == nil || errors.Is(err, ErrNoMemory) {
		t.Errorf("half a list: %v", err)
	}
	closed()
	if m.Taken() != 0 {
		t.Errorf("%d bytes at rest", m.Taken())
	}
}
