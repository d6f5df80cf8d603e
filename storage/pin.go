package storage

import (
	"bytes"

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
	pinned := s.pins.Load()
	if pinned == nil {
		return false
	}
	found := false
	prefix := linkPrefix(d)
	err := s.index.scan(prefix, func(key, _ []byte) bool {
		// What follows is the kind, the upstream, NUL and the repository.
		upstream, repository, ok := bytes.Cut(key[len(prefix)+1:], []byte{0})
		found = ok && (*pinned)(string(upstream), string(repository))
		return !found
	})
	if err != nil {
		s.log.Warn("cannot read links: taken for pinned", "digest", d, "error", err)
		return true
	}
	return found
}
