package storage

import (
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/cachalot-registry/cachalot/storage/index"
)

// Tag returns a tag; false: there is none, or it cannot be read.
func (s *Store) Tag(k TagKey) (t Tag, ok bool) {
	t, ok, err := s.index.Tag(k)
	if err != nil {
		s.log.Warn("cannot read tag", "upstream", k.Upstream, "repository", k.Repository, "tag", k.Name, "error", err)
	}
	return t, ok
}

// PutTag records a tag. It expires after keep, unless PutTag is called again before. It may
// be evicted, or not recorded, when the index is full: see [Config].MaxIndex.
func (s *Store) PutTag(k TagKey, t Tag, keep time.Duration) error {
	return s.index.PutTag(k, t, keep)
}

// SetListed sets the function that says which upstreams are in the configuration; nil: all.
// All other upstreams together get the share of the index of one of these. listed is called
// from many goroutines.
func (s *Store) SetListed(listed func(upstream string) bool) { s.index.SetListed(listed) }

// DeleteTag removes a tag.
func (s *Store) DeleteTag(k TagKey) error {
	return s.index.RemoveTag(k)
}

// Tags calls visit for each pointer, that is each tag and list, until visit returns false.
// It skips pointers that cannot be read.
func (s *Store) Tags(visit func(TagKey, Tag) bool) error {
	return s.index.Tags(visit)
}

// TagsAfter returns up to n pointers of a repository, in the order of their names, after a
// name. next is the after of the next page; "": this is the last page.
func (s *Store) TagsAfter(upstream, repository, after string, n int) (page []NamedTag, next string, err error) {
	return s.index.TagsAfter(upstream, repository, after, n)
}

// DropTags removes the pointers of an upstream, or of one of its repositories, for which
// drop returns true. It returns how many of them are tags.
func (s *Store) DropTags(upstream, repository string, dryRun bool, drop func(TagKey, Tag) bool) (tags int, err error) {
	return s.index.DropTags(upstream, repository, dryRun, drop)
}

// link returns the link of the digest in this scope.
func (s *Store) link(sc Scope, d digest.Digest) (l index.Link, ok bool) {
	l, ok, err := s.index.Link(sc.place(), d)
	if err != nil {
		s.log.Warn("cannot read link", "upstream", sc.Upstream, "repository", sc.Repository, "digest", d, "error", err)
		return index.Link{}, false
	}
	return l, ok
}

// PutLink records that the upstream has the digest in this scope, and its media type (of
// manifests; "" for blobs). It does nothing if the blob is not on disk: see [Store.Admit].
func (s *Store) PutLink(sc Scope, d digest.Digest, mediaType string) error {
	l := index.Link{MediaType: mediaType, Size: s.ledger.size(d, -1)}
	if l.Size < 0 && !s.exists(d) {
		return nil
	}
	return s.index.PutLink(sc.place(), d, l)
}

// maxAdmitted bounds the places that join one download: a registry may confirm any number.
const maxAdmitted = 4096

// Admit lets the scope join a download of the digest from its upstream. The scope gets a
// link once the download has verified. It returns false if there is no download, or too many
// scopes have joined.
func (s *Store) Admit(sc Scope, d digest.Digest, mediaType string) bool {
	return s.gate.admit(sc.place(), d, mediaType)
}
