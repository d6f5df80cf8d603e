package image

import (
	"context"
	"errors"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/opencontainers/go-digest"
)

// Root is the manifest that a tag points to, or pointed to.
type Root struct {
	Upstream, Repository string
	Digest               digest.Digest
}

// ErrManyManifests: the search for unreferenced content has found too many other manifests.
var ErrManyManifests = errors.New("other tags have too many manifests to check")

// search finds the content that some images refer to, and no other image. Its bounds are in
// addition to those of each image's walk.
type search struct {
	stored        Stored
	maxBlobs      int // of the images, manifests too; more are left out
	maxManifests  int // of the other images; with more, the search fails
	maxBytes      int64
	maxRemembered int // of the other images, because several tags may have one image
}

// newSearch returns a search with bounds for some 200,000 tags of 20 platforms each.
func newSearch(k Stored) search {
	return search{stored: k, maxBlobs: 200_000, maxManifests: 5_000_000, maxBytes: 8 << 30, maxRemembered: 16 << 10}
}

// Unreferenced returns the content that the roots refer to and the other roots do not. others
// calls held with each other root, until held returns false. truncated: the roots have more
// content than was looked for. It fails with [ErrManyManifests] if the other roots have too
// many manifests.
func (k Stored) Unreferenced(ctx context.Context, roots []Root, others func(held func(Root) bool) error) (blobs map[digest.Digest]struct{}, truncated bool, err error) {
	return newSearch(k).run(ctx, roots, others)
}

// run is Unreferenced.
func (s search) run(ctx context.Context, roots []Root, others func(held func(Root) bool) error) (blobs map[digest.Digest]struct{}, truncated bool, err error) {
	blobs = map[digest.Digest]struct{}{}
	for _, r := range roots {
		w := s.stored.Walk(r.Upstream, r.Repository)
		w.Exceeds = func(string) error { truncated = true; return nil }
		err := w.Each(ctx, r.Digest, func(d digest.Digest) {
			if _, known := blobs[d]; !known && len(blobs) >= s.maxBlobs {
				truncated = true
				return
			}
			blobs[d] = struct{}{}
		})
		if err != nil {
			return nil, false, err
		}
	}
	seen, err := lru.New[Root, struct{}](s.maxRemembered)
	if err != nil {
		return nil, false, err
	}
	manifests, bytes := 0, int64(0)
	var failed error
	err = others(func(r Root) bool {
		if failed != nil || len(blobs) == 0 {
			return false
		}
		if seen.Contains(r) {
			return true
		}
		seen.Add(r, struct{}{})
		w := s.stored.Walk(r.Upstream, r.Repository)
		failed = w.Each(ctx, r.Digest, func(d digest.Digest) { delete(blobs, d) })
		if manifests, bytes = manifests+w.manifests, bytes+w.bytes; failed == nil && (manifests > s.maxManifests || bytes > s.maxBytes) {
			failed = ErrManyManifests
		}
		return failed == nil
	})
	if err = errors.Join(err, failed); err != nil {
		return nil, false, err
	}
	return blobs, truncated, nil
}
