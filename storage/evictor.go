package storage

import (
	"cmp"
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/cachalot-registry/cachalot/storage/index"
)

// Background trimming rests after each step of 100 to 500 us, 199 times as long as the step
// took. So it uses a two-hundredth of a processor, and nearly no hit is slowed by it
// (BenchmarkHitWhileEvicting). It rests on a timer, because a goroutine that only yields
// runs before those that wait for the network.
const (
	step      = 128 // records that are scanned
	pinStep   = 16  // records that one look at a blob's links counts as
	goneStep  = 8   // blobs that are evicted
	restShare = 199
	minRest   = time.Millisecond       // timers are no finer
	maxRest   = 200 * time.Millisecond // a step that was interrupted seems long
)

// maxLooking bounds how long the result of a scan of all records is reused that found too
// few bytes to evict.
const maxLooking = 10 * time.Second

// evictor frees space: in the background down to the low mark, and at once for a fill
// that would exceed a limit. victims.go says which blobs go first.
type evictor struct {
	index    *index.Index
	ledger   *ledger
	access   *accessLog
	space    *space
	log      *slog.Logger
	life     *lifetime // its end ends all evictions
	store    evictable
	highMark float64 // percent
	lowMark  float64 // percent

	// trimming holds a value while trim runs in the background. It is taken before turn.
	trimming chan struct{}
	waiting  waiters // fills (and maintenance) that wait for an eviction; trimming does not rest while there are any

	// turn holds a value while one goroutine picks victims or evicts one, and guards the
	// fields below. It is a channel, because its holder may rest. No mutex is held when it is
	// taken; gate.exclusiveIdle, accessLog.flushing and ledger.mu are taken under it.
	turn      chan struct{}
	picked    []victim  // evicted next, in this order
	noMore    int64     // the last scan found no more bytes than these to evict
	lookAgain time.Time // no other scan for more bytes than noMore until then
}

// evictable is what an evictor needs of the store.
type evictable struct {
	evict        func(victim) bool // removes a blob, unless it is in use, pinned, or was used since it was picked
	busy         func(digest.Digest) bool
	pinned       func(digest.Digest) bool
	havePins     func() bool                // false: pinned is always false, and cheap
	idlePartials func() (bytes int64)       // disk space of broken downloads
	dropPartials func(unused time.Duration) // removes broken downloads
}

// newEvictor uses the parts of the store that are made before it.
func newEvictor(s *Store) *evictor {
	return &evictor{
		index: s.index, ledger: s.ledger, access: s.access, space: s.space, log: s.log, life: s.life,
		trimming: make(chan struct{}, 1), turn: make(chan struct{}, 1),
		store: evictable{
			evict: s.evict, busy: s.gate.busy, pinned: s.isPinned, havePins: func() bool { return s.pins.Load() != nil },
			idlePartials: s.idlePartials, dropPartials: s.dropPartials,
		},
	}
}

// breathe rests after a step that took so long. It returns at once if a fill waits, which
// may need the turn that the caller holds.
func (e *evictor) breathe(took time.Duration) { restUntil(e.life.ctx, took, e.waiting.some()) }

// rest waits after a step that took so long.
func rest(ctx context.Context, took time.Duration) { restUntil(ctx, took, nil) }

// restUntil is rest, and returns early when over is closed.
func restUntil(ctx context.Context, took time.Duration, over <-chan struct{}) {
	rested := time.NewTimer(min(max(restShare*took, minRest), maxRest))
	defer rested.Stop()
	select {
	case <-rested.C:
	case <-over:
	case <-ctx.Done():
	}
}

// waiters counts the fills that wait for an eviction.
type waiters struct {
	mu    sync.Mutex // guards the fields below; no lock is taken under it
	count int
	are   chan struct{} // closed while count > 0; nil: not asked for yet
}

// some returns a channel that is closed while there are waiters.
func (w *waiters) some() <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.channel()
}

func (w *waiters) channel() chan struct{} {
	if w.are == nil {
		w.are = make(chan struct{})
	}
	return w.are
}

// enter adds one, until leave is called.
func (w *waiters) enter() (leave func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.count++; w.count == 1 {
		close(w.channel())
	}
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.count--; w.count == 0 {
			w.are = nil
		}
	}
}

// reserve reserves need bytes. If they would exceed a limit it evicts first, and the
// caller waits; if they only exceed the high mark, trim evicts in the background. It
// returns false, with nothing reserved and nothing evicted, if they cannot fit.
func (e *evictor) reserve(need int64) bool {
	switch {
	case e.space.reserve(need):
		if e.space.over(0, e.highMark) > 0 {
			e.trim()
		}
	case e.evictFor(need):
		e.trim()
	default:
		return false
	}
	return true
}

// couldFit reports whether reserve(need) would find space. It evicts nothing; the victims
// that it picks go first in the next eviction.
func (e *evictor) couldFit(need int64) bool {
	if e.space.over(need, 100) <= 0 {
		return true
	}
	e.ledger.loaded(e.life.ctx)
	defer e.waiting.enter()()
	e.turn <- struct{}{}
	defer func() { <-e.turn }()
	need -= e.store.idlePartials()
	least := e.space.over(need, 100)
	for _, v := range e.picked {
		if least <= 0 {
			break
		}
		least -= v.diskBytes()
	}
	return least <= 0 || e.pick(need)
}

// evictFor evicts until need bytes fit, and reserves them. Trimming does not rest
// while it runs. If trim is scanning the records, evictFor waits and uses its victims.
func (e *evictor) evictFor(need int64) bool {
	e.ledger.loaded(e.life.ctx)
	defer e.waiting.enter()()
	e.turn <- struct{}{}
	defer func() { <-e.turn }()
	e.store.dropPartials(0)
	var done eviction
	defer func() {
		if done.blobs > 0 {
			e.log.Info("evicted for a download", "blobs", done.blobs, "bytes", done.bytes)
		}
	}()
	for e.life.ctx.Err() == nil {
		if e.space.reserve(need) {
			return true
		}
		if !e.evictNext(need, &done) {
			return e.space.reserve(need)
		}
	}
	return false
}

// trim evicts down to the low mark in the background, unless it is running already.
func (e *evictor) trim() {
	select {
	case e.trimming <- struct{}{}:
	default:
		return
	}
	e.life.run("eviction", func() {
		defer func() { <-e.trimming }()
		e.ledger.loaded(e.life.ctx)
		var done eviction
		for e.life.ctx.Err() == nil && e.evictAbove(&done) {
			if done.tries%goneStep == 0 {
				e.breathe(done.took)
				done.took = 0
			}
		}
		if done.blobs > 0 {
			e.log.Info("evicted", "blobs", done.blobs, "bytes", done.bytes)
		}
	})
}

// evictAbove evicts one blob if more is used than the low mark. It returns false if
// there is nothing to evict.
func (e *evictor) evictAbove(done *eviction) bool {
	e.turn <- struct{}{}
	defer func() { <-e.turn }()
	if e.space.over(0, e.lowMark) <= 0 {
		e.picked = nil
		return false
	}
	return e.evictNext(0, done)
}

// eviction is what one goroutine evicts.
type eviction struct {
	blobs  int
	bytes  int64
	looked bool // it has scanned all records
	gone   bool // it has evicted a blob since
	tries  int
	took   time.Duration // since the last rest
}

// evictNext evicts one of the picked blobs, and picks some first if there is none. It
// returns false if no more can be evicted. e.turn is held.
func (e *evictor) evictNext(need int64, done *eviction) bool {
	if len(e.picked) == 0 {
		if done.looked && !done.gone {
			return false
		}
		e.store.dropPartials(0)
		if !e.pick(need) {
			return false
		}
		done.looked, done.gone = true, false
	}
	if len(e.picked) == 0 {
		return true // partials were enough
	}
	v := e.picked[0]
	e.picked = e.picked[1:]
	begun := time.Now()
	defer func() { done.took += time.Since(begun) }()
	done.tries++
	if e.store.evict(v) {
		done.blobs++
		done.bytes += v.diskBytes()
		done.gone = true
	}
	return true
}

// pick picks the blobs to evict: enough for need bytes and the low mark. If the low mark
// cannot be reached, only enough for need. If need cannot be reached either, none, and it
// returns false. e.turn is held.
func (e *evictor) pick(need int64) bool {
	least, most := max(0, e.space.over(need, 100)), e.space.over(need, e.lowMark)
	if most <= 0 {
		return true
	}
	wanted := cmp.Or(least, most)
	if wanted > e.ledger.total() || wanted > e.noMore && time.Now().Before(e.lookAgain) {
		return false // the last scan was a moment ago, and found too few bytes
	}
	e.log.Debug("scanning all records for blobs to evict", "wanted_bytes", most)
	e.access.flush()
	start := time.Now()
	picked, bytes := e.victims(most)
	if bytes < wanted && len(picked) < mostVictims {
		e.log.Warn("no space: all other blobs are pinned or in use", "wanted_bytes", wanted, "evictable_bytes", bytes)
	}
	if bytes < most && len(picked) < mostVictims {
		n, sum := 0, int64(0)
		for bytes >= least && sum < least {
			sum += picked[n].diskBytes()
			n++
		}
		picked = picked[:n]
		e.noMore, e.lookAgain = bytes-sum, time.Now().Add(min(10*time.Since(start), maxLooking)) // a scan of a million records is slow
	}
	e.picked = picked
	return len(picked) > 0
}
