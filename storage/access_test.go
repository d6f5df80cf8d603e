package storage

import (
	"log/slog"
	"math"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/cachalot-registry/cachalot/storage/download"
	"github.com/cachalot-registry/cachalot/storage/index"
)

// pending returns how many blobs have uses that no flush has taken.
func (l *accessLog) pending() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.uses)
}

// TestAccessLog: uses are collected in memory. The log adds them to the records that it
// returns. A flush writes them to the index.
func TestAccessLog(t *testing.T) {
	t.Parallel()
	d := digest.FromString("a")
	hour := Retention{For: time.Hour}
	limit := time.Now().Add(time.Hour).Unix()
	for name, tc := range map[string]struct {
		before  index.Record
		touch   func(*accessLog)
		used    bool
		again   bool
		uses    uint32
		limited bool
	}{
		"none":                  {touch: func(*accessLog) {}},
		"not stored":            {touch: func(l *accessLog) { l.touch(d, Retention{NoStore: true}, 1, nil) }},
		"another blob":          {touch: func(l *accessLog) { l.touch(digest.FromString("b"), hour, 1, nil) }},
		"one hit":               {touch: func(l *accessLog) { l.touch(d, Retention{}, 1, nil) }, used: true, again: true, uses: 1},
		"hits add up":           {touch: func(l *accessLog) { l.touch(d, Retention{}, 2, nil); l.touch(d, Retention{}, 3, nil) }, used: true, again: true, uses: 5},
		"no more than fit":      {before: index.Record{Uses: math.MaxUint32 - 1}, touch: func(l *accessLog) { l.touch(d, hour, 9, nil) }, used: true, again: true, uses: math.MaxUint32},
		"a limit is renewed":    {before: index.Record{Until: 1}, touch: func(l *accessLog) { l.touch(d, hour, 1, nil) }, used: true, again: true, uses: 1, limited: true},
		"no limit wins":         {before: index.Record{Until: 1}, touch: func(l *accessLog) { l.touch(d, Retention{}, 1, nil); l.touch(d, hour, 1, nil) }, used: true, again: true, uses: 2},
		"the mark goes":         {before: index.Record{Orphaned: true}, touch: func(l *accessLog) { l.touch(d, Retention{}, 1, nil) }, used: true, again: true, uses: 1},
		"uses at once are one":  {before: index.Record{Accessed: time.Now().Add(hour.For).Unix()}, touch: func(l *accessLog) { l.touch(d, Retention{}, 1, nil) }, used: true, uses: 1},
		"a fill ends":           {touch: func(l *accessLog) { l.touch(d, hour, 0, nil) }, used: true, again: true},
		"from memory":           {touch: func(l *accessLog) { l.touch(d, hour, 0, []byte("a")); l.hit(d, hour) }, used: true, again: true, uses: 1},
		"from memory, once out": {touch: func(l *accessLog) { l.hit(d, hour) }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newAccessLog(indexOnly(t).ledger, slog.New(slog.DiscardHandler))
			before := tc.before
			before.Size = 1
			if err := l.ledger.add(d, before); err != nil {
				t.Fatal(err)
			}
			tc.touch(l)
			now := l.current(d, before)
			if l.usedSince(d, before) != tc.used {
				t.Errorf("used: %t before it is written", !tc.used)
			}
			l.flush()
			if l.pending() != 0 {
				t.Errorf("%d uses are not written", l.pending())
			}
			r, ok, err := l.ledger.index.Record(d)
			if err != nil || !ok || r != now {
				t.Errorf("written: %+v, %t, %v; want %+v", r, ok, err, now)
			}
			if l.usedSince(d, before) != tc.used {
				t.Errorf("used: %t once it is written", !tc.used)
			}
			if !tc.used {
				return
			}
			if r.Again != tc.again || r.Uses != tc.uses || r.Orphaned || tc.limited != (r.Until >= limit) || !tc.limited && r.Until != 0 {
				t.Errorf("%+v", r)
			}
		})
	}
}

// TestAccessLogMemory: small content is in memory until it is removed or the log closes.
func TestAccessLogMemory(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		end func(*accessLog, digest.Digest)
		hit bool
	}{
		"kept":    {end: func(*accessLog, digest.Digest) {}, hit: true},
		"flushed": {end: func(l *accessLog, _ digest.Digest) { l.flush() }, hit: true},
		"removed": {end: (*accessLog).remove},
		"closed":  {end: func(l *accessLog, _ digest.Digest) { l.close() }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newAccessLog(indexOnly(t).ledger, slog.New(slog.DiscardHandler))
			d := digest.FromString("a")
			l.touch(d, Retention{}, 1, []byte("a"))
			if n := l.memoryBytes(); n != 1 {
				t.Errorf("%d bytes in memory", n)
			}
			tc.end(l, d)
			if b, ok := l.hit(d, Retention{}); ok != tc.hit || ok && string(b) != "a" {
				t.Errorf("%q, %t", b, ok)
			}
		})
	}
}

// BenchmarkHitInMemory is a hit on small content in memory.
func BenchmarkHitInMemory(b *testing.B) {
	s := benchStore(b, Config{Path: b.TempDir()})
	content := []byte("a manifest")
	d := digest.FromBytes(content)
	blob, err := s.Get(b.Context(), scope(), d, download.Bytes("", content))
	if err != nil {
		b.Fatal(err)
	}
	defer blob.Close()
	if err := blob.Wait(b.Context()); err != nil {
		b.Fatal(err)
	}
	s.gate.settled(d)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			hit, err := s.Get(b.Context(), scope(), d, nil)
			if err != nil {
				b.Error(err)
				return
			}
			hit.Close()
		}
	})
	if err := s.Close(); err != nil {
		b.Fatal(err)
	}
}
