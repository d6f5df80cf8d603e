package storage

import (
	"cmp"
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/cachalot-registry/cachalot/storage/index"
	"github.com/cachalot-registry/cachalot/task"
)

// Background trimming rests after each step of some 100 to 500 us, for so much longer
// that it takes a two-hundredth of a processor: by far the most hits meet none of it
// (BenchmarkHitWhileEvicting). A timer ends the rest: a goroutine that only yields runs
// before those that wait for the network.
const (
	step      = 128 // records that are looked at
	pinStep   = 16  // that one look at a blob's links counts for
	goneStep  = 8   // blobs that are evicted
	restShare = 199
	minRest   = time.Millisecond       // timers are no finer
	maxRest   = 200 * time.Millisecond // a step that was interrupted seems long
)

// maxLooking is how long at most a look at all records is believed that found too
// little.
const maxLooking = 10 * time.Second

// evictor frees space: in the background down to the low mark, and at once for a fill
// that finds no room. What goes first is said in victims.go.
type evictor struct {
	index    *index.Index
	ledger   *ledger
	access   *accessLog
	space    *space
	log      *slog.Logger
	ctx      context.Context // ends all evictions
	running  *sync.WaitGroup // of what runs in the background
	store    evictable
	highMark float64 // percent
	lowMark  float64 // percent

	// trimming holds a value while blobs go in the background. It is taken before turn.
	trimming chan struct{}
	waiting  waiters // that cannot go on before something is evicted: nothing rests then

	// turn holds a value of the one that picks victims or evicts one, and guards the
	// fields below. It is a channel, for its holder may rest; no mutex is held when it is taken.
	turn      chan struct{}
	picked    []victim  // go next, in this order
	noMore    int64     // no more bytes than these could be evicted
	lookAgain time.Time // until then that is taken for true
}

// evictable is what an evictor needs of the store.
type evictable struct {
	evict        func(victim) bool // removes a blob, unless it is in use, pinned, or was used since it was picked
	busy         func(digest.Digest) bool
	pinned       func(digest.Digest) bool
	havePins     func() bool                // or else pinned costs nothing
	idlePartials func() (bytes int64)       // what broken downloads take
	dropPartials func(unused time.Duration) // removes them
}

// newEvictor has the parts of the store that are made before it.
func newEvictor(s *Store) *evictor {
	return &evictor{
		index: s.index, ledger: s.ledger, access: s.access, space: s.space, log: s.log, ctx: s.ctx, running: &s.running,
		trimming: make(chan struct{}, 1), turn: make(chan struct{}, 1),
		store: evictable{
			evict: s.evict, busy: s.gate.busy, pinned: s.isPinned, havePins: func() bool { return s.pins.Load() != nil },
			idlePartials: s.idlePartials, dropPartials: s.dropPartials,
		},
	}
}

// breathe rests after a step that took so long, until a fill waits: it may want what the
// one that rests holds.
func (e *evictor) breathe(took time.Duration) { restUntil(e.ctx, took, e.waiting.some()) }

// rest follows a step that took so long.
func rest(ctx context.Context, took time.Duration) { restUntil(ctx, took, nil) }

// restUntil is rest, and ends with what over says.
func restUntil(ctx context.Context, took time.Duration, over <-chan struct{}) {
	rested := time.NewTimer(min(max(restShare*took, minRest), maxRest))
	defer rested.Stop()
	select {
	case <-rested.C:
	case <-over:
	case <-ctx.Done():
	}
}

// waiters counts who waits.
type waiters struct {
	mu    sync.Mutex
	count int
	are   chan struct{} // closed while there are some; nil: none has asked for it
}

// some is closed while there are waiters, and once the first one comes.
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

// reserve reserves need bytes. Only where they would break a limit it waits, until
// enough is evicted; above the high mark it leaves that to trim. It returns false,
// with nothing reserved and nothing evicted in vain, where they cannot fit.
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

// couldFit says whether reserve(need) would find room. Nothing is evicted; what is
// picked for it goes first once something must.
func (e *evictor) couldFit(need int64) bool {
	if e.space.over(need, 100) <= 0 {
		return true
	}
	e.ledger.loaded(e.ctx)
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

// evictFor reserves need bytes once so much is evicted that they fit. Trimming does
// not rest until then: its look at all records is waited for and used.
func (e *evictor) evictFor(need int64) bool {
	e.ledger.loaded(e.ctx)
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
	for e.ctx.Err() == nil {
		if e.space.reserve(need) {
			return true
		}
		if !e.evictNext(need, &done) {
			return e.space.reserve(need)
		}
	}
	return false
}

// trim evicts down to the low mark in the background, unless it does so already.
func (e *evictor) trim() {
	select {
	case e.trimming <- struct{}{}:
	default:
		return
	}
	e.running.Go(task.Guard("eviction", func() {
		defer func() { <-e.trimming }()
		e.ledger.loaded(e.ctx)
		var done eviction
		for e.ctx.Err() == nil && e.evictAbove(&done) {
			if done.tries%goneStep == 0 {
				e.breathe(done.took)
				done.took = 0
			}
		}
		if done.blobs > 0 {
			e.log.Info("evicted", "blobs", done.blobs, "bytes", done.bytes)
		}
	}))
}

// evictAbove evicts a blob of what is above the low mark. It returns false where
// there is no such.
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
	looked bool // at all records
	gone   bool // something went since
	tries  int
	took   time.Duration // since the last rest
}

// evictNext evicts one of those picked, or picks some first. It returns false where
// nothing more can go. e.turn is held.
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

// pick looks for what must go for need bytes to fit, and for the low mark. Where
// that cannot be reached nothing goes for it. It returns false where all would go
// in vain. e.turn is held.
func (e *evictor) pick(need int64) bool {
	least, most := max(0, e.space.over(need, 100)), e.space.over(need, e.lowMark)
	if most <= 0 {
		return true
	}
	wanted := cmp.Or(least, most)
	if wanted > e.ledger.total() || wanted > e.noMore && time.Now().Before(e.lookAgain) {
		return false // so it was a moment ago
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
		e.noMore, e.lookAgain = bytes-sum, time.Now().Add(min(10*time.Since(start), maxLooking)) // a look at a million takes long
	}
	e.picked = picked
	return len(picked) > 0
}
