package index

import (
	"bytes"

	"github.com/opencontainers/go-digest"
)

// Place is where a digest was seen. With the digest it names a [Link].
type Place struct {
	Upstream   string
	Repository string
	// Manifest tells a digest seen under /manifests/ from one seen under
	// /blobs/, so that a layer can never be read as a manifest.
	Manifest bool
}

// Link is what an upstream said of a digest in a place.
type Link struct {
	MediaType string
	Size      int64 // of the blob; -1: the blob was not stored yet when the link was made
}

// Link returns what the upstream said of the digest in this place. A link that was not
// recorded, because the index is full, is found for a moment.
func (x *Index) Link(p Place, d digest.Digest) (l Link, ok bool, err error) {
	ok, err = x.links.get(linkKey(p, d), func(b []byte) error { l = decodeLink(b); return nil })
	return l, ok, err
}

// PutLink records what the upstream said of the digest in this place, if there is space.
func (x *Index) PutLink(p Place, d digest.Digest, l Link) error {
	return x.links.put(linkKey(p, d), l.encode())
}

// RemoveLinks removes the links of the digest in some places.
func (x *Index) RemoveLinks(d digest.Digest, places []Place) error {
	keys := make([][]byte, len(places))
	for i, p := range places {
		keys[i] = linkKey(p, d)
	}
	return x.removeAll(keys)
}

// Links calls visit for each place in which a digest was seen, until visit returns false.
// The LinkAt is valid only during the call.
func (x *Index) Links(d digest.Digest, visit func(LinkAt) bool) error {
	return x.scan(linkPrefix(d), func(key, value []byte) bool {
		at, ok := decodeLinkAt(key, value)
		return !ok || visit(at)
	})
}

// LinkAt is a link with its digest and place, in a walk.
type LinkAt struct {
	Manifest bool

	packed []byte // the digest
	name   []byte // upstream NUL repository
	value  []byte
}

// decodeLinkAt reads a key that linkKey wrote, and its value.
func decodeLinkAt(key, value []byte) (at LinkAt, ok bool) {
	packed, rest, found := cutDigest(key[1:])
	if !found || len(rest) < 1 {
		return LinkAt{}, false
	}
	return LinkAt{packed: packed, name: rest[1:], Manifest: rest[0] == 'm', value: value}, bytes.IndexByte(rest, 0) > 0
}

// Digest returns the blob's digest.
func (l LinkAt) Digest() digest.Digest {
	d, _ := unpack(nil, l.packed) // it is one: see cutDigest
	return digest.Digest(d)
}

// Upstream is the place's. It is valid only during the call of visit.
func (l LinkAt) Upstream() []byte {
	upstream, _, _ := bytes.Cut(l.name, []byte{0})
	return upstream
}

// Repository is the place's. It is valid only during the call of visit.
func (l LinkAt) Repository() []byte {
	_, repository, _ := bytes.Cut(l.name, []byte{0})
	return repository
}

// Place is where the blob was seen.
func (l LinkAt) Place() Place {
	return Place{Upstream: string(l.Upstream()), Repository: string(l.Repository()), Manifest: l.Manifest}
}

// MediaType is what the upstream said it is; "" for blobs.
func (l LinkAt) MediaType() string { return decodeLink(l.value).MediaType }

// In reports whether the place is in an upstream and repository; "": in any.
func (l LinkAt) In(upstream, repository string) bool {
	return (upstream == "" || upstream == string(l.Upstream())) && (repository == "" || repository == string(l.Repository()))
}
