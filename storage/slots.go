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
	// A fill that receives nothing for stalledFor loses its slot if another fill waits for
	// it. Each waiting fill looks for one every lookEvery.
	stalledFor = 10 * time.Second
	lookEvery  = time.Second
)

// errStalled ends a fill that receives nothing while others wait for its slot. The next
// fill resumes its partial.
var errStalled = errors.New("the upstream sends nothing while other downloads wait for a slot")

// slots bounds the fills that run at once. The blobs of an upstream are a group, and its
// manifests another one. So an upstream that stalls blocks no other upstream, and not its
// own manifests; a repository that stalls blocks no other repository of its upstream.
type slots struct {
	places *bounds.Bulkhead

	mu      sync.Mutex // guards running; the Bulkhead's lock is taken under it
	running []*fill
}

func newSlots(limit int, share float64) *slots {
	return &slots{places: bounds.NewBulkhead(limit, share)}
}

// holder says whose share of the slots a fill uses.
func (f *fill) holder() bounds.Holder {
	kind := "blobs"
	if f.place.Manifest {
		kind = "manifests"
	}
	return bounds.Holder{Group: f.place.Upstream + " " + kind, Repository: f.place.Repository, Client: f.client}
}

// take waits for a slot; give returns it. ok is false if one of the contexts has ended.
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

// endStalled ends one fill whose slot f could use: the one that has received nothing for
// longest, if that is at least stalledFor.
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
