package storage

import (
	"errors"
	"io/fs"
	"os"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/cachalot-registry/cachalot/storage/index"
)

const (
	// maintenance is how often hits are written, what has outlived its limit
	// goes, and the disk is checked for what other programs do to it.
	maintenance = time.Minute
	// partialAge is how long a broken download may wait to be resumed.
	partialAge = 24 * time.Hour
)

// maintain brings the index up to date with the disk, then looks after both
// until the store closes.
func (s *Store) maintain() {
	s.readIndex()
	s.index.KeepReserve(index.Floor) // badger may be at work still
	s.reconcile()
	s.evictor.reserve(0) // for blobs that were not counted before the walk of the disk
	tick := time.NewTicker(maintenance)
	defer tick.Stop()
	for {
		select {
		case <-s.life.ctx.Done():
			return
		case <-tick.C:
		}
		s.maintainIndex()
		s.health.retryCondemned()
		s.health.updateQuarantine()
		s.access.flush()
		s.dropPartials(partialAge)
		s.expire()
		s.evictor.reserve(0)
	}
}

// maintainIndex has the index write what waited for room on the disk. One that could not
// even be opened until now is read, and made to agree with the disk.
func (s *Store) maintainIndex() {
	if s.index.Maintain() {
		s.readIndex()
		s.reconcile()
	}
}

// readIndex adds up what the index knows. Nobody waits for that but who must evict.
func (s *Store) readIndex() {
	s.log.Debug("adding up records")
	if err := s.ledger.load(s.life.ctx); err != nil {
		s.log.Error("cannot read index", "error", err)
	}
	s.index.Recount(s.life.ctx)
}

// evict removes a blob, first the file, then its record, unless it is in use or
// was used since it was picked.
func (s *Store) evict(v victim) (evicted bool) {
	s.gate.exclusiveIdle(v.digest, func() {
		if s.access.usedSince(v.digest, v.Record) || s.isPinned(v.digest) {
			return
		}
		if err := os.Remove(s.disk.blob(v.digest)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			s.log.Warn("cannot evict blob", "digest", v.digest, "error", err)
			return
		}
		s.forget(v.digest)
		now, reason := time.Now().Unix(), reasonSpace
		if v.Expires() < now {
			reason = reasonAge
		}
		s.metrics.evictedBytes.WithLabelValues(reason).Add(float64(v.diskBytes()))
		s.metrics.evictionAge.WithLabelValues(reason).Observe(float64(max(0, now-v.Accessed)))
		evicted = true
	})
	return evicted
}

// forget drops the record and the links of a blob that is not on disk.
func (s *Store) forget(d digest.Digest) {
	s.access.remove(d)
	if err := s.ledger.drop(d, func() bool { return !s.exists(d) }); err != nil {
		s.log.Warn("cannot forget blob", "digest", d, "error", err)
	}
}
