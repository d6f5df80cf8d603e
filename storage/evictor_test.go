package storage

import (
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/cachalot-registry/cachalot/storage/index"
)

// waitTrimmed waits until no eviction runs in the background.
func (e *evictor) waitTrimmed() {
	e.trimming <- struct{}{}
	<-e.trimming
}

// isTrimming reports whether an eviction runs in the background.
func (e *evictor) isTrimming() bool { return len(e.trimming) == 1 }

// TestEvictor: a reservation that fits evicts nothing. One above the high mark evicts down to
// the low mark. One above the limit evicts at least what it needs, or nothing.
func TestEvictor(t *testing.T) {
	t.Parallel()
	const limit = 20 // blocks; the high mark is 18, the low mark 15
	for name, tc := range map[string]struct {
		blobs, partial int
		pinned, busy   func(i int) bool
		need           int
		fits           bool
		gone           int // of the least recently used
	}{
		"nothing is here":              {need: 10, fits: true},
		"it fits":                      {blobs: 10, need: 8, fits: true},
		"above the high mark":          {blobs: 10, need: 9, fits: true, gone: 4},
		"above the limit":              {blobs: 18, need: 5, fits: true, gone: 8},
		"all must go":                  {blobs: 18, need: 20, fits: true, gone: 18},
		"more than the limit":          {blobs: 18, need: 21},
		"all is pinned":                {blobs: 18, pinned: func(int) bool { return true }, need: 5},
		"all is in use":                {blobs: 18, busy: func(int) bool { return true }, need: 5},
		"enough is not pinned":         {blobs: 18, pinned: func(i int) bool { return i >= 3 }, need: 5, fits: true, gone: 3},
		"too much is pinned":           {blobs: 18, pinned: func(i int) bool { return i >= 2 }, need: 5},
		"broken downloads are enough":  {blobs: 10, partial: 8, need: 5, fits: true},
		"broken downloads and more go": {blobs: 10, partial: 8, need: 12, fits: true, gone: 7},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := indexOnly(t)
			e, partial := s.evictor, int64(tc.partial)*block
			s.space.maxSize, e.highMark, e.lowMark = limit*block, 90, 75
			s.space.grow(partial)
			number := map[digest.Digest]int{}
			is := func(of func(int) bool, d digest.Digest) bool { return of != nil && of(number[d]) }
			var gone []int
			e.store = evictable{
				evict: func(v victim) bool {
					gone = append(gone, number[v.digest])
					return s.ledger.drop(v.digest, func() bool { return true }) == nil
				},
				busy:         func(d digest.Digest) bool { return is(tc.busy, d) },
				pinned:       func(d digest.Digest) bool { return is(tc.pinned, d) },
				havePins:     func() bool { return tc.pinned != nil },
				idlePartials: func() int64 { return partial },
				dropPartials: func(time.Duration) { s.space.grow(-partial); partial = 0 },
			}
			for i := range tc.blobs {
				d := digest.FromString(strconv.Itoa(i))
				number[d] = i
				if err := s.ledger.add(d, index.Record{Size: block, Accessed: int64(i), Manifest: true}); err != nil {
					t.Fatal(err)
				}
			}
			need := int64(tc.need) * block
			if fits := e.couldFit(need); fits != tc.fits || len(gone) > 0 {
				t.Errorf("it could fit: %t; gone: %v", fits, gone)
			}
			if fits := e.reserve(need); fits != tc.fits || s.space.promised() != 0 != fits {
				t.Errorf("it fits: %t; %d bytes reserved", fits, s.space.promised())
			}
			e.waitTrimmed()
			if len(gone) != tc.gone {
				t.Errorf("gone: %v, want the first %d", gone, tc.gone)
			}
			for i, n := range gone {
				if n != i {
					t.Errorf("gone: %v, want the least recently used first", gone)
					break
				}
			}
			if e.isTrimming() {
				t.Error("still trimming")
			}
		})
	}
}

// TestEvictor_FillWaits: a background eviction does not rest while a fill waits for it. A rest
// that has begun ends.
func TestEvictor_FillWaits(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		e := &evictor{life: newLifetime()}
		rests := func() time.Duration {
			begun := time.Now()
			e.breathe(time.Second)
			return time.Since(begun)
		}
		if took := rests(); took != maxRest {
			t.Errorf("with no fill that waits it rests for %s, want %s", took, maxRest)
		}
		var rested sync.WaitGroup
		rested.Go(func() {
			if took := rests(); took != time.Millisecond {
				t.Errorf("a fill comes after 1ms; it rests for %s", took)
			}
		})
		time.Sleep(time.Millisecond)
		leave, other := e.waiting.enter(), e.waiting.enter()
		rested.Wait()
		leave()
		if took := rests(); took != 0 {
			t.Errorf("a second fill still waits; it rests for %s", took)
		}
		other()
		if took := rests(); took != maxRest {
			t.Errorf("with none any more it rests for %s, want %s", took, maxRest)
		}
	})
}
