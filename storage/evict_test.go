package storage

import (
	"log/slog"
	"slices"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/cachalot-registry/cachalot/test/trace"
)

// TestAgain: a blob is used again when a minute has passed, and that is kept.
func TestAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		s := openStore(t, dir)
		o := &origin{content: content(1, smallBlob)}
		again := func() bool {
			t.Helper()
			s.flushTouched()
			r, ok, err := s.index.record(o.digest())
			if err != nil || !ok {
				t.Fatalf("record: %v %v", ok, err)
			}
			return r.again
		}
		mustFetch(t, s, o, Miss)
		settle(t, s)
		for range 3 { // a pipeline
			time.Sleep(sameUse - time.Second)
			mustFetch(t, s, o, Hit)
			if again() {
				t.Error("used again within a minute")
			}
		}
		time.Sleep(sameUse)
		mustFetch(t, s, o, Hit)
		if !again() {
			t.Error("not used again after a minute")
		}
		mustFetch(t, s, o, Hit)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = openStore(t, dir)
		if !again() {
			t.Error("no longer used again after a restart")
		}
	})
}

// TestLikeSimulator holds eviction, request by request, to the policy that
// docs/eviction.md has figures of.
func TestLikeSimulator(t *testing.T) {
	t.Parallel()
	w := trace.DefaultWorkload(1)
	w.Days, w.Jobs, w.Repositories, w.Bases, w.NewTags = 10, 100, 100, 10, 10
	var requests []trace.Request
	var now int64
	for r := range w.Requests() {
		now = max(now+1, r.Time) // no ties: the store breaks them by digest
		r.Time = now
		requests = append(requests, r)
	}
	idx, err := openBadger("", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer idx.close()
	s := &Store{index: idx, ledger: &ledger{index: idx, metrics: NewMetrics()}, log: slog.New(slog.DiscardHandler)}
	capacity := trace.UniqueBytes(slices.Values(requests)) / 10
	policy := trace.TwoQ(capacity)
	always := func() bool { return true }
	var hits, evicted int
	for i, r := range requests {
		d := digest.FromString(strconv.FormatUint(r.Key, 10))
		hit := false
		if err := s.ledger.update(slices.Values([]digest.Digest{d}), func(_ digest.Digest, rec *record) {
			rec.apply(use{accessed: r.Time})
			hit = true
		}); err != nil {
			t.Fatal(err)
		}
		if want := policy.Get(r); hit != want {
			t.Fatalf("request %d of %d for %d: hit %v, the simulator's %v", i, len(requests), r.Key, hit, want)
		}
		if hit {
			hits++
			continue
		}
		if r.Size > capacity {
			continue
		}
		if over := s.ledger.total() + r.Size - capacity; over > 0 {
			for _, v := range s.victims(over + capacity/slack) {
				evicted++
				if err := s.ledger.drop(v.digest, always); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := s.ledger.add(d, record{size: r.Size, accessed: r.Time, manifest: r.Manifest}, true, always); err != nil {
			t.Fatal(err)
		}
	}
	if hits < len(requests)/4 || evicted < 1000 {
		t.Errorf("%d hits of %d requests, %d evicted: too little was tested", hits, len(requests), evicted)
	}
}
