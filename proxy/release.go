package proxy

import (
	"maps"
	"slices"

	"github.com/opencontainers/go-digest"

	"github.com/cachalot-registry/cachalot/proxy/image"
	"github.com/cachalot-registry/cachalot/storage"
	"github.com/cachalot-registry/cachalot/task"
)

// maxReleased deleted tags wait to be looked at. What further ones held is evicted in
// its time.
const maxReleased = 10_000

// release is told of a tag that is gone upstream. What no other tag holds is
// marked, in the background, as the first to be evicted.
func (p *Proxy) release(k storage.TagKey, d digest.Digest) {
	if k.IsList() {
		return
	}
	p.mu.Lock()
	if len(p.released) < maxReleased {
		p.released = append(p.released, image.Root{Upstream: k.Upstream, Repository: k.Repository, Digest: d})
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
			blobs, _, err = p.Kept().Unreferenced(p.ctx, roots, func(held func(image.Root) bool) error {
				return p.store.Tags(func(k storage.TagKey, t storage.Tag) bool {
					return k.IsList() || held(image.Root{Upstream: k.Upstream, Repository: k.Repository, Digest: t.Digest})
				})
			})
			if err != nil {
				return err
			}
			return p.store.MarkOrphaned(slices.Collect(maps.Keys(blobs)))
		})
		switch {
		case err == nil:
			p.log.Info("marked content of deleted tags as orphaned", "tags", len(roots), "blobs", len(blobs))
		case p.ctx.Err() == nil:
			p.log.Warn("cannot mark content of deleted tags as orphaned; it is evicted later", "error", err)
		}
	}
}
