package storage

import (
	"math"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/cachalot-registry/cachalot/storage/index"
)

// Retention says whether, and how long, content that is requested through a [Scope] is
// stored. The zero Retention: until it is evicted.
type Retention struct {
	NoStore bool          // passed through and not stored
	For     time.Duration // it expires so long after its last use; 0: no limit
}

// or returns the more generous of two.
func (r Retention) or(o Retention) Retention {
	switch {
	case r.NoStore:
		return o
	case o.NoStore:
		return r
	}
	return Retention{For: longer(r.For, o.For)}
}

// until returns the limit of content that is used at now, in Unix seconds; 0: none.
func (r Retention) until(now time.Time) int64 {
	if r.For == 0 {
		return 0
	}
	return now.Add(r.For).Unix()
}

// longer returns the more generous of two limits, of which 0 is none.
func longer[T int64 | time.Duration](a, b T) T {
	if a == 0 || b == 0 {
		return 0
	}
	return max(a, b)
}

// pinnedExpiry is how often a pinned blob whose limit has passed is checked again: it may
// have been unpinned.
const pinnedExpiry = time.Hour

// expire evicts the blobs whose limit has passed. It scans the index only if there can be
// one.
func (s *Store) expire() {
	now := time.Now().Unix()
	if !s.ledger.due(now) {
		return
	}
	var passed []victim
	soonest := int64(math.MaxInt64)
	err := s.index.Records("", func(d []byte, r index.Record) bool {
		if r.Expires() < now {
			passed = append(passed, victim{digest.Digest(d), r})
		} else {
			soonest = min(soonest, r.Expires())
		}
		return s.life.ctx.Err() == nil
	})
	if err != nil {
		s.log.Error("cannot read index for expiry", "error", err)
		soonest = 0 // try again
	}
	var blobs int
	var gone int64
	for _, v := range passed {
		if s.isPinned(v.digest) {
			soonest = min(soonest, now+int64(pinnedExpiry/time.Second))
			continue
		}
		if !s.evict(v) {
			soonest = min(soonest, v.Until)
			continue
		}
		blobs++
		gone += v.diskBytes()
	}
	s.ledger.expect(soonest)
	if blobs > 0 {
		s.log.Info("expired", "blobs", blobs, "bytes", gone)
	}
}
