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
var errStalled = errors.New("the upstream sends nothing while other downloads wait for a slot")

// slots bounds the fills that run at once. Fills of an upstream's blobs are a group, and
// those of its manifests another: one that stalls keeps no other out, nor its own tags; a
// repository that does, no other of its upstream.
type slots struct {
	places *bounds.Bulkhead

	mu      sync.Mutex // guards running
	running []*fill
}

func newSlots(limit int, share float64) *slots {
	return &slots{places: bounds.NewBulkhead(limit, share)}
}

// holder is whose slot a fill takes.
func (f *fill) holder() bounds.Holder {
	kind := "blobs"
	if f.place.Manifest {
		kind = "manifests"
	}
	return bounds.Holder{Group: f.place.Upstream + " " + kind, Repository: f.place.Repository, Client: f.client}
}

// take waits for a slot, which give gives back; ok is false where one of the contexts
// has ended.
func (s *slots) take(ctx, store context.Context, f *fill) (give func(), ok bool) {
	ready, leave := s.places.Queue(f.holder())
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	for {
		select {
		case <-ready:
			s.run(f)
			return func() { s.end(f); leave() }, true
		case <-look.C:
			s.endStalled(f)
		case <-ctx.Done():
			leave()
			return nil, false
		case <-store.Done():
			leave()
			return nil, false
		}
	}
}

func (s *slots) run(f *fill) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.running = append(s.running, f)
}

func (s *slots) end(f *fill) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.running = slices.DeleteFunc(s.running, func(r *fill) bool { return r == f })
}

// endStalled ends the fill in f's way that has brought nothing for longest, if that is
// too long.
func (s *slots) endStalled(f *fill) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var worst *fill
	for _, r := range s.running {
		silent := r.silent()
		if silent >= stalledFor && (worst == nil || silent > worst.silent()) && s.places.Helps(f.holder(), r.holder()) {
			worst = r
		}
	}
	if worst != nil {
		worst.stop(errStalled)
	}
}
