package proxy

import (
	"context"
	"io"

	"github.com/opencontainers/go-digest"

	"github.com/cachalot-registry/cachalot/proxy/image"
	"github.com/cachalot-registry/cachalot/storage"
	"github.com/cachalot-registry/cachalot/storage/download"
)

// longBlob is a size from which it is worth a request more to fetch a blob in
// parts: over several connections, should one be slow.
const longBlob = 32 << 20

// maxNoted sizes of one manifest are noted, so that it leaves room for others'.
const maxNoted = remember / 16

// content is a digest as one registry has it: what it says of that is no other's.
type content struct {
	registry string
	digest   digest.Digest
}

// noteSizes reads a manifest that is about to be served, for its client will ask
// for the layers. Their sizes are a hint: what a manifest says may be wrong.
func (p *Proxy) noteSizes(ctx context.Context, t target, b *storage.Blob) {
	manifest := content{t.registry.Name(), b.Digest}
	if p.sizes.Contains(manifest) {
		return
	}
	p.sizes.Add(manifest, 0)
	m, _, err := p.reader.Manifest(ctx, b.Content, b.Size, image.MaxDescriptors)
	if ctx.Err() != nil {
		p.sizes.Remove(manifest) // perhaps it was not read
	}
	if _, serr := b.Content.Seek(0, io.SeekStart); err != nil || serr != nil {
		return // no manifest; or who serves it will see
	}
	noted := 0
	for _, layer := range m.Layers {
		if layer.Size >= longBlob && layer.Check() == nil && noted < maxNoted {
			p.sizes.Add(content{manifest.registry, layer.Digest}, layer.Size)
			noted++
		}
	}
}

// isLong reports whether a blob is known to go on well beyond the span.
func (p *Proxy) isLong(t target, d digest.Digest, s download.Span) bool {
	size, _ := p.sizes.Peek(content{t.registry.Name(), d})
	return size-s.Offset >= max(2*s.Length, longBlob)
}
