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
	// maintenance is how often access times are written and the limits are
	// checked against what other programs do to the disk.
	maintenance = time.Minute
	// partialAge is how long a broken download may wait to be resumed.
	partialAge = 24 * time.Hour
	// slack is evicted beyond what is needed, as a share of the limit, so
	// that not every fill has to evict.
	slack = 20
	// smallBlob is a size below which eviction gains nothing: configs and the
	// like, which every pull needs. They go last, with the manifests.
	smallBlob = 64 << 10
)

// maintain brings the index up to date with the disk, then looks after both
// until the store closes.
func (s *Store) maintain() {
	s.reconcile()
	tick := time.NewTicker(maintenance)
	defer tick.Stop()
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-tick.C:
		}
		if err := s.flushTouched(); err != nil {
			s.log.Warn("cannot record access times", "error", err)
		}
		s.dropPartials(partialAge)
		s.makeRoom(0)
	}
}

// flushTouched writes the access times gathered since the last time.
func (s *Store) flushTouched() error {
	s.mu.Lock()
	touched := s.touched
	s.touched = make(map[digest.Digest]int64)
	s.mu.Unlock()
	if len(touched) == 0 {
		return nil
	}
	return s.ledger.touch(touched)
}

// makeRoom reserves need bytes, and evicts until they fit below max_size and
// above min_free. It returns false, with nothing reserved, where they do not.
func (s *Store) makeRoom(need int64) bool {
	s.evicting.Lock()
	defer s.evicting.Unlock()
	if over := s.excess(need); over > 0 {
		if err := s.flushTouched(); err != nil {
			s.log.Warn("cannot record access times", "error", err)
		}
		s.dropPartials(0)
		over = s.excess(need)
		if over > 0 && over <= s.ledger.total() { // else all blobs would go in vain
			s.evict(over + max(s.maxSize, s.minFree)/slack)
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
	return max(over, s.minFree+reserved+need-free)
}

// evict removes the least valuable blobs until so many bytes are gone.
func (s *Store) evict(bytes int64) {
	var blobs int
	var gone int64
	for _, v := range s.victims(bytes) {
		if !s.remove(v.digest) {
			continue
		}
		blobs++
		gone += v.size
		s.metrics.evictedBytes.Add(float64(v.size))
		s.metrics.evictionAge.Observe(float64(max(0, time.Now().Unix()-v.accessed)))
	}
	s.log.Info("evicted", "blobs", blobs, "bytes", gone, "wanted_bytes", bytes)
}

// victim is a blob that may be evicted.
type victim struct {
	digest digest.Digest
	record
}

// before orders victims: what is small or a manifest after all else, then the
// least recently used first.
func (v victim) before(w victim) bool {
	class := func(v victim) int {
		if v.manifest || v.size < smallBlob {
			return 1
		}
		return 0
	}
	return cmp.Or(cmp.Compare(class(v), class(w)), cmp.Compare(v.accessed, w.accessed), cmp.Compare(v.digest, w.digest)) < 0
}

// victims picks the blobs to evict for so many bytes. It looks at every record
// and keeps no more than it picks.
func (s *Store) victims(bytes int64) []victim {
	var picked victimHeap
	var sum int64
	err := s.index.records(func(d digest.Digest, r record) bool {
		v := victim{d, r}
		if sum >= bytes && !v.before(picked[0]) || s.busy(d) {
			return true
		}
		heap.Push(&picked, v)
		for sum += v.size; len(picked) > 1 && sum-picked[0].size >= bytes; {
			sum -= heap.Pop(&picked).(victim).size
		}
		return true
	})
	if err != nil {
		s.log.Error("cannot read index for eviction", "error", err)
	}
	return picked
}

// victimHeap has the most valuable of the victims on top.
type victimHeap []victim

func (h victimHeap) Len() int           { return len(h) }
func (h victimHeap) Less(i, j int) bool { return h[j].before(h[i]) }
func (h victimHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *victimHeap) Push(v any)        { *h = append(*h, v.(victim)) }
func (h *victimHeap) Pop() any {
	old := *h
	v := old[len(old)-1]
	*h = old[:len(old)-1]
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
	done := make(chan struct{})
	s.going[d] = done
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.going, d)
		s.mu.Unlock()
		close(done)
	}()
	f()
	return true
}

// remove deletes a blob that nobody uses, first the file, then its record.
func (s *Store) remove(d digest.Digest) (removed bool) {
	s.whileIdle(d, func() {
		if err := os.Remove(s.disk.blob(d)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			s.log.Warn("cannot evict blob", "digest", d, "error", err)
			return
		}
		removed = true
		if err := s.ledger.drop(d, func() bool { return true }); err != nil {
			s.log.Warn("cannot forget blob", "digest", d, "error", err)
		}
	})
	return removed
}

// dropPartials removes broken downloads that nobody has resumed for age.
func (s *Store) dropPartials(age time.Duration) {
	err := s.disk.partials(func(d digest.Digest, info fs.FileInfo) {
		if time.Since(info.ModTime()) < age {
			return
		}
		s.whileIdle(d, func() {
			name := s.disk.partial(d)
			if info, err := os.Stat(name); err == nil && os.Remove(name) == nil {
				s.filling.Add(-info.Size())
			}
		})
	})
	if err != nil {
		s.log.Warn("cannot list partial downloads", "error", err)
	}
}

// reconcile walks the disk and makes the index agree with it: a blob that the
// index lost is found again, a record whose file is gone is dropped.
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
		if err := s.ledger.drop(d, func() bool { return !s.exists(d) }); err != nil {
			s.log.Warn("cannot forget blob", "digest", d, "error", err)
		}
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
