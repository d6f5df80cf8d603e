package proxy

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cachalot-registry/cachalot/bounds"
	"github.com/cachalot-registry/cachalot/proxy/image"
	"github.com/cachalot-registry/cachalot/upstream"
)

// acceptsIndex reports whether a client can read an index, or Docker's manifest list.
// A client without an Accept field accepts all (RFC 9110 section 12.5.1).
func acceptsIndex(h http.Header) bool {
	accept := h.Values("Accept")
	if len(accept) == 0 {
		return true
	}
	for _, field := range accept {
		for one := range strings.SplitSeq(field, ",") {
			mediaRange, _, _ := strings.Cut(one, ";")
			switch strings.ToLower(strings.TrimSpace(mediaRange)) {
			case "*/*", "application/*", ocispec.MediaTypeImageIndex, mediaTypeManifestList:
				return true
			}
		}
	}
	return false
}

const mediaTypeManifestList = "application/vnd.docker.distribution.manifest.list.v2+json"

// olderPlatform is the platform for clients that cannot read indexes, as in distribution.
const olderPlatform = "linux/amd64"

// withoutIndex returns the manifest for a client that cannot read indexes: if d is an index,
// its manifest for olderPlatform; else d itself.
func (p *Proxy) withoutIndex(ctx context.Context, t target, d digest.Digest) (digest.Digest, error) {
	return readOnce(ctx, p, t, listKey{"platform", d}, func(ctx context.Context) (digest.Digest, int, error) {
		b, err := p.open(ctx, t, d)
		if err != nil {
			return "", 0, err
		}
		defer b.Close()
		body, err := bounds.ReadAll(ctx, b.Content, b.Size) // it may come from the upstream while it is read
		if err != nil {
			return "", 0, fmt.Errorf("read manifest %s: %w", d, err)
		}
		child, err := p.ofOlderPlatform(ctx, d, body)
		return child, len(child), err
	})
}

// ofOlderPlatform returns an index's manifest for olderPlatform; d itself, if it is no index.
func (p *Proxy) ofOlderPlatform(ctx context.Context, d digest.Digest, body []byte) (digest.Digest, error) {
	m, _, err := p.reader.Manifest(ctx, bytes.NewReader(body), int64(len(body)), image.MaxDescriptors)
	if err != nil {
		return "", fmt.Errorf("read manifest %s: %w", d, err)
	}
	if m.MediaType != ocispec.MediaTypeImageIndex && m.MediaType != mediaTypeManifestList && len(m.Manifests) == 0 {
		return d, nil
	}
	for _, child := range m.Manifests {
		if child.Check() == nil && child.Platform.Matches([]string{olderPlatform}) {
			return child.Digest, nil
		}
	}
	return "", &told{is: upstream.ErrNotFound, words: "it is an index, which the client does not accept, and it has no manifest for " + olderPlatform}
}
