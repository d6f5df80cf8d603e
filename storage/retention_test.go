package storage

import (
	"bytes"
	"io"
	"log/slog"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/cachalot-registry/cachalot/storage/index"
	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

func TestRetentionOr(t *testing.T) {
	t.Parallel()
	// From the least generous to the most.
	order := []Retention{{NoStore: true}, {For: 1}, {For: time.Hour}, {}}
	for i, a := range order {
		for j, b := range order {
			if got := a.or(b); got != order[max(i, j)] {
				t.Errorf("%v or %v is %v", a, b, got)
			}
		}
	}
}

// TestLimits requests a blob at given times, and checks when it expires.
func TestLimits(t *testing.T) {
	t.Parallel()
	const m = time.Minute
	few, many := keeping(Retention{For: 6 * m}), keeping(Retention{For: 12 * m})
	ever, pass := scope(), noStore()
	type ask struct {
		at    time.Duration
		scope Scope
	}
	for name, tc := range map[string]struct {
		asks []ask
		goes time.Duration // after the start; 0: never
	}{
		"not used":               {asks: []ask{{0, few}}, goes: 6 * m},
		"used":                   {asks: []ask{{0, few}, {3 * m, few}}, goes: 9 * m},
		"used again and again":   {asks: []ask{{0, few}, {5 * m, few}, {10 * m, few}, {15 * m, few}}, goes: 21 * m},
		"used late":              {asks: []ask{{0, few}, {6*m - 2*time.Second, few}}, goes: 12*m - 2*time.Second},
		"longer":                 {asks: []ask{{0, few}, {3 * m, many}}, goes: 15 * m},
		"never shorter":          {asks: []ask{{0, many}, {3 * m, few}}, goes: 12 * m},
		"limit removed":          {asks: []ask{{0, few}, {3 * m, ever}, {5 * m, few}}},
		"no limit":               {asks: []ask{{0, ever}, {3 * m, few}}},
		"one batch, first not":   {asks: []ask{{0, few}, {200 * time.Second, ever}, {201 * time.Second, few}}},
		"one batch, last not":    {asks: []ask{{0, few}, {200 * time.Second, few}, {201 * time.Second, ever}}},
		"one batch, the longer":  {asks: []ask{{0, few}, {200 * time.Second, many}, {201 * time.Second, few}}, goes: 200*time.Second + 12*m},
		"one who does not store": {asks: []ask{{0, few}, {3 * m, pass}, {5 * m, pass}}, goes: 6 * m},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := openStore(t, t.TempDir())
				o := &origin{content: upstreamtest.Random(300, 1000)}
				start := time.Now()
				sleepUntil := func(at time.Duration) { time.Sleep(time.Until(start.Add(at))) }
				for _, a := range tc.asks {
					sleepUntil(a.at)
					open(t, s, a.scope, o.digest(), o.source).Close()
					settle(t, s)
				}
				if tc.goes == 0 {
					sleepUntil(25 * m)
					if !s.exists(o.digest()) || soonest(s) != math.MaxInt64 {
						t.Errorf("gone, or expected to go at %d", soonest(s))
					}
					return
				}
				sleepUntil(tc.goes - time.Second)
				if !s.exists(o.digest()) {
					t.Error("gone too early")
				}
				sleepUntil(tc.goes + maintenance + 2*time.Second)
				synctest.Wait()
				if s.exists(o.digest()) {
					t.Error("still here")
				}
				checkNothing(t, s)
				if got := testutil.ToFloat64(s.metrics.evictedBytes.WithLabelValues(reasonAge)); got != block {
					t.Errorf("%v bytes counted as evicted", got)
				}
				if o.opens.Load() != 1 {
					t.Errorf("%d downloads", o.opens.Load())
				}
			})
		})
	}
}

// soonest is when the next blob is expected to expire.
func soonest(s *Store) int64 {
	s.ledger.mu.Lock()
	defer s.ledger.mu.Unlock()
	return s.ledger.soonest
}

// TestExpiry: each blob expires at its own limit, but not while it is read. A new process knows
// the next limit.
func TestExpiry(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		var logged bytes.Buffer
		store := func() *Store {
			s, err := Open(Config{Path: dir, MaxFills: 1}, NewMetrics(), slog.New(slog.NewTextHandler(&logged, nil)))
			if err != nil {
				t.Fatal(err)
			}
			return s
		}
		s := store()
		start := time.Now()
		var origins []*origin
		for i := range 4 {
			o := &origin{content: upstreamtest.Random(uint64(310+i), 1000+i)}
			origins = append(origins, o)
			open(t, s, keeping(Retention{For: time.Duration(i) * 10 * time.Minute}), o.digest(), o.source).Close()
			settle(t, s)
		}
		want := func(when string, next time.Duration, kept ...int) {
			t.Helper()
			synctest.Wait()
			for i, o := range origins {
				if s.exists(o.digest()) != slices.Contains(kept, i) {
					t.Errorf("%s: blob %d is here: %v", when, i, s.exists(o.digest()))
				}
			}
			at := int64(math.MaxInt64)
			if next > 0 {
				at = start.Add(next).Unix()
			}
			if soonest(s) != at {
				t.Errorf("%s: the next is expected to go at %d, want %d", when, soonest(s), at)
			}
			checkDisk(t, s)
		}
		want("at first", 10*time.Minute, 0, 1, 2, 3)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = store()
		want("another process", 10*time.Minute, 0, 1, 2, 3)
		reading := open(t, s, noStore(), origins[1].digest(), nil)
		time.Sleep(12 * time.Minute)
		want("one is read", 10*time.Minute, 0, 1, 2, 3)
		reading.Close()
		time.Sleep(maintenance)
		want("it is closed", 20*time.Minute, 0, 2, 3)
		time.Sleep(20 * time.Minute)
		want("at the end", 0, 0)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if text := logged.String(); strings.Count(text, "msg=expired") != 3 || !strings.Contains(text, "msg=expired blobs=1 bytes=4096") {
			t.Error(text)
		}
	})
}

// TestExpiryMeetsHit: a hit after the limit saves the blob, even if a flush is writing it
// during the expiry.
func TestExpiryMeetsHit(t *testing.T) {
	t.Parallel()
	s := openStore(t, t.TempDir())
	o := &origin{content: upstreamtest.Random(320, 1000)}
	hour := keeping(Retention{For: time.Hour})
	pick := func() victim {
		setRecord(t, s, o.digest(), func(r *index.Record) { r.Until = 1 })
		r, _, err := s.index.Record(o.digest())
		if err != nil {
			t.Fatal(err)
		}
		return victim{o.digest(), r}
	}
	open(t, s, hour, o.digest(), o.source).Close()
	settle(t, s)

	v := pick()
	open(t, s, hour, o.digest(), nil).Close()
	if s.evict(v) {
		t.Error("gone in spite of a hit")
	}

	v = pick()
	open(t, s, hour, o.digest(), nil).Close()
	s.ledger.mu.Lock() // the flush takes the hit, then blocks
	var wg sync.WaitGroup
	wg.Go(s.access.flush)
	for taken := false; !taken; {
		taken = s.access.pending() == 0
	}
	var gone bool
	wg.Go(func() { gone = s.evict(v) })
	for going := false; !going; {
		going = s.gate.isHeld(v.digest)
	}
	s.ledger.mu.Unlock()
	wg.Wait()
	if gone {
		t.Error("gone in spite of a hit that is being written")
	}

	if v = pick(); !s.evict(v) {
		t.Error("still here without a hit")
	}
	checkNothing(t, s)
}

// TestMarkOrphaned: the mark survives a restart. A later hit removes it, an earlier one does
// not.
func TestMarkOrphaned(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := openStore(t, dir)
	hit, not := put(t, s, 1, 1000, 1, false), put(t, s, 2, 1000, 2, false)
	sc := Scope{Upstream: "u", Repository: "r"}
	open(t, s, sc, not, nil).Close()
	if err := s.MarkOrphaned([]digest.Digest{hit, not, digest.FromString("not here")}); err != nil {
		t.Fatal(err)
	}
	open(t, s, sc, hit, nil).Close()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, dir)
	for d, want := range map[digest.Digest]bool{hit: false, not: true} {
		if r, ok, err := s.index.Record(d); err != nil || !ok || r.Orphaned != want {
			t.Errorf("record %+v %v %v, want orphaned %v", r, ok, err, want)
		}
	}
	checkDisk(t, s)
}

// TestVictims_Order checks the order in which blobs are evicted.
func TestVictims_Order(t *testing.T) {
	t.Parallel()
	const big = smallBlob
	order := []index.Record{
		{Size: big, Accessed: 1, Orphaned: true},
		{Size: 1, Accessed: 2, Orphaned: true, Manifest: true},
		{Size: big, Accessed: 3, Orphaned: true, Again: true},
		{Size: 1, Accessed: 9, Until: 5, Manifest: true},
		{Size: big, Accessed: 1, Until: 6, Again: true},
		{Size: big, Accessed: 2, Until: 6},
		{Size: big, Accessed: 2},
		{Size: big, Accessed: 4},
		{Size: big, Accessed: 1, Again: true},
		{Size: big, Accessed: 3, Again: true},
		{Size: big - 1, Accessed: 1, Again: true},
		{Size: big, Accessed: 2, Manifest: true},
	}
	merged := slices.Clone(order)
	merged[6], merged[7], merged[8], merged[9] = order[8], order[6], order[9], order[7]
	for rule, order := range map[rule][]index.Record{{}: order, {evenOnce: true}: merged} {
		for i, a := range order {
			for j, b := range order {
				if got := (&picker{rule: rule}).compare(victim{Record: a}, victim{Record: b}) < 0; got != (i < j) {
					t.Errorf("%+v goes before %+v: %v, by %+v", a, b, got, rule)
				}
			}
		}
	}
}

// TestStore_AllAtOnce runs at once: fills that are stored, stored for a while or not stored,
// marks, hits, expiry and eviction. Then the totals agree with the disk.
func TestStore_AllAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const limit = 2 << 20
		s := openStore(t, t.TempDir(), func(c *Config) { c.MaxSize = Size{Bytes: limit} })
		scopes := []Scope{scope(), noStore(), keeping(Retention{For: time.Minute}), keeping(Retention{For: 10 * time.Minute})}
		origins := make([]*origin, 40)
		for i := range origins {
			origins[i] = &origin{content: upstreamtest.Random(uint64(400+i), 100<<10)}
			if i%5 == 0 {
				origins[i].cuts = []int64{50_000}
			}
		}
		var wg sync.WaitGroup
		for g := range 8 {
			wg.Go(func() {
				random := rand.New(rand.NewPCG(1, uint64(g)))
				for range 60 {
					o, sc := origins[random.IntN(len(origins))], scopes[random.IntN(len(scopes))]
					b, err := s.Get(t.Context(), sc, o.digest(), o.source)
					if err != nil {
						t.Error(err)
						return
					}
					if got, err := io.ReadAll(b.Content); err != nil || !bytes.Equal(got, o.content) {
						t.Errorf("%d bytes, %v", len(got), err)
					}
					b.Close()
					switch random.IntN(6) {
					case 0:
						time.Sleep(time.Duration(random.IntN(40)) * time.Second)
					case 1:
						if err := s.MarkOrphaned([]digest.Digest{o.digest()}); err != nil {
							t.Error(err)
						}
					}
				}
			})
		}
		wg.Wait()
		checkDisk(t, s)
		if got := s.ledger.total(); got > limit {
			t.Errorf("%d bytes kept, limit %d", got, limit)
		}
		if testutil.ToFloat64(s.metrics.evictedBytes.WithLabelValues(reasonSpace)) == 0 {
			t.Error("nothing had to go")
		}
		time.Sleep(12 * time.Minute)
		synctest.Wait()
		limits := map[bool]int{}
		if err := s.index.Records("", func(_ []byte, r index.Record) bool { limits[r.Until != 0]++; return true }); err != nil {
			t.Error(err)
		}
		if limits[true] != 0 || limits[false] == 0 {
			t.Errorf("%v: blobs by whether they have a limit, want all of those gone", limits)
		}
		for _, o := range origins {
			if !s.exists(o.digest()) && countLinksOf(t, s, o.digest()) > 0 {
				t.Errorf("%s is gone, its links are not", o.digest())
			}
		}
		checkDisk(t, s)
		if got := testutil.ToFloat64(s.metrics.bytes); got != float64(s.ledger.total()) {
			t.Errorf("storage_bytes is %v, want %d", got, s.ledger.total())
		}
	})
}
