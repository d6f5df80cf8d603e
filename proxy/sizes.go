package proxy

import (
	"context"
	"io"

	"github.com/opencontainers/go-digest"

	"github.com/cachalot-registry/cachalot/proxy/image"
	"github.com/cachalot-registry/cachalot/storage"
	"github.com/cachalot-registry/cachalot/storage/download"
)

// longBlob is the size from which a blob is downloaded in parts, over several connections
// if one is slow. That costs one more request.
const longBlob = 32 << 20

// maxNoted bounds the sizes that are stored of one manifest, so that it leaves space for
// others.
const maxNoted = remember / 16

// content is a digest at one registry: what one registry says of it does not apply to another.
type content struct {
	registry string
	digest   digest.Digest
}

// noteSizes reads the sizes of layers from a manifest that is about to be served, because
// its client asks for the layers next. They are a hint: a manifest may be wrong.
func (p *Proxy) noteSizes(ctx context.Context, t target, b *storage.Blob) {
	manifest := content{t.registry.Name(), b.Digest}
	if p.sizes.Contains(manifest) {
		return
	}
	p.sizes.Add(manifest, 0)
	m, _, err := p.reader.Manifest(ctx, b.Content, b.Size, image.MaxDescriptors)
	if ctx.Err() != nil {
		p.sizes.Remove(manifest) // it may not have been read to the end
	}
	if _, serr := b.Content.Seek(0, io.SeekStart); err != nil || serr != nil {
		return // it is no manifest, or cannot be read: then serving it fails too
	}
	noted := 0
	for _, layer := range m.Layers {
		if layer.Size >= longBlob && layer.Check() == nil && noted < maxNoted {
			p.sizes.Add(content{manifest.registry, layer.Digest}, layer.Size)
			noted++
		}
	}
}

// isLong reports whether a blob is known to be much longer than the span.
func (p *Proxy) isLong(t target, d digest.Digest, s download.Span) bool {
	size, _ := p.sizes.Peek(content{t.registry.Name(), d})
	return size-s.Offset >= max(2*s.Length, longBlob)
}
