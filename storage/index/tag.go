package index

import (
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
)

// TagKey names a pointer: a tag, or a list, which is stored like one (its Name has a slash,
// which no tag has). Nothing else can change.
type TagKey struct {
	Upstream   string
	Repository string
	Name       string
}

// IsList reports whether the key names a list, and not a tag.
func (k TagKey) IsList() bool { return strings.Contains(k.Name, "/") }

// Tag points to a digest, which the upstream last confirmed at Checked.
type Tag struct {
	Digest  digest.Digest
	Checked time.Time
}

// NamedTag is a tag with its name.
type NamedTag struct {
	TagKey
	Tag
}

// Tag returns a tag; a missing one is (false, nil).
func (x *Index) Tag(k TagKey) (t Tag, ok bool, err error) {
	ok, err = x.get(tagKey(k), func(b []byte) (err error) { t, err = decodeTag(b); return err })
	if err != nil {
		return Tag{}, false, err
	}
	return t, ok, nil
}

// PutTag records a tag. It expires after keep, unless PutTag is called again before. It may
// be evicted, or not recorded, when the index is full: see [Config].Max.
func (x *Index) PutTag(k TagKey, t Tag, keep time.Duration) error { return x.tags.put(k, t, keep) }

// RemoveTag removes a tag.
func (x *Index) RemoveTag(k TagKey) error { return x.tags.remove(tagKey(k)) }

// Tags calls visit for each pointer, that is each tag and list, until visit returns false.
// It skips pointers that cannot be read.
func (x *Index) Tags(visit func(TagKey, Tag) bool) error {
	return x.scan([]byte{'t'}, func(key, value []byte) bool {
		k, err := decodeTagKey(key)
		t, terr := decodeTag(value)
		return err != nil || terr != nil || visit(k, t)
	})
}

// TagsAfter returns up to n pointers of a repository, in the order of their names, after a
// name. next is the after of the next page; "": this is the last page.
func (x *Index) TagsAfter(upstream, repository, after string, n int) (page []NamedTag, next string, err error) {
	v := x.view(tagKey(TagKey{Upstream: upstream, Repository: repository}))
	defer v.close()
	var failed error
	for key, value := range v.ordered(tagKey(TagKey{upstream, repository, after}), &failed) {
		if len(page) == n {
			return page, page[n-1].Name, nil
		}
		k, err := decodeTagKey(key)
		t, terr := decodeTag(value)
		if err == nil && terr == nil {
			page = append(page, NamedTag{k, t})
		}
	}
	return page, "", failed
}

// dropBatch is how many pointers [Index.DropTags] reads before it removes some.
const dropBatch = 1000

// DropTags removes the pointers of an upstream, or of one of its repositories, for which
// drop returns true ("": of any). It returns how many of them are tags.
func (x *Index) DropTags(upstream, repository string, dryRun bool, drop func(TagKey, Tag) bool) (tags int, err error) {
	prefix := append([]byte{'t'}, upstream...)
	if upstream != "" {
		prefix = append(prefix, 0)
	}
	if repository != "" {
		prefix = append(append(prefix, repository...), 0)
	}
	for after := prefix; ; {
		v := x.view(prefix)
		var failed error
		var gone [][]byte
		looked := 0
		for key, value := range v.ordered(after, &failed) {
			if looked == dropBatch {
				break
			}
			looked++
			after = slices.Clone(key)
			k, err := decodeTagKey(key)
			t, terr := decodeTag(value)
			if err != nil || terr != nil || !drop(k, t) {
				continue
			}
			gone = append(gone, after)
			if !k.IsList() {
				tags++
			}
		}
		v.close()
		if failed == nil && len(gone) > 0 && !dryRun {
			failed = x.tags.remove(gone...)
		}
		if failed != nil || looked < dropBatch {
			return tags, failed
		}
	}
}

// SetListed sets the function that says which upstreams are in the configuration; nil: all.
// All other upstreams together get the share of the index of one of these. listed is called
// from many goroutines.
func (x *Index) SetListed(listed func(upstream string) bool) {
	if listed == nil {
		x.tags.listed.Store(nil)
		return
	}
	x.tags.listed.Store(&listed)
}
