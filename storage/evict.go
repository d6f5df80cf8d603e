package storage

import (
	"cmp"
	"container/heap"
	"errors"
	"io/fs"
	"os"
	"time"

	"github.com/opencontainers/go-digest"
)

const (
	// maintenance is how often hits are written, what has outlived its limit
	// goes, and the disk is checked for what other programs do to it.
	maintenance = time.Minute
	// partialAge is how long a broken download may wait to be resumed.
	partialAge = 24 * time.Hour
	// slack is evicted beyond what is needed, as a share of the limit, so
	// that not every fill has to evict.
	slack = 20
	// smallBlob is a size below which eviction gains nothing: configs and the
	// like, which every pull needs. They go last, with the manifests.
	smallBlob = 64 << 10
	// onceShare: blobs used only once go first while they are more than this
	// share of all bytes. docs/eviction.md has what that is worth.
	onceShare = 4
	// sameUse is how close uses are that count as one: the jobs of a pipeline
	// start at once, and many clients fetch a blob in parts.
	sameUse = time.Minute
)

// maintain brings the index up to date with the disk, then looks after both
// until the store closes.
func (s *Store) maintain() {
	s.index.keepReserve(indexFloor) // badger may be at work still
	s.reconcile()
	tick := time.NewTicker(maintenance)
	defer tick.Stop()
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-tick.C:
		}
		s.tend()
		s.flushTouched()
		s.dropPartials(partialAge)
		s.expire()
		s.makeRoom(0)
	}
}

// tend has the index write what waited for room on the disk. One that could not
// even be opened until now is read, and made to agree with the disk.
func (s *Store) tend() {
	if s.index.tend() {
		s.readIndex()
		s.reconcile()
	}
}

// readIndex adds up what the index knows.
func (s *Store) readIndex() {
	if err := s.ledger.load(); err != nil {
		s.log.Error("cannot read index", "error", err)
	}
	s.index.opened()
}

// makeRoom reserves need bytes, and evicts until they fit below max_size and
// above min_free. It returns false, with nothing reserved, where they do not.
func (s *Store) makeRoom(need int64) bool {
	s.evicting.Lock()
	defer s.evicting.Unlock()
	if over := s.excess(need); over > 0 {
		s.flushTouched()
		s.dropPartials(0)
		over = s.excess(need)
		if over > 0 && over <= s.ledger.total() { // else all blobs would go in vain
			s.free(over + max(s.maxSize, s.minFree)/slack)
		}
		if s.excess(need) > 0 {
			return false
		}
	}
	s.reserved.Add(need)
	return true
}

// excess is by how many bytes need more would break a limit.
func (s *Store) excess(need int64) int64 {
	var over int64
	reserved := s.reserved.Load()
	if s.maxSize > 0 {
		over = s.ledger.total() + s.filling.Load() + reserved + need - s.maxSize
	}
	free, _, err := s.disk.space()
	if err != nil {
		s.log.Warn("cannot read free space", "error", err)
		return over
	}
	return max(over, max(s.minFree, indexFloor)+reserved+need-free)
}

// free removes the least valuable blobs until so many bytes are gone.
func (s *Store) free(bytes int64) {
	var blobs int
	var gone int64
	for _, v := range s.victims(bytes) {
		if s.evict(v) {
			blobs++
			gone += v.size
		}
	}
	s.log.Info("evicted", "blobs", blobs, "bytes", gone, "wanted_bytes", bytes)
}

// victim is a blob that may be evicted.
type victim struct {
	digest digest.Digest
	record
}

// Classes of victims, in the order in which they go.
const (
	unwanted = iota // nothing points to it
	limited
	usedOnce
	usedAgain
	small // or a manifest
)

func (v victim) class() int {
	switch {
	case v.expendable:
		return unwanted
	case v.until != 0:
		return limited
	case v.manifest || v.size < smallBlob:
		return small
	case v.again:
		return usedAgain
	}
	return usedOnce
}

// victims picks the blobs to evict for so many bytes. It looks at every record
// and keeps no more than it picks, twice: what was used only once goes first, but
// not when that is a small part of all, or else nothing new could stay.
func (s *Store) victims(bytes int64) []victim {
	var once int64
	first, merged := picker{bytes: bytes}, picker{bytes: bytes, merge: true}
	err := s.index.records(func(d digest.Digest, r record) bool {
		v := victim{d, r}
		if v.class() == usedOnce {
			once += v.size
		}
		if (first.wants(v) || merged.wants(v)) && !s.busy(d) {
			first.offer(v)
			merged.offer(v)
		}
		return true
	})
	if err != nil {
		s.log.Error("cannot read index for eviction", "error", err)
	}
	if once > s.ledger.total()/onceShare {
		return first.picked
	}
	return merged.picked
}

// picker picks the least valuable victims that are so many bytes. They are a
// heap, with the most valuable on top.
type picker struct {
	bytes  int64
	merge  bool // what was used once is like what was used again
	picked []victim
	sum    int64 // of the sizes of picked
}

// before orders victims by class; in it the sooner limit goes first, then the
// less recently used.
func (p *picker) before(v, w victim) bool {
	class := func(v victim) int {
		if c := v.class(); c != usedOnce || !p.merge {
			return c
		}
		return usedAgain
	}
	return cmp.Or(cmp.Compare(class(v), class(w)), cmp.Compare(v.expires(), w.expires()),
		cmp.Compare(v.accessed, w.accessed), cmp.Compare(v.digest, w.digest)) < 0
}

func (p *picker) wants(v victim) bool { return p.sum < p.bytes || p.before(v, p.picked[0]) }

// offer picks v if it wants it, and lets go what is too much then.
func (p *picker) offer(v victim) {
	if !p.wants(v) {
		return
	}
	heap.Push(p, v)
	for p.sum += v.size; len(p.picked) > 1 && p.sum-p.picked[0].size >= p.bytes; {
		p.sum -= heap.Pop(p).(victim).size
	}
}

func (p *picker) Len() int           { return len(p.picked) }
func (p *picker) Less(i, j int) bool { return p.before(p.picked[j], p.picked[i]) }
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
	return s.busyLocked(d)
}

func (s *Store) busyLocked(d digest.Digest) bool {
	return s.fills[d] != nil || s.open[d] > 0 || s.going[d] != nil
}

// whileIdle calls f while nobody can open or fill the digest, unless somebody
// does already.
func (s *Store) whileIdle(d digest.Digest, f func()) bool {
	s.mu.Lock()
	if s.busyLocked(d) {
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
		s.flushTouched()
		if r, _, err := s.index.record(v.digest); err != nil || r != v.record {
			return
		}
		if err := os.Remove(s.disk.blob(v.digest)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			s.log.Warn("cannot evict blob", "digest", v.digest, "error", err)
			return
		}
		s.forget(v.digest)
		s.metrics.evictedBytes.Add(float64(v.size))
		s.metrics.evictionAge.Observe(float64(max(0, time.Now().Unix()-v.accessed)))
		evicted = true
	})
	return evicted
}

// forget drops the record and the links of a blob that is not on disk.
func (s *Store) forget(d digest.Digest) {
	if err := s.ledger.drop(d, func() bool { return !s.exists(d) }); err != nil {
		s.log.Warn("cannot forget blob", "digest", d, "error", err)
	}
}

// removePartial removes a partial, and the links of those who waited for it.
// Readers that have the file open keep it.
func (s *Store) removePartial(d digest.Digest) {
	name := s.disk.partial(d)
	info, err := os.Stat(name)
	if err == nil {
		err = os.Remove(name)
	}
	switch {
	case err == nil:
		s.filling.Add(-info.Size())
	case !errors.Is(err, fs.ErrNotExist):
		s.log.Warn("cannot remove partial", "digest", d, "error", err)
		return
	}
	s.forget(d)
}

// dropPartials removes broken downloads that nobody has resumed for age.
func (s *Store) dropPartials(age time.Duration) {
	err := s.disk.partials(func(d digest.Digest, info fs.FileInfo) {
		if time.Since(info.ModTime()) < age {
			return
		}
		s.whileIdle(d, func() { s.removePartial(d) })
	})
	if err != nil {
		s.log.Warn("cannot list partial downloads", "error", err)
	}
}

// reconcile walks the disk and makes the index agree with it: a blob that the
// index lost, or whose record cannot be decoded, is found again; a record whose
// file is gone is dropped.
func (s *Store) reconcile() {
	start := time.Now()
	var found, lost int
	s.disk.blobs(func(d digest.Digest, info fs.FileInfo) bool {
		if _, ok, err := s.index.record(d); err == nil && !ok {
			r := record{size: info.Size(), accessed: info.ModTime().Unix()}
			if err := s.ledger.add(d, r, false, func() bool { return s.exists(d) }); err != nil {
				s.log.Warn("cannot record blob", "digest", d, "error", err)
			}
			found++
		}
		return s.ctx.Err() == nil
	})
	var missing []digest.Digest
	err := s.index.records(func(d digest.Digest, _ record) bool {
		if !s.exists(d) {
			missing = append(missing, d)
		}
		return s.ctx.Err() == nil
	})
	for _, d := range missing {
		s.forget(d)
		lost++
	}
	if err != nil {
		s.log.Error("cannot read index", "error", err)
	}
	s.log.Info("index agrees with the disk", "found_blobs", found, "lost_blobs", lost, "bytes", s.ledger.total(),
		"seconds", time.Since(start).Seconds())
}

func (s *Store) exists(d digest.Digest) bool {
	_, err := os.Stat(s.disk.blob(d))
	return err == nil
}
