package storage

import (
	"errors"
	"io/fs"
	"maps"
	"math"
	"time"

	"github.com/opencontainers/go-digest"
)

const (
	// scrubRate bounds what is read in a second, however much there is: an eighth
	// of what a small cloud volume gives (gp3: 125 MiB/s), and 9 TiB in a week.
	scrubRate = 16 << 20
	// scrubWeight is what a blob counts as besides its bytes, so that many small
	// ones are spread over the period too.
	scrubWeight = 64 << 10
)

// scrub reads every blob again once in scrubEvery, in the order of digests, and
// what is suspected at once. It goes by the time that the process runs, so the
// clock may be wrong, and where it was is kept in the index.
func (s *Store) scrub() {
	if s.scrubEvery <= 0 {
		for s.rest(math.MaxInt64) {
		}
		return
	}
	last := s.scrubbed()
	saved := time.Now()
	for s.rest(min(s.scrubEvery, maintenance)) { // a start has other work, and a round may be empty
		for d, err := range s.disk.after(last) {
			begun := time.Now()
			var n int64
			if err != nil {
				s.log.Warn("cannot check blobs", "error", err)
			} else {
				n = s.recheck(d)
			}
			if s.ctx.Err() != nil {
				break
			}
			if err == nil {
				last = d
			}
			if time.Since(saved)+s.share(n)-time.Since(begun) >= maintenance {
				s.setScrubbed(last)
				saved = time.Now()
			}
			if !s.turn(begun, n) {
				break
			}
		}
		if s.ctx.Err() != nil {
			s.setScrubbed(last)
			return
		}
		last = ""
	}
}

// share is the part of the period that a blob of so many bytes has.
func (s *Store) share(bytes int64) time.Duration {
	s.ledger.loaded(s.ctx)
	all, count := s.ledger.totals()
	part := float64(bytes+scrubWeight) / float64(max(all+count*scrubWeight, bytes+scrubWeight))
	return time.Duration(part * float64(s.scrubEvery))
}

// turn waits until the share of a blob that was begun with is over. The share is
// another when blobs have come or gone.
func (s *Store) turn(begun time.Time, bytes int64) bool {
	for {
		left := s.share(bytes) - time.Since(begun)
		if !s.rest(min(left, maintenance)) {
			return false
		}
		if left <= maintenance {
			return true
		}
	}
}

// rest waits, and reads meanwhile what is suspected. It returns false when the
// store closes.
func (s *Store) rest(d time.Duration) bool {
	over := time.NewTimer(d)
	defer over.Stop()
	for {
		select {
		case <-s.ctx.Done():
			return false
		case <-over.C:
			return true
		case <-s.suspected:
		}
		s.mu.Lock()
		suspects := s.suspects
		s.suspects = map[digest.Digest]struct{}{}
		s.mu.Unlock()
		for d := range maps.Keys(suspects) {
			s.recheck(d)
		}
	}
}

// recheck reads a blob again, and puts it away where it is damaged.
func (s *Store) recheck(d digest.Digest) (read int64) {
	read, bad, err := s.disk.check(s.ctx, d, s.pace.WaitN)
	s.metrics.scrubbed.Add(float64(read))
	switch {
	case bad != nil:
		s.quarantineFile(d, *bad)
	case err != nil && s.ctx.Err() == nil && !errors.Is(err, fs.ErrNotExist):
		s.log.Warn("cannot check blob", "digest", d, "error", err)
	}
	return read
}

// scrubbed is the last digest of this round that was read; "": none.
func (s *Store) scrubbed() digest.Digest {
	last, err := s.index.ScrubPosition()
	if err != nil {
		s.log.Warn("cannot read how far blobs were checked: from the start", "error", err)
	}
	return last
}

func (s *Store) setScrubbed(last digest.Digest) {
	if err := s.index.SetScrubPosition(last); err != nil {
		s.log.Warn("cannot record how far blobs were checked", "error", err)
	}
}
