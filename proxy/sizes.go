package proxy

import (
	"encoding/json"
	"io"

	"github.com/opencontainers/go-digest"

	"github.com/cachalot-registry/cachalot/storage"
	"github.com/cachalot-registry/cachalot/upstream"
)

// longBlob is a size from which it is worth a request more to fetch a blob in
// parts: over several connections, should one be slow.
const longBlob = 32 << 20

// noteSizes reads a manifest that is about to be served, for its client will ask
// for the layers. Their sizes are a hint: what a manifest says may be wrong.
func (p *Proxy) noteSizes(b *storage.Blob) {
	if p.sizes.Contains(b.Digest) {
		return
	}
	p.sizes.Add(b.Digest, 0)
	body, err := io.ReadAll(io.LimitReader(b.Content, upstream.MaxManifestSize))
	if _, serr := b.Content.Seek(0, io.SeekStart); err != nil || serr != nil {
		return // who serves it will see
	}
	var m struct {
		Layers []struct {
			Digest digest.Digest
			Size   int64
		}
	}
	if json.Unmarshal(body, &m) != nil {
		return // an index with fields of its own, or no manifest
	}
	for _, layer := range m.Layers {
		if layer.Size >= longBlob {
			p.sizes.Add(layer.Digest, layer.Size)
		}
	}
}

// isLong reports whether a blob is known to go on well beyond the span.
func (p *Proxy) isLong(d digest.Digest, s storage.Span) bool {
	size, _ := p.sizes.Peek(d)
	return size-s.Offset >= max(2*s.Length, longBlob)
}
