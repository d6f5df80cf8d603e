package storage

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// holdAt is a log that blocks the caller at message until release is closed.
type holdAt struct {
	message string
	reached chan struct{}
	release chan struct{}
}

func (h holdAt) Handle(_ context.Context, r slog.Record) error {
	if r.Message == h.message {
		select {
		case h.reached <- struct{}{}:
		default: // a second time
		}
		<-h.release
	}
	return nil
}
func (h holdAt) Enabled(context.Context, slog.Level) bool { return true }
func (h holdAt) WithAttrs([]slog.Attr) slog.Handler       { return h }
func (h holdAt) WithGroup(string) slog.Handler            { return h }

// TestOpenWaitsForNoRecords: the store serves, fills and evicts before it has read a record.
// Afterwards the totals are right.
func TestOpenWaitsForNoRecords(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		s := openStore(t, dir)
		var kept []*origin
		for i := range 4 {
			kept = append(kept, &origin{content: upstreamtest.Random(uint64(i), 10_000*i)})
			mustFetch(t, s, kept[i], Miss)
		}
		settle(t, s)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}

		hold := holdAt{"adding up records", make(chan struct{}, 1), make(chan struct{})}
		opened := make(chan error)
		go func() {
			var err error
			s, err = Open(Config{Path: dir, MaxFills: 2, MaxSize: Size{Bytes: 1 << 20}}, NewMetrics(), slog.New(hold))
			opened <- err
		}()
		select {
		case err := <-opened:
			if err != nil {
				t.Fatal(err)
			}
		case <-time.After(time.Hour): // if all goroutines are blocked
			t.Error("Open reads the records")
			close(hold.release)
			if err := errors.Join(<-opened, s.Close()); err != nil {
				t.Error(err)
			}
			return
		}
		<-hold.reached
		mustFetch(t, s, kept[1], Hit)
		fresh := &origin{content: upstreamtest.Random(10, 50_000)}
		mustFetch(t, s, fresh, Miss)
		settle(t, s)
		mustFetch(t, s, fresh, Hit)
		s.access.flush()
		r, _, err := s.index.Record(kept[2].digest())
		if err != nil || !s.evict(victim{kept[2].digest(), r}) {
			t.Errorf("not forgotten: %v", err)
		}
		if n := testutil.ToFloat64(s.metrics.blobs); n != 0 {
			t.Errorf("storage_blobs says %v before they have been counted", n)
		}
		close(hold.release)
		synctest.Wait()
		checkDisk(t, s)
		if n := testutil.ToFloat64(s.metrics.blobs); n != 4 {
			t.Errorf("storage_blobs says %v, want 4", n)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

// TestHitWritesNothing: a hit writes nothing. A flush writes all hits at once.
func TestHitWritesNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) { // maintenance runs only if the test sleeps
		s := openStore(t, t.TempDir())
		o := &origin{content: upstreamtest.Random(1, 1000)}
		mustFetch(t, s, o, Miss)
		settle(t, s)
		s.access.flush()
		synctest.Wait()
		before := s.index.Writes()
		for range 100 {
			mustFetch(t, s, o, Hit)
		}
		if now := s.index.Writes(); now != before || s.index.Waiting() != 0 {
			t.Errorf("%d writes, %d changes that wait", now-before, s.index.Waiting())
		}
		s.access.flush()
		if now := s.index.Writes(); now != before+1 {
			t.Errorf("%d writes for all hits", now-before)
		}
	})
}

// benchBlobs is how many blobs a benchmark has: 1,000,000 for the figures of
// docs/reliability.md.
func benchBlobs(b *testing.B) int {
	b.Helper()
	if n, err := strconv.Atoi(os.Getenv("CACHALOT_BENCH_BLOBS")); err == nil {
		return n
	}
	return 10_000
}

// manyBlobs makes a store of n small linked blobs, and returns its folder.
func manyBlobs(b *testing.B, n int) string {
	b.Helper()
	dir := b.TempDir()
	writeTiny(b, dir, n)
	s := benchStore(b, Config{Path: dir})
	waitReconciled(b, s, n)
	linkTiny(b, s, n)
	if err := s.Close(); err != nil {
		b.Fatal(err)
	}
	return dir
}

func benchStore(b *testing.B, c Config) *Store {
	b.Helper()
	c.MaxFills = 16
	s, err := Open(c, NewMetrics(), slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	return s
}

// waitReconciled waits until n blobs are counted.
func waitReconciled(b *testing.B, s *Store, n int) {
	b.Helper()
	for tick := time.NewTicker(time.Millisecond); ; <-tick.C {
		if testutil.ToFloat64(s.metrics.blobs) == float64(n) {
			return
		}
	}
}

// BenchmarkStart measures what a client waits for after a start: until the store
// is open, and until it has opened a blob.
func BenchmarkStart(b *testing.B) {
	n := benchBlobs(b)
	dir := manyBlobs(b, n)
	var toHit, toCount time.Duration
	i := 0
	for b.Loop() {
		start := time.Now()
		s := benchStore(b, Config{Path: dir})
		i++
		blob, err := s.Get(b.Context(), scope(), digest.FromBytes(tiny(i*7919%n)), nil)
		if err != nil {
			b.Fatal(err)
		}
		blob.Close()
		toHit += time.Since(start)
		s.ledger.loaded(b.Context())
		toCount += time.Since(start)
		b.StopTimer()
		if err := s.Close(); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
	b.ReportMetric(toHit.Seconds()*1000/float64(i), "ms/first-hit")
	b.ReportMetric(toCount.Seconds()*1000/float64(i), "ms/counted")
}

// BenchmarkRebuild measures how long an index takes to be built again from the
// disk, and what a hit takes in that time.
func BenchmarkRebuild(b *testing.B) {
	n := benchBlobs(b)
	dir := b.TempDir()
	writeTiny(b, dir, n)
	for b.Loop() {
		b.StopTimer()
		if err := os.RemoveAll(filepath.Join(dir, "index")); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		s := benchStore(b, Config{Path: dir})
		var rebuilt atomic.Bool
		var wg sync.WaitGroup
		var firsts, hits []time.Duration
		wg.Go(func() {
			for i := 0; !rebuilt.Load(); i = (i + 1) % n {
				d := digest.FromBytes(tiny(i))
				start := time.Now()
				if err := s.PutLink(scope(), d, ""); err != nil { // as after the upstream confirms it
					b.Error(err)
				}
				firsts = append(firsts, time.Since(start))
				hits = append(hits, hitTime(b, s, d))
			}
		})
		waitReconciled(b, s, n)
		rebuilt.Store(true)
		wg.Wait()
		b.StopTimer()
		b.ReportMetric(micro(firsts, 99), "us/p99-link")
		b.ReportMetric(micro(hits, 99), "us/p99-hit")
		if err := s.Close(); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

// hitTime measures how long it takes to open and close a stored blob.
func hitTime(b *testing.B, s *Store, d digest.Digest) time.Duration {
	b.Helper()
	start := time.Now()
	blob, err := s.Get(b.Context(), scope(), d, nil)
	if err != nil {
		b.Error(err)
		return 0
	}
	blob.Close()
	return time.Since(start)
}

// micro is a percentile in microseconds.
func micro(all []time.Duration, percent int) float64 {
	slices.Sort(all)
	return float64(all[len(all)*percent/100].Nanoseconds()) / 1000
}
