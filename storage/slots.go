package storage

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/cachalot-registry/cachalot/bounds"
)

const (
	// stalledFor is how long a fill that others wait for may bring nothing, and
	// lookEvery how often who waits looks for one.
	stalledFor = 10 * time.Second
	lookEvery  = time.Second
)

// errStalled ends a fill that brings nothing while others wait for its slot. What came
// is kept for the next one.
var errStalled = errors.New("the upstream sends nothing, and others wait")

// slots bounds the fills that run at once. Fills of an upstream's blobs are a group, and
// those of its manifests another: one that stalls keeps no other out, nor its own tags.
type slots struct {
	places *bounds.Bulkhead

	mu      sync.Mutex // guards all below
	running []*fill
	waiting []*slotWait // in the order in which they came
}

type slotWait struct {
	fill  *fill
	ready chan struct{} // closed once the fill is among those that run
}

func newSlots(limit int, share float64) *slots {
	return &slots{places: bounds.NewBulkhead(limit, share)}
}

// holder is whose slot a fill takes.
func (f *fill) holder() bounds.Holder {
	kind := "blobs"
	if f.scope.Manifest {
		kind = "manifests"
	}
	return bounds.Holder{Group: f.scope.Upstream + " " + kind, Client: f.client}
}

// enter lets a fill run, if it may now. s.mu is held.
func (s *slots) enter(f *fill) bool {
	if !s.places.Enter(f.holder()) {
		return false
	}
	s.running = append(s.running, f)
	return true
}

// take waits for a slot; false: one of the contexts has ended.
func (s *slots) take(ctx, store context.Context, f *fill) bool {
	s.mu.Lock()
	if s.enter(f) {
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
	s.places.Leave(f.holder())
	s.waiting = slices.DeleteFunc(s.waiting, func(w *slotWait) bool {
		if !s.enter(w.fill) {
			return false
		}
		close(w.ready)
		return true
	})
}

// endStalled ends the fill in f's way that has brought nothing for longest, if that is
// too long.
func (s *slots) endStalled(f *fill) {
	s.mu.Lock()
	defer s.mu.Unlock()
	group := f.holder().Group
	full := s.places.GroupTaken(group) >= s.places.GroupLimit()
	var worst *fill
	for _, r := range s.running {
		if full && r.holder().Group != group || r.silent() < stalledFor {
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
