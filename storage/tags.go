package storage

import (
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/cachalot-registry/cachalot/storage/index"
)

// Tag returns what is known of a tag. An index that cannot be read knows nothing.
func (s *Store) Tag(k TagKey) (t Tag, ok bool) {
	t, ok, err := s.index.Tag(k)
	if err != nil {
		s.log.Warn("cannot read tag", "upstream", k.Upstream, "repository", k.Repository, "tag", k.Name, "error", err)
	}
	return t, ok
}

// PutTag moves a tag. It is forgotten when it was not moved or checked for keep, or
// when there is no room for it in the index: see [Config].MaxIndex.
func (s *Store) PutTag(k TagKey, t Tag, keep time.Duration) error {
	return s.index.PutTag(k, t, keep)
}

// SetListed changes what says which upstreams are of the configuration; nil: all are. The
// tags of all others share the part of the index that one of these may have. It is called
// from many goroutines.
func (s *Store) SetListed(listed func(upstream string) bool) { s.index.SetListed(listed) }

// DeleteTag forgets a tag.
func (s *Store) DeleteTag(k TagKey) error {
	return s.index.RemoveTag(k)
}

// Tags calls visit for every pointer, tags and lists kept like one, until it
// returns false. What cannot be read is passed over.
func (s *Store) Tags(visit func(TagKey, Tag) bool) error {
	return s.index.Tags(visit)
}

// TagsAfter returns up to n pointers of a repository, in the order of their names,
// that come after a name. next is where to go on, "" at the end.
func (s *Store) TagsAfter(upstream, repository, after string, n int) (page []NamedTag, next string, err error) {
	return s.index.TagsAfter(upstream, repository, after, n)
}

// DropTags forgets the pointers of an upstream, or of one of its repositories, that
// drop is true of, and returns how many of them are no lists.
func (s *Store) DropTags(upstream, repository string, dryRun bool, drop func(TagKey, Tag) bool) (tags int, err error) {
	return s.index.DropTags(upstream, repository, dryRun, drop)
}

// link returns what the upstream said of the digest in this scope.
func (s *Store) link(sc Scope, d digest.Digest) (l index.Link, ok bool) {
	l, ok, err := s.index.Link(sc.place(), d)
	if err != nil {
		s.log.Warn("cannot read link", "upstream", sc.Upstream, "repository", sc.Repository, "digest", d, "error", err)
		return index.Link{}, false
	}
	return l, ok
}

// PutLink records that the upstream has the digest in this scope, and with
// which media type (manifests; "" for blobs). Of what is not here no link is made; see
// [Store.Admit].
func (s *Store) PutLink(sc Scope, d digest.Digest, mediaType string) error {
	l := index.Link{MediaType: mediaType, Size: s.ledger.size(d, -1)}
	if l.Size < 0 && !s.exists(d) {
		return nil
	}
	return s.index.PutLink(sc.place(), d, l)
}

// maxAdmitted places join one download: a registry may say yes to any number.
const maxAdmitted = 4096

// Admit lets the scope join a download of the digest from its upstream, and records that
// once it has verified. It returns false where there is none, or too many have joined.
func (s *Store) Admit(sc Scope, d digest.Digest, mediaType string) bool {
	return s.gate.admit(sc.place(), d, mediaType)
}
