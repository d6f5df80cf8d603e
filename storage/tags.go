package storage

import (
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
)

// Tag returns what is known of a tag. An index that cannot be read knows nothing.
func (s *Store) Tag(k TagKey) (t Tag, ok bool) {
	ok, err := s.index.get(tagKey(k), func(b []byte) (err error) { t, err = decodeTag(b); return err })
	if err != nil {
		s.log.Warn("cannot read tag", "upstream", k.Upstream, "repository", k.Repository, "tag", k.Name, "error", err)
		return Tag{}, false
	}
	return t, ok
}

// PutTag moves a tag. It is forgotten when it was not moved or checked for keep, or
// when there is no room for it in the index: see [Config].MaxIndex.
func (s *Store) PutTag(k TagKey, t Tag, keep time.Duration) error {
	return s.tags.put(k, t, keep)
}

// SetListed changes what says which upstreams are of the configuration; nil: all are. The
// tags of all others share the part of the index that one of these may have. It is called
// from many goroutines.
func (s *Store) SetListed(listed func(upstream string) bool) {
	if listed == nil {
		s.tags.listed.Store(nil)
		return
	}
	s.tags.listed.Store(&listed)
}

// DeleteTag forgets a tag.
func (s *Store) DeleteTag(k TagKey) error {
	return s.tags.remove(tagKey(k))
}

// Tags calls visit for every pointer, tags and lists kept like one, until it
// returns false. What cannot be read is passed over.
func (s *Store) Tags(visit func(TagKey, Tag) bool) error {
	return s.index.scan([]byte{'t'}, func(key, value []byte) bool {
		k, err := decodeTagKey(key)
		t, terr := decodeTag(value)
		return err != nil || terr != nil || visit(k, t)
	})
}

// link is what an upstream said of a digest in a scope.
type link struct {
	mediaType string
	size      int64 // of the blob; -1: it was not here yet when the link was made
}

// link returns what the upstream said of the digest in this scope.
func (s *Store) link(sc Scope, d digest.Digest) (l link, ok bool) {
	ok, err := s.links.get(linkKey(sc, d), func(b []byte) error { l = decodeLink(b); return nil })
	if err != nil {
		s.log.Warn("cannot read link", "upstream", sc.Upstream, "repository", sc.Repository, "digest", d, "error", err)
		return link{}, false
	}
	return l, ok
}

// PutLink records that the upstream has the digest in this scope, and with
// which media type (manifests; "" for blobs). Of what is not here no link is made; see
// [Store.Admit].
func (s *Store) PutLink(sc Scope, d digest.Digest, mediaType string) error {
	l := link{mediaType, s.size(d, -1)}
	if l.size < 0 && !s.exists(d) {
		return nil
	}
	return s.putLink(sc, d, l)
}

// maxAdmitted places join one download: a registry may say yes to any number.
const maxAdmitted = 4096

// Admit lets the scope join a download of the digest from its upstream, and records that
// once it has verified. It returns false where there is none, or too many have joined.
func (s *Store) Admit(sc Scope, d digest.Digest, mediaType string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.fills.of(d, sc.Upstream)
	if f == nil || f.shut || f.admitted == nil || len(f.admitted) >= maxAdmitted {
		return false
	}
	f.admitted[sc.place()] = mediaType
	return true
}

func (s *Store) putLink(sc Scope, d digest.Digest, l link) error {
	return s.links.put(linkKey(sc, d), l.encode())
}

// IsList says whether the key is of a list, not of a tag.
func (k TagKey) IsList() bool { return strings.Contains(k.Name, "/") }
