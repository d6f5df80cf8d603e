package storage

import (
	"context"
	"log/slog"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/cachalot-registry/cachalot/storage/index"
	"github.com/cachalot-registry/cachalot/test/smalldisk"
	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// TestMarks: nothing is evicted at the high mark. Above it, blobs are evicted down to the low
// mark, and not one more.
func TestMarks(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		high, low float64
		most      int // blobs up to the high mark; the limit is 40
		left      int // of these and one more blob
	}{
		"by default":         {0, 0, 39, 38},
		"low mark alone":     {0, 50, 39, 20},
		"high low mark":      {0, 100, 40, 40},
		"low high mark":      {80, 0, 32, 32},
		"far apart":          {90, 25, 36, 10},
		"the limit":          {100, 50, 40, 20},
		"a block above that": {100, 52.4, 40, 20},
		"a block below that": {100, 52.5, 40, 21},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := openStore(t, t.TempDir(), func(c *Config) {
					c.MaxSize, c.HighMark, c.LowMark = Size{Bytes: 40 * block}, tc.high, tc.low
				})
				var blobs []digest.Digest
				for i := range tc.most {
					blobs = append(blobs, put(t, s, uint64(i), block, int64(i), false))
				}
				time.Sleep(2 * maintenance)
				checkDisk(t, s)
				if got := s.ledger.total(); got != int64(tc.most)*block {
					t.Fatalf("%d blobs are left of %d", got/block, tc.most)
				}
				blobs = append(blobs, put(t, s, 99, block, 99, false))
				time.Sleep(2 * maintenance)
				checkDisk(t, s)
				for i, d := range blobs {
					if want := i >= len(blobs)-tc.left; s.exists(d) != want {
						t.Errorf("blob %d of %d is here: %v", i, len(blobs), !want)
					}
				}
				if err := s.Close(); err != nil {
					t.Error(err)
				}
			})
		})
	}
	for _, mark := range [][2]float64{{0, -1}, {0, 101}, {101, 0}, {-1, 0}, {90, 91}} {
		c := Config{Path: t.TempDir(), MaxFills: 1, HighMark: mark[0], LowMark: mark[1]}
		if s, err := Open(c, NewMetrics(), slog.New(slog.DiscardHandler)); err == nil {
			t.Errorf("marks of %v %% are taken", mark)
			_ = s.Close()
		}
	}
}

// TestMarksOfFreeSpace: min_free has a high and a low mark too.
func TestMarksOfFreeSpace(t *testing.T) {
	t.Parallel()
	const mib = 1 << 20
	s := openStore(t, smalldisk.New(t, 300), func(c *Config) { c.MinFree, c.HighMark, c.LowMark = Size{Bytes: 80 * mib}, 95, 90 })
	s.ledger.loaded(t.Context())
	for i := range uint64(150) {
		put(t, s, i, mib, int64(i), false)
		free, _, err := s.disk.space()
		if err != nil {
			t.Fatal(err)
		}
		gone := testutil.ToFloat64(s.metrics.evictedBytes.WithLabelValues(reasonSpace))
		switch {
		case free < 84*mib:
			t.Fatalf("%d bytes are free after %d blobs", free, i+1)
		case gone == 0:
			continue
		case free < 88*mib || free >= 90*mib: // the index's log may grow too
			t.Errorf("%d bytes are free, and %v have gone", free, gone)
		}
		return
	}
	t.Error("nothing went")
}

// messages is a log that counts its messages.
type messages struct {
	mu   sync.Mutex // guards seen
	seen map[string]int
}

func (m *messages) Handle(_ context.Context, r slog.Record) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.seen[r.Message]++
	return nil
}
func (m *messages) Enabled(context.Context, slog.Level) bool { return true }
func (m *messages) WithAttrs([]slog.Attr) slog.Handler       { return m }
func (m *messages) WithGroup(string) slog.Handler            { return m }

func (m *messages) count(message string) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.seen[message]
}

const (
	looked  = "scanning all records for blobs to evict"
	waited  = "evicted for a download"
	records = 20 * step
)

// fullStore opens a store that is at the high mark, 90 %, with records without files. The low
// mark is 80 %.
func fullStore(t *testing.T, change ...func(*Config)) (*Store, *messages, []digest.Digest) {
	t.Helper()
	log := &messages{seen: map[string]int{}}
	c := Config{Path: t.TempDir(), MaxFills: 16, MaxSize: Size{Bytes: records*block*10/9 + block/2}, HighMark: 90, LowMark: 80}
	for _, f := range change {
		f(&c)
	}
	s, err := Open(c, NewMetrics(), slog.New(log))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	synctest.Wait() // otherwise the walk would drop records without files
	blobs := map[digest.Digest]index.Record{}
	var order []digest.Digest
	for i := range records {
		order = append(order, digest.FromString(strconv.Itoa(i)))
		blobs[order[i]] = index.Record{Size: block, Accessed: int64(i), Manifest: true}
	}
	if _, err := s.ledger.found(blobs, func(digest.Digest) bool { return true }); err != nil {
		t.Fatal(err)
	}
	if over := s.space.over(0, s.evictor.highMark); over > 0 || over <= -block {
		t.Fatalf("%d bytes above the high mark", over)
	}
	return s, log, order
}

// TestEvict_NoWaitBelowLimit: below the limit, no download waits for the eviction that runs and
// rests in the background.
func TestEvict_NoWaitBelowLimit(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, log, _ := fullStore(t)
		start := time.Now()
		const fills = 100 // of 284 blocks up to the limit
		for i := range uint64(fills) {
			before := time.Now()
			o := &origin{content: upstreamtest.Random(i, block)}
			mustFetch(t, s, o, Miss)
			if took := time.Since(before); took > 0 {
				t.Errorf("download %d took %v", i, took)
			}
			time.Sleep(minRest)
		}
		if !s.evictor.isTrimming() {
			t.Error("nothing evicts")
		}
		settle(t, s)
		took := time.Since(start)
		if n := log.count(waited); n != 0 {
			t.Errorf("%d downloads waited for an eviction", n)
		}
		if over := s.space.over(0, s.evictor.lowMark); over > 0 || over <= -block {
			t.Errorf("%d bytes above the low mark", over)
		}
		gone := testutil.ToFloat64(s.metrics.evictedBytes.WithLabelValues(reasonSpace)) / block
		rests := log.count(looked)*(records/step-2) + int(gone)/goneStep // no rest after the last step of a scan or an eviction
		if least := time.Duration(rests) * minRest; took < least || took > 2*least || gone < records/10 {
			t.Errorf("%v for %v blobs, want a little more than %v", took, gone, least)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}

// TestEvict_FillDoesNotWaitForPace: a download that needs space does not wait for the rests of
// a running eviction, and needs no second scan of all records.
func TestEvict_FillDoesNotWaitForPace(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, log, order := fullStore(t)
		mustFetch(t, s, &origin{content: upstreamtest.Random(1, block)}, Miss)
		time.Sleep(3 * minRest)
		if log.count(looked) != 1 || testutil.ToFloat64(s.metrics.evictedBytes.WithLabelValues(reasonSpace)) != 0 {
			t.Fatal("not looking at records, or no longer")
		}
		start := time.Now()
		o := &origin{content: upstreamtest.Random(2, records*block/9)} // all space above the high mark
		mustFetch(t, s, o, Miss)
		if took := time.Since(start); took > minRest {
			t.Errorf("waited for %v", took)
		}
		if n, m := log.count(waited), log.count(looked); n > 1 || m != 1 {
			t.Errorf("%d waited, and records were looked at %d times", n, m)
		}
		synctest.Wait() // readers do not wait until the blob is durable
		r, known, err := s.index.Record(order[len(order)-1])
		if err != nil || !known || !s.exists(o.digest()) {
			t.Errorf("%v, %v: %v", r, known, err)
		}
		settle(t, s)
		if over := s.space.over(0, s.evictor.lowMark); over > 0 || over <= -block {
			t.Errorf("%d bytes above the low mark", over)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}

// TestTrim_StopsAtLowMark: a download fails and frees its reservation. The eviction stops at
// the low mark, even if it has picked more blobs.
func TestTrim_StopsAtLowMark(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, _, _ := fullStore(t)
		const need = records / 9 * block // nearly up to the limit
		if !s.evictor.reserve(need) {
			t.Fatal("no room")
		}
		for testutil.ToFloat64(s.metrics.evictedBytes.WithLabelValues(reasonSpace)) < need+10*block { // the low mark is a tenth below
			time.Sleep(minRest)
		}
		synctest.Wait() // the eviction rests
		before := testutil.ToFloat64(s.metrics.evictedBytes.WithLabelValues(reasonSpace))
		s.space.release(need)
		settle(t, s)
		if gone := testutil.ToFloat64(s.metrics.evictedBytes.WithLabelValues(reasonSpace)) - before; gone > 0 && s.space.over(block, s.evictor.lowMark) <= 0 {
			t.Errorf("%v bytes too many", gone)
		}
		if len(s.evictor.picked) > 0 {
			t.Errorf("%d stay in memory", len(s.evictor.picked))
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}

// TestCloseWhileTrimming: Close ends an eviction that scans records or rests between two blobs.
func TestCloseWhileTrimming(t *testing.T) {
	t.Parallel()
	for name, rests := range map[string]time.Duration{"looks": records / step / 2, "evicts": records/step + 10} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s, log, _ := fullStore(t)
				mustFetch(t, s, &origin{content: upstreamtest.Random(1, block)}, Miss)
				time.Sleep(rests*minRest + minRest/2)
				gone := testutil.ToFloat64(s.metrics.evictedBytes.WithLabelValues(reasonSpace))
				if log.count(looked) != 1 || !s.evictor.isTrimming() || gone > 0 != (name == "evicts") {
					t.Fatalf("too early or too late: %v bytes have gone", gone)
				}
				start := time.Now()
				if err := s.Close(); err != nil {
					t.Error(err)
				}
				if took := time.Since(start); took > 0 {
					t.Errorf("waited for %v", took)
				}
			})
		})
	}
}

// TestTrim_SparesPinnedAndUsed: a trim to the low mark does not evict blobs that are pinned, in
// use or just used.
func TestTrim_SparesPinnedAndUsed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := openStore(t, t.TempDir(), func(c *Config) {
			c.MaxSize, c.HighMark, c.LowMark, c.Pinned = Size{Bytes: 40 * block}, 90, 50, pinnedBase
		})
		var blobs []digest.Digest
		for i := range 36 {
			blobs = append(blobs, put(t, s, uint64(i), block, int64(i), false))
		}
		pin(t, s, blobs[0])
		open(t, s, Scope{Upstream: "u", Repository: "r"}, blobs[1], nil)
		if f, _, err := s.gate.enter(Scope{Upstream: "u", Repository: "r"}, blobs[2], true); f != nil || err != nil { // a caller is about to open it
			t.Error(f, err)
		}
		open(t, s, Scope{Upstream: "u", Repository: "r"}, blobs[3], nil).Close()
		blobs = append(blobs, put(t, s, 99, block, 99, false))
		checkDisk(t, s)
		for i, d := range blobs {
			if want := i < 4 || i >= len(blobs)-16; s.exists(d) != want {
				t.Errorf("blob %d is here: %v", i, !want)
			}
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}

// TestTrim_LowMarkUnreachable: if too much is pinned, nothing is evicted for the low mark, and
// the records are not scanned again and again.
func TestTrim_LowMarkUnreachable(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, log, order := fullStore(t, func(c *Config) { c.Pinned = pinnedBase })
		const loose = 20
		pin(t, s, order[loose:]...)
		start := time.Now()
		const fills = 50
		for i := range uint64(fills) {
			mustFetch(t, s, &origin{content: upstreamtest.Random(i, block)}, Miss)
			time.Sleep(time.Second)
		}
		n := log.count(looked)
		const look = records * (1 + pinStep) / step * minRest
		if most := int(time.Since(start) / 10 / look); n < 2 || n > most {
			t.Errorf("records were looked at %d times, for %v each, want at most %d", n, look, most)
		}
		if gone := testutil.ToFloat64(s.metrics.evictedBytes.WithLabelValues(reasonSpace)); gone != 0 {
			t.Errorf("%v bytes went in vain", gone)
		}
		// A reservation still evicts what it needs, and no more.
		need := -s.space.over(0, 100) + 3*block
		if !s.evictor.reserve(need) || s.evictor.reserve(fills*2*block) {
			t.Error("no room, or too much")
		}
		settle(t, s)
		if gone := testutil.ToFloat64(s.metrics.evictedBytes.WithLabelValues(reasonSpace)); gone != 3*block {
			t.Errorf("%v bytes went for three blocks", gone)
		}
		for i, d := range order {
			if _, known, err := s.index.Record(d); err != nil || known != (i >= 3) {
				t.Fatalf("blob %d: %v, %v", i, known, err)
			}
		}
		s.SetPinned(nil)
		time.Sleep(2 * maintenance)
		settle(t, s)
		if over := s.space.over(0, s.evictor.lowMark); over > 0 || over <= -block {
			t.Errorf("%d bytes above the low mark without pins", over)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}
