package storage

import (
	"cmp"
	"container/heap"
	"errors"
	"io/fs"
	"os"
	"slices"
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
	// mostVictims are picked at once, which bounds the memory that takes, to
	// some 20 MiB.
	mostVictims = 1 << 16
	// smallBlob is a size below which eviction gains nothing: configs and the
	// like, which every pull needs. They go last, with the manifests.
	smallBlob = 64 << 10
	// smallShare: they do so while they take no more than this share of all bytes; as a
	// rule they take some hundredths. Else manifests of 4 MiB would have all layers go.
	smallShare = 8
	// onceShare: blobs used only once go first while they are more than this
	// share of all bytes. docs/eviction.md has what that is worth.
	onceShare = 4
	// correlationWindow is how close uses are that count as one: the jobs of a pipeline
	// start at once, and many clients fetch a blob in parts.
	correlationWindow = time.Minute
)

// maintain brings the index up to date with the disk, then looks after both
// until the store closes.
func (s *Store) maintain() {
	s.readIndex()
	s.index.KeepReserve(index.Floor) // badger may be at work still
	s.reconcile()
	s.makeRoom(0) // for blobs that were not counted before the walk of the disk
	tick := time.NewTicker(maintenance)
	defer tick.Stop()
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-tick.C:
		}
		s.maintainIndex()
		s.health.retryCondemned()
		s.health.updateQuarantine()
		s.access.flush()
		s.dropPartials(partialAge)
		s.expire()
		s.makeRoom(0)
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
	if err := s.ledger.load(s.ctx); err != nil {
		s.log.Error("cannot read index", "error", err)
	}
	s.index.Recount(s.ctx)
}

// victim is a blob that may be evicted.
type victim struct {
	digest digest.Digest
	index.Record
}

// diskBytes is what the blob takes of the disk.
func (v victim) diskBytes() int64 { return blocks(v.Size) }

// Classes of victims, in the order in which they go.
const (
	orphaned = iota // nothing points to it
	limited
	probation
	protected
	small // or a manifest
)

func (v victim) class() int {
	switch {
	case v.Orphaned:
		return orphaned
	case v.Until != 0:
		return limited
	case v.Manifest || v.Size < smallBlob:
		return small
	}
	return v.byUse()
}

// byUse is the class of what is not small.
func (v victim) byUse() int {
	if v.Again {
		return protected
	}
	return probation
}

// victims picks the blobs to evict for so many bytes, those that go first before
// others, and returns what they take of the disk. It looks at every record and
// keeps no more than it picks, by each rule: which one holds is known at the end.
func (s *Store) victims(bytes int64) (picked []victim, sum int64) {
	var pickers []*picker
	for _, r := range []rule{{}, {evenOnce: true}, {evenSmall: true}, {evenOnce: true, evenSmall: true}} {
		pickers = append(pickers, &picker{rule: r, bytes: bytes})
	}
	var all shares
	wanted := func(v victim) bool {
		return slices.ContainsFunc(pickers, func(p *picker) bool { return p.wants(v) })
	}
	begun, seen := time.Now(), 0
	err := s.index.Records("", func(d []byte, r index.Record) bool {
		if seen++; seen >= step {
			s.breathe(time.Since(begun))
			begun, seen = time.Now(), 0
		}
		v := victim{Record: r}
		all.add(v)
		if !wanted(v) {
			return s.ctx.Err() == nil
		}
		v.digest = digest.Digest(d)
		if s.pins.Load() != nil {
			seen += pinStep
		}
		if wanted(v) && !s.busy(v.digest) && !s.isPinned(v.digest) {
			for _, p := range pickers {
				p.offer(v)
			}
		}
		return s.ctx.Err() == nil
	})
	if err != nil {
		s.log.Error("cannot read index for eviction", "error", err)
	}
	holds := all.rule(s.ledger.total())
	p := pickers[slices.IndexFunc(pickers, func(p *picker) bool { return p.rule == holds })]
	slices.SortFunc(p.picked, p.compare)
	return p.picked, p.sum
}

// rule says which victims are like others.
type rule struct {
	evenOnce  bool // what was used once is like what was used again, or else nothing new could stay
	evenSmall bool // small ones and manifests are like large ones
}

// class is a victim's, by the rule.
func (r rule) class(v victim) int {
	c := v.class()
	if c == small && r.evenSmall {
		c = v.byUse()
	}
	if c == probation && r.evenOnce {
		return protected
	}
	return c
}

// shares are what blobs of a kind take of the disk.
type shares struct{ once, small, smallOnce int64 }

func (s *shares) add(v victim) {
	switch v.class() {
	case probation:
		s.once += v.diskBytes()
	case small:
		s.small += v.diskBytes()
		if v.byUse() == probation {
			s.smallOnce += v.diskBytes()
		}
	}
}

// rule is the one that holds where all blobs take so many bytes.
func (s *shares) rule(total int64) rule {
	r, once := rule{evenSmall: s.small > total/smallShare}, s.once
	if r.evenSmall {
		once += s.smallOnce
	}
	r.evenOnce = once <= total/onceShare
	return r
}

// picker picks the least valuable victims that are so many bytes. They are a
// heap, with the most valuable on top.
type picker struct {
	rule

	bytes  int64
	picked []victim
	sum    int64 // of the sizes of picked
}

// compare orders victims by class; in it the sooner limit goes first, then the
// less recently used.
func (p *picker) compare(v, w victim) int {
	return cmp.Or(cmp.Compare(p.class(v), p.class(w)), cmp.Compare(v.Expires(), w.Expires()),
		cmp.Compare(v.Accessed, w.Accessed), cmp.Compare(v.digest, w.digest))
}

// wants errs on the side of a victim without its digest.
func (p *picker) wants(v victim) bool {
	return p.sum < p.bytes && len(p.picked) < mostVictims || p.compare(v, p.picked[0]) < 0
}

// offer picks v if it wants it, and lets go what is too much then.
func (p *picker) offer(v victim) {
	if !p.wants(v) {
		return
	}
	heap.Push(p, v)
	for p.sum += v.diskBytes(); len(p.picked) > mostVictims || len(p.picked) > 1 && p.sum-p.picked[0].diskBytes() >= p.bytes; {
		p.sum -= heap.Pop(p).(victim).diskBytes()
	}
}

func (p *picker) Len() int           { return len(p.picked) }
func (p *picker) Less(i, j int) bool { return p.compare(p.picked[j], p.picked[i]) < 0 }
func (p *picker) Swap(i, j int)      { p.picked[i], p.picked[j] = p.picked[j], p.picked[i] }
func (p *picker) Push(v any)         { p.picked = append(p.picked, v.(victim)) }
func (p *picker) Pop() any {
	v := p.picked[len(p.picked)-1]
	p.picked = p.picked[:len(p.picked)-1]
	return v
}

func (s *Store) busy(d digest.Digest) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.takenLocked(d) || s.open[d] > 0
}

// takenLocked reports whether a blob is being made of the digest, or removed.
func (s *Store) takenLocked(d digest.Digest) bool {
	return s.going[d] != nil || s.fills.ending(d) != nil
}

// whileIdle calls f while the digest can be neither opened nor kept nor downloaded by
// others, unless it is open or taken already. A download in progress is no reason.
func (s *Store) whileIdle(d digest.Digest, f func()) bool {
	return s.shutOut(d, func() bool { return s.takenLocked(d) || s.open[d] > 0 }, f)
}

// alone is whileIdle, but that readers who have the blob open do not matter.
func (s *Store) alone(d digest.Digest, f func()) bool {
	return s.shutOut(d, func() bool { return s.takenLocked(d) }, f)
}

// shutOut calls f while the digest can be neither opened nor kept nor downloaded by
// others, unless it is busy.
func (s *Store) shutOut(d digest.Digest, busyLocked func() bool, f func()) bool {
	s.mu.Lock()
	if busyLocked() {
		s.mu.Unlock()
		return false
	}
	s.goingLocked(d)
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.goneLocked(d)
	}()
	f()
	return true
}

// goingLocked keeps everybody from the digest until goneLocked.
func (s *Store) goingLocked(d digest.Digest) {
	if s.going[d] == nil {
		s.going[d] = make(chan struct{})
	}
}

func (s *Store) goneLocked(d digest.Digest) {
	close(s.going[d])
	delete(s.going, d)
}

// evict removes a blob, first the file, then its record, unless somebody uses
// it or has used it since it was picked.
func (s *Store) evict(v victim) (evicted bool) {
	s.whileIdle(v.digest, func() {
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
