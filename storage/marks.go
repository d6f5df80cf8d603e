package storage

import (
	"cmp"
	"context"
	"time"

	"github.com/cachalot-registry/cachalot/task"
)

// Who works while nobody waits for it goes on for a step, some 100 to 500 us, then
// rests for so much longer that it takes a two-hundredth of a processor: by far the
// most hits meet none of it (BenchmarkHitWhileEvicting). A timer ends the rest: who
// merely yields is before those who wait for the network.
const (
	step      = 128 // records that are looked at
	pinStep   = 16  // that one look at a blob's links counts for
	goneStep  = 8   // blobs that are evicted
	restShare = 199
	minRest   = time.Millisecond       // timers are no finer
	maxRest   = 200 * time.Millisecond // a fill may come to wait meanwhile
)

// maxLooking is how long at most a look at all records is believed that found too
// little.
const maxLooking = 10 * time.Second

// breathe rests after a step that took so long, unless somebody waits.
func (s *Store) breathe(took time.Duration) {
	if s.waiting.Load() > 0 {
		return
	}
	rest(s.ctx, took)
}

// rest follows a step that took so long.
func rest(ctx context.Context, took time.Duration) {
	pauseFor(ctx, min(max(restShare*took, minRest), maxRest))
}

func pauseFor(ctx context.Context, d time.Duration) {
	over := time.NewTimer(d)
	defer over.Stop()
	select {
	case <-over.C:
	case <-ctx.Done():
	}
}

// makeRoom reserves need bytes. Only where they would break a limit it waits, until
// enough is evicted; above the high mark it leaves that to trim. It returns false,
// with nothing reserved and nothing evicted in vain, where they cannot fit.
func (s *Store) makeRoom(need int64) bool {
	switch {
	case s.space.reserve(need):
		if s.space.over(0, s.highMark) > 0 {
			s.trim()
		}
	case s.evictFor(need):
		s.trim()
	default:
		return false
	}
	return true
}

// couldFit says whether makeRoom(need) would find room. Nothing is evicted; what is
// picked for it goes first once something must.
func (s *Store) couldFit(need int64) bool {
	if s.space.over(need, 100) <= 0 {
		return true
	}
	s.ledger.loaded(s.ctx)
	s.waiting.Add(1)
	defer s.waiting.Add(-1)
	s.evicting <- struct{}{}
	defer func() { <-s.evicting }()
	need -= s.idlePartials()
	least := s.space.over(need, 100)
	for _, v := range s.picked {
		if least <= 0 {
			break
		}
		least -= v.diskBytes()
	}
	return least <= 0 || s.pick(need)
}

// evictFor reserves need bytes once so much is evicted that they fit. Nobody rests
// meanwhile: not trim either, whose look at all records is waited for and used.
func (s *Store) evictFor(need int64) bool {
	s.ledger.loaded(s.ctx)
	s.waiting.Add(1)
	defer s.waiting.Add(-1)
	s.evicting <- struct{}{}
	defer func() { <-s.evicting }()
	s.dropPartials(0)
	var e eviction
	defer func() {
		if e.blobs > 0 {
			s.log.Info("evicted for a download", "blobs", e.blobs, "bytes", e.bytes)
		}
	}()
	for s.ctx.Err() == nil {
		if s.space.reserve(need) {
			return true
		}
		if !s.evictNext(need, &e) {
			return s.space.reserve(need)
		}
	}
	return false
}

// trim evicts down to the low mark while nobody waits for it, unless it does so
// already.
func (s *Store) trim() {
	select {
	case s.trimming <- struct{}{}:
	default:
		return
	}
	s.running.Go(task.Guard("eviction", func() {
		defer func() { <-s.trimming }()
		s.ledger.loaded(s.ctx)
		var e eviction
		for s.ctx.Err() == nil && s.evictAbove(&e) {
			if e.tries%goneStep == 0 {
				s.breathe(e.took)
				e.took = 0
			}
		}
		if e.blobs > 0 {
			s.log.Info("evicted", "blobs", e.blobs, "bytes", e.bytes)
		}
	}))
}

// evictAbove evicts a blob of what is above the low mark. It returns false where
// there is no such.
func (s *Store) evictAbove(e *eviction) bool {
	s.evicting <- struct{}{}
	defer func() { <-s.evicting }()
	if s.space.over(0, s.lowMark) <= 0 {
		s.picked = nil
		return false
	}
	return s.evictNext(0, e)
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
// nothing more can go. s.evicting is held.
func (s *Store) evictNext(need int64, e *eviction) bool {
	if len(s.picked) == 0 {
		if e.looked && !e.gone {
			return false
		}
		s.dropPartials(0)
		if !s.pick(need) {
			return false
		}
		e.looked, e.gone = true, false
	}
	if len(s.picked) == 0 {
		return true // partials were enough
	}
	v := s.picked[0]
	s.picked = s.picked[1:]
	begun := time.Now()
	defer func() { e.took += time.Since(begun) }()
	e.tries++
	if s.evict(v) {
		e.blobs++
		e.bytes += v.diskBytes()
		e.gone = true
	}
	return true
}

// pick looks for what must go for need bytes to fit, and for the low mark. Where
// that cannot be reached nothing goes for it. It returns false where all would go
// in vain. s.evicting is held.
func (s *Store) pick(need int64) bool {
	least, most := max(0, s.space.over(need, 100)), s.space.over(need, s.lowMark)
	if most <= 0 {
		return true
	}
	wanted := cmp.Or(least, most)
	if wanted > s.ledger.total() || wanted > s.noMore && time.Now().Before(s.lookAgain) {
		return false // so it was a moment ago
	}
	s.log.Debug("looking at all records", "wanted_bytes", most)
	s.access.flush()
	start := time.Now()
	picked, bytes := s.victims(most)
	if bytes < wanted && len(picked) < mostVictims {
		s.log.Warn("no room: all other blobs are pinned or in use", "wanted_bytes", wanted, "evictable_bytes", bytes)
	}
	if bytes < most && len(picked) < mostVictims {
		n, sum := 0, int64(0)
		for bytes >= least && sum < least {
			sum += picked[n].diskBytes()
			n++
		}
		picked = picked[:n]
		s.noMore, s.lookAgain = bytes-sum, time.Now().Add(min(10*time.Since(start), maxLooking)) // a look at a million takes long
	}
	s.picked = picked
	return len(picked) > 0
}
