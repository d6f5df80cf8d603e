package proxy

import (
	"context"
	"errors"
	"maps"
	"slices"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/opencontainers/go-digest"

	"github.com/cachalot-registry/cachalot/storage"
	"github.com/cachalot-registry/cachalot/task"
)

// maxReleased deleted tags wait to be looked at. What further ones held is evicted in
// its time.
const maxReleased = 10_000

// unreferencedSearch looks for what hangs on some images and on no other. Its bounds are
// besides those of each image's walk.
type unreferencedSearch struct {
	p             *Proxy
	maxBlobs      int // of the images, manifests too; more are left out
	maxManifests  int // of the others; with more, the search fails
	maxBytes      int64
	maxRemembered int // of the others, for several tags have one image
}

// unreferencedSearch returns one with bounds that some 200,000 tags of 20 platforms each
// are within.
func (p *Proxy) unreferencedSearch() unreferencedSearch {
	return unreferencedSearch{p: p, maxBlobs: 200_000, maxManifests: 5_000_000, maxBytes: 8 << 30, maxRemembered: 16 << 10}
}

// errManyManifests: what hangs on no other image is not known.
var errManyManifests = errors.New("other tags hold too many manifests to look at")

// imageRoot is what a tag points, or pointed, to.
type imageRoot struct {
	upstream, repository string
	digest               digest.Digest
}

// release is told of a tag that is gone upstream. What no other tag holds is
// marked, in the background, as the first to be evicted.
func (p *Proxy) release(k storage.TagKey, d digest.Digest) {
	if k.IsList() {
		return
	}
	p.mu.Lock()
	if len(p.released) < maxReleased {
		p.released = append(p.released, imageRoot{k.Upstream, k.Repository, d})
	}
	busy := p.releasing
	p.releasing = true
	p.mu.Unlock()
	if !busy {
		p.running.Go(task.Guard("release", p.markOrphans))
	}
}

// markOrphans works off what was released, many tags in one look at all the others.
func (p *Proxy) markOrphans() {
	for {
		p.mu.Lock()
		roots := p.released
		p.released = nil
		p.releasing = len(roots) > 0 && p.ctx.Err() == nil
		again := p.releasing
		p.mu.Unlock()
		if !again {
			return
		}
		var blobs map[digest.Digest]struct{}
		err := task.Try("release", func() (err error) {
			blobs, _, err = p.unreferencedSearch().run(p.ctx, roots, func(held func(imageRoot) bool) error {
				return p.store.Tags(func(k storage.TagKey, t storage.Tag) bool {
					return k.IsList() || held(imageRoot{k.Upstream, k.Repository, t.Digest})
				})
			})
			if err != nil {
				return err
			}
			return p.store.MarkOrphaned(slices.Collect(maps.Keys(blobs)))
		})
		switch {
		case err == nil:
			p.log.Info("released what deleted tags held", "tags", len(roots), "blobs", len(blobs))
		case p.ctx.Err() == nil:
			p.log.Warn("cannot mark what a deleted tag held; it is evicted in its time", "error", err)
		}
	}
}

// run returns what hangs on the roots and on none of the others, each of which others
// calls held with until it returns false. Truncated: there is more than was looked for.
func (s unreferencedSearch) run(ctx context.Context, roots []imageRoot, others func(held func(imageRoot) bool) error) (blobs map[digest.Digest]struct{}, truncated bool, err error) {
	blobs = map[digest.Digest]struct{}{}
	for _, r := range roots {
		w := s.p.keptWalk(r.upstream, r.repository)
		w.exceeds = func(string) error { truncated = true; return nil }
		err := w.each(ctx, r.digest, func(d digest.Digest) {
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
	seen, err := lru.New[imageRoot, struct{}](s.maxRemembered)
	if err != nil {
		return nil, false, err
	}
	manifests, bytes := 0, int64(0)
	var failed error
	err = others(func(r imageRoot) bool {
		if failed != nil || len(blobs) == 0 {
			return false
		}
		if seen.Contains(r) {
			return true
		}
		seen.Add(r, struct{}{})
		w := s.p.keptWalk(r.upstream, r.repository)
		failed = w.each(ctx, r.digest, func(d digest.Digest) { delete(blobs, d) })
		if manifests, bytes = manifests+w.manifests, bytes+w.bytes; failed == nil && (manifests > s.maxManifests || bytes > s.maxBytes) {
			failed = errManyManifests
		}
		return failed == nil
	})
	if err = errors.Join(err, failed); err != nil {
		return nil, false, err
	}
	return blobs, truncated, nil
}
