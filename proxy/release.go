package proxy

import (
	"maps"
	"slices"

	"github.com/opencontainers/go-digest"

	"github.com/cachalot-registry/cachalot/proxy/image"
	"github.com/cachalot-registry/cachalot/storage"
	"github.com/cachalot-registry/cachalot/task"
)

// maxReleased bounds the deleted tags that wait for markOrphans. The content of further ones
// is evicted like other content.
const maxReleased = 10_000

// release is called for a tag that was deleted upstream. In the background, its content that
// no other tag refers to is marked as orphaned, so that it is evicted first.
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

// markOrphans handles the released tags: one scan of all other tags serves many of them.
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
			blobs, _, err = p.Stored().Unreferenced(p.ctx, roots, func(held func(image.Root) bool) error {
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
