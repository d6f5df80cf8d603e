package storage

import (
	"github.com/opencontainers/go-digest"

	"github.com/cachalot-registry/cachalot/storage/index"
)

// SetPinned sets the function that says which repositories are pinned; nil: none. A blob
// with a link from a pinned repository is not evicted, neither for space nor when its limit
// passes. pinned is called from many goroutines.
func (s *Store) SetPinned(pinned func(upstream, repository string) bool) {
	if pinned == nil {
		s.pins.Store(nil)
		return
	}
	s.pins.Store(&pinned)
}

// isPinned reports whether a blob has a link from a pinned repository. If its links cannot
// be read, it counts as pinned.
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

// Pinned reports whether a repository is pinned: see [Store.SetPinned].
func (s *Store) Pinned(upstream, repository string) bool {
	pinned := s.pins.Load()
	return pinned != nil && (*pinned)(upstream, repository)
}

// SetListed sets the function that says which upstreams are in the configuration; nil: all.
// All other upstreams together get the share of the index of one of these. listed is called
// from many goroutines.
func (s *Store) SetListed(listed func(upstream string) bool) { s.index.SetListed(listed) }
