package proxy

import (
	"encoding/json"
	"io"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/cachalot-registry/cachalot/storage"
	"github.com/cachalot-registry/cachalot/task"
	"github.com/cachalot-registry/cachalot/upstream"
)

// root is what a tag points, or pointed, to.
type root struct {
	upstream, repository string
	digest               digest.Digest
}

// release is told of a tag that is gone upstream. What no other tag holds is
// marked, in the background, as the first to be evicted.
func (p *Proxy) release(k storage.TagKey, d digest.Digest) {
	if strings.Contains(k.Name, "/") {
		return // a list
	}
	p.mu.Lock()
	p.released = append(p.released, root{k.Upstream, k.Repository, d})
	busy := p.releasing
	p.releasing = true
	p.mu.Unlock()
	if !busy {
		p.running.Go(task.Guard("release", p.letGo))
	}
}

// letGo works off what was released, many tags in one look at all the others.
func (p *Proxy) letGo() {
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
		loose := 0
		if err := task.Try("release", func() error {
			blobs := p.unheld(roots)
			loose = len(blobs)
			return p.store.Expendable(blobs)
		}); err != nil {
			p.log.Warn("cannot mark what a deleted tag held", "error", err)
		}
		p.log.Info("released what deleted tags held", "tags", len(roots), "blobs", loose)
	}
}

// unheld is what hangs on the roots and on no tag.
func (p *Proxy) unheld(roots []root) []digest.Digest {
	loose := map[digest.Digest]bool{}
	seen := map[digest.Digest]bool{} // manifests
	for _, r := range roots {
		p.walk(r, seen, func(d digest.Digest) { loose[d] = true })
	}
	clear(seen)
	err := p.store.Tags(func(k storage.TagKey, t storage.Tag) bool {
		if !strings.Contains(k.Name, "/") {
			p.walk(root{k.Upstream, k.Repository, t.Digest}, seen, func(d digest.Digest) { delete(loose, d) })
		}
		return len(loose) > 0 && p.ctx.Err() == nil
	})
	if err != nil || p.ctx.Err() != nil {
		return nil // not known
	}
	list := make([]digest.Digest, 0, len(loose))
	for d := range loose {
		list = append(list, d)
	}
	return list
}

// walk visits a manifest and all that it names, as far as that is here.
func (p *Proxy) walk(r root, seen map[digest.Digest]bool, visit func(digest.Digest)) {
	visit(r.digest)
	if seen[r.digest] {
		return
	}
	seen[r.digest] = true
	var m struct {
		Manifests, Layers []named
		Config            named
		FSLayers          []struct{ BlobSum digest.Digest } // Docker's schema 1
	}
	if json.Unmarshal(p.look(r), &m) != nil {
		return // not here, or no manifest
	}
	for _, leaf := range append(m.Layers, m.Config) {
		visit(leaf.Digest)
	}
	for _, layer := range m.FSLayers {
		visit(layer.BlobSum)
	}
	for _, child := range m.Manifests {
		p.walk(root{r.upstream, r.repository, child.Digest}, seen, visit)
	}
}

// named is what is read of a descriptor.
type named struct{ Digest digest.Digest }

// look reads a manifest that is here, which does not count as a use.
func (p *Proxy) look(r root) []byte {
	if _, err := storage.ParseDigest(string(r.digest)); err != nil {
		return nil
	}
	b, err := p.store.Get(p.ctx, storage.Scope{
		Upstream: r.upstream, Repository: r.repository, Manifest: true, Keep: storage.Retention{NoStore: true},
	}, r.digest, nil)
	if err != nil {
		return nil
	}
	defer b.Close()
	body, err := io.ReadAll(io.LimitReader(b.Content, upstream.MaxManifestSize))
	if err != nil {
		return nil
	}
	return body
}
