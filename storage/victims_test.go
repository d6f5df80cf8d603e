package storage

import (
	"log/slog"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/cachalot-registry/cachalot/storage/index"
	"github.com/cachalot-registry/cachalot/test/trace"
	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// TestAccess_UsedAgain: a use counts as another use only after a minute. That survives a
// restart.
func TestAccess_UsedAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		s := openStore(t, dir)
		o := &origin{content: upstreamtest.Random(1, smallBlob)}
		again := func() bool {
			t.Helper()
			s.access.flush()
			r, ok, err := s.index.Record(o.digest())
			if err != nil || !ok {
				t.Fatalf("record: %v %v", ok, err)
			}
			return r.Again
		}
		mustFetch(t, s, o, Miss)
		settle(t, s)
		for range 3 { // as in a pipeline
			time.Sleep(correlationWindow - time.Second)
			mustFetch(t, s, o, Hit)
			if again() {
				t.Error("used again within a minute")
			}
		}
		time.Sleep(correlationWindow)
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

// indexOnly is a store of records without files.
func indexOnly(t *testing.T) *Store {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	m := NewMetrics()
	s := &Store{log: log, life: newLifetime(), gate: newGate()}
	s.index = index.Open(index.Config{Dir: filepath.Join(t.TempDir(), "index"), Pinned: s.Pinned, Rest: rest}, m.index, log)
	t.Cleanup(func() {
		if err := s.index.Close(); err != nil {
			t.Error(err)
		}
	})
	s.ledger = newLedger(s.index, m)
	s.access = newAccessLog(s.ledger, log)
	s.space = &space{blobs: s.ledger.total, free: func() (int64, int64, error) { return 1 << 40, 1 << 40, nil }, metrics: m, log: log}
	s.evictor = newEvictor(s)
	s.evictor.waiting.enter() // without rests
	s.readIndex()
	return s
}

// TestVictims: the victims have the bytes that are needed, and there is not one blob more.
func TestVictims(t *testing.T) {
	t.Parallel()
	const big = smallBlob
	records := []index.Record{
		{Size: 3 * big, Accessed: 1, Again: true},
		{Size: big, Accessed: 2},
		{Size: 2 * big, Accessed: 3},
		{Size: 2 * big, Accessed: 4, Again: true},
		{Size: 1, Accessed: 0},
	}
	for name, tc := range map[string]struct {
		bytes  int64
		others int64 // bytes of a blob that was used again
		want   []int64
	}{
		"exactly one":            {bytes: big, want: []int64{2}},
		"a byte more":            {bytes: big + 1, want: []int64{2, 3}},
		"all that was once":      {bytes: 3 * big, want: []int64{2, 3}},
		"more than that":         {bytes: 4 * big, want: []int64{1, 2, 3}},
		"exactly a quarter":      {bytes: big, others: 4*big - block, want: []int64{1}},
		"a block over a quarter": {bytes: big, others: 4*big - 2*block, want: []int64{2}},
		"once is little":         {bytes: 4 * big, others: 9 * big, want: []int64{1, 2}},
		"once is but more":       {bytes: 7 * big, others: 9 * big, want: []int64{1, 2, 3, 4}},
		"everything":             {bytes: 99 * big, want: []int64{0, 1, 2, 3, 4}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := indexOnly(t)
			records := records
			if tc.others > 0 {
				records = append(slices.Clone(records), index.Record{Size: tc.others, Accessed: 9, Again: true})
			}
			for i, r := range records {
				if err := s.ledger.add(digest.FromString(strconv.Itoa(i)), r); err != nil {
					t.Fatal(err)
				}
			}
			var got []int64
			victims, _ := s.evictor.victims(tc.bytes)
			for _, v := range victims {
				got = append(got, v.Accessed)
			}
			slices.Sort(got)
			if !slices.Equal(got, tc.want) {
				t.Errorf("picked those last used at %v, want %v", got, tc.want)
			}
		})
	}
}

// TestVictims_SameSecond: if all blobs were last used in the same second, the one with the most
// uses stays.
func TestVictims_SameSecond(t *testing.T) {
	t.Parallel()
	s := indexOnly(t)
	kept := digest.FromString("kept")
	if err := s.ledger.add(kept, index.Record{Size: 2 * smallBlob, Accessed: 7, Uses: 20}); err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		if err := s.ledger.add(digest.FromString(strconv.Itoa(i)), index.Record{Size: 2 * smallBlob, Accessed: 7, Uses: uint32(i % 2)}); err != nil {
			t.Fatal(err)
		}
	}
	victims, _ := s.evictor.victims(20 * 2 * smallBlob)
	if len(victims) != 20 || slices.ContainsFunc(victims, func(v victim) bool { return v.digest == kept }) {
		t.Errorf("%d of 20 picked, or the one that is used most", len(victims))
	}
}

// TestVictims_Manifests: manifests have priority only in a share of the space, however many and
// large they are.
func TestVictims_Manifests(t *testing.T) {
	t.Parallel()
	const layer, flood = 10 << 20, 4 << 20
	for name, tc := range map[string]struct {
		again bool // the manifests are requested again
		count int64
		want  []int64
	}{
		"one":             {count: 1, want: []int64{1}},
		"many, once":      {count: 10, want: []int64{10}},
		"many, and again": {count: 10, again: true, want: []int64{1}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := indexOnly(t)
			records := []index.Record{{Size: layer, Accessed: 1, Again: true}, {Size: 3 * layer, Accessed: 2, Again: true}}
			for i := range tc.count {
				records = append(records, index.Record{Size: flood, Accessed: 10 + i, Manifest: true, Again: tc.again})
			}
			for i, r := range records {
				if err := s.ledger.add(digest.FromString(strconv.Itoa(i)), r); err != nil {
					t.Fatal(err)
				}
			}
			var got []int64
			victims, _ := s.evictor.victims(1)
			for _, v := range victims {
				got = append(got, v.Accessed)
			}
			if !slices.Equal(got, tc.want) {
				t.Errorf("picked those last used at %v, want %v", got, tc.want)
			}
		})
	}
}

// TestEviction_MatchesSimulator compares eviction, request by request, with the policy measured in
// docs/eviction.md.
func TestEviction_MatchesSimulator(t *testing.T) {
	t.Parallel()
	w := trace.DefaultWorkload(1)
	w.Days, w.Jobs, w.Repositories, w.Bases, w.NewTags = 6, 100, 100, 10, 10
	var requests []trace.Request
	var now int64
	for r := range w.Requests() {
		now = max(now+1, r.Time)             // no ties: the store breaks them by digest
		r.Time, r.Size = now, blocks(r.Size) // as the store counts it
		requests = append(requests, r)
	}
	s := indexOnly(t)
	capacity := trace.UniqueBytes(slices.Values(requests)) / 10
	policy := trace.TwoQ(capacity)
	always := func() bool { return true }
	var hits, evicted int
	for i, r := range requests {
		d := digest.FromString(strconv.FormatUint(r.Key, 10))
		hit := false
		if err := s.ledger.update(slices.Values([]digest.Digest{d}), func(_ digest.Digest, rec *index.Record) {
			use{accessed: r.Time}.apply(rec)
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
			victims, _ := s.evictor.victims(over + capacity/20)
			for _, v := range victims {
				evicted++
				if err := s.ledger.drop(v.digest, always); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := s.ledger.add(d, index.Record{Size: r.Size, Accessed: r.Time, Manifest: r.Manifest}); err != nil {
			t.Fatal(err)
		}
	}
	if hits < len(requests)/4 || evicted < 1000 {
		t.Errorf("%d hits of %d requests, %d evicted: too little was tested", hits, len(requests), evicted)
	}
}
