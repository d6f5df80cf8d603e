package storage

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"
)

const (
	// slotShare of all slots is the most that fills of one upstream have, of blobs or
	// of manifests: one that stalls keeps no other out, nor its own tags. Of few slots
	// it is more, up to fewSlots, but never all.
	slotShare = 4
	fewSlots  = 8
	// stalledFor is how long a fill that others wait for may bring nothing, and
	// lookEvery how often who waits looks for one.
	stalledFor = 10 * time.Second
	lookEvery  = time.Second
)

// errStalled ends a fill that brings nothing while others wait for its slot. What came
// is kept for the next one.
var errStalled = errors.New("the upstream sends nothing, and others wait")

// slots bounds the fills that run at once.
type slots struct {
	limit, share int

	mu      sync.Mutex // guards all below
	running []*fill
	waiting []*slotWait // in the order in which they came
}

type slotWait struct {
	fill  *fill
	ready chan struct{} // closed once the fill is among those that run
}

func newSlots(limit int) *slots {
	return &slots{limit: limit, share: max(1, limit/slotShare, min(fewSlots, limit-1))}
}

// use is how many slots are taken.
func (s *slots) use() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.running)
}

// fits reports whether a fill may run now. s.mu is held.
func (s *slots) fits(f *fill) bool {
	return len(s.running) < s.limit && s.alike(f) < s.share
}

// alike is how many run that share with f. s.mu is held.
func (s *slots) alike(f *fill) (n int) {
	for _, r := range s.running {
		if r.sharesWith(f) {
			n++
		}
	}
	return n
}

// take waits for a slot; false: one of the contexts has ended.
func (s *slots) take(ctx, store context.Context, f *fill) bool {
	s.mu.Lock()
	if s.fits(f) {
		s.running = append(s.running, f)
		s.mu.Unlock()
		return true
	}
	w := &slotWait{f, make(chan struct{})}
	s.waiting = append(s.waiting, w)
	s.mu.Unlock()
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	for {
		select {
		case <-w.ready:
			return true
		case <-look.C:
			s.endStalled(f)
			continue
		case <-ctx.Done():
		case <-store.Done():
		}
		s.mu.Lock()
		i := slices.Index(s.waiting, w)
		if i >= 0 {
			s.waiting = slices.Delete(s.waiting, i, i+1)
		}
		s.mu.Unlock()
		if i < 0 { // it has got one just now
			s.give(f)
		}
		return false
	}
}

// give gives a slot to who has waited longest and may have it.
func (s *slots) give(f *fill) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.running = slices.DeleteFunc(s.running, func(r *fill) bool { return r == f })
	s.waiting = slices.DeleteFunc(s.waiting, func(w *slotWait) bool {
		if !s.fits(w.fill) {
			return false
		}
		s.running = append(s.running, w.fill)
		close(w.ready)
		return true
	})
}

// endStalled ends the fill in f's way that has brought nothing for longest, if that is
// too long.
func (s *slots) endStalled(f *fill) {
	s.mu.Lock()
	defer s.mu.Unlock()
	full := s.alike(f) >= s.share
	var worst *fill
	for _, r := range s.running {
		if full && !r.sharesWith(f) || r.silent() < stalledFor {
			continue
		}
		if worst == nil || r.silent() > worst.silent() {
			worst = r
		}
	}
	if worst != nil {
		worst.stop(errStalled)
	}
}
