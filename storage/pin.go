package storage

import (
	"github.com/cachalot-registry/cachalot/storage/index"
	"github.com/opencontainers/go-digest"
)

// SetPinned changes what says which repositories are pinned; nil: none is. What
// has a link from one of them is neither evicted nor dropped when its time is
// over, from the next eviction on. It is called from many goroutines.
func (s *Store) SetPinned(pinned func(upstream, repository string) bool) {
	if pinned == nil {
		s.pins.Store(nil)
		return
	}
	s.pins.Store(&pinned)
}

// isPinned says whether a blob has a link from a pinned repository. Where that
// cannot be read it has.
func (s *Store) isPinned(d digest.Digest) bool {
	if s.pins.Load() == nil {
		return false
	}
	found := false
	err := s.index.Links(d, func(at index.LinkAt) bool {
		found = s.Pinned(string(at.Upstream()), string(at.Repository()))
		return !found
	})
	if err != nil {
		s.log.Warn("cannot read links; blob treated as pinned", "digest", d, "error", err)
		return true
	}
	return found
}

// Pinned says whether a repository is pinned: see [Store.SetPinned].
func (s *Store) Pinned(upstream, repository string) bool {
	pinned := s.pins.Load()
	return pinned != nil && (*pinned)(upstream, repository)
}
