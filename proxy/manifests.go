package proxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/opencontainers/go-digest"

	"github.com/cachalot-registry/cachalot/storage"
	"github.com/cachalot-registry/cachalot/upstream"
)

// manifest serves a manifest by tag or digest. What is kept is served whatever
// the client accepts: it is what the upstream has under that name.
func (p *Proxy) manifest(w *response, r *http.Request, t target) error {
	if t.digest != "" {
		return p.serve(w, r, t, t.digest, resultHit)
	}
	res, err := p.resolve(w.ctx, p.tagPointer(t))
	if err != nil {
		return err
	}
	return p.serve(w, r, t, res.digest, res.result)
}

// tagPointer is the target's tag.
func (p *Proxy) tagPointer(t target) pointer {
	return pointer{
		key:      storage.TagKey{Upstream: t.registry.Name(), Repository: t.repo, Name: t.tag},
		freshFor: t.rules.freshFor,
		check: func(ctx context.Context, old storage.Tag, known bool) (digest.Digest, error) {
			return p.checkTag(ctx, t, old, known)
		},
	}
}

// checkTag asks the upstream for the tag's digest, by HEAD where it can: that
// costs no quota. A tag that has moved away from content kept here moves only
// when the new content is here too.
func (p *Proxy) checkTag(ctx context.Context, t target, old storage.Tag, known bool) (digest.Digest, error) {
	desc, err := t.registry.Head(ctx, t.kind, t.repo, t.tag)
	if errors.Is(err, upstream.ErrUnsupported) {
		return p.fetchTag(ctx, t)
	}
	if err != nil {
		return "", err
	}
	if _, err := storage.ParseDigest(string(desc.Digest)); err != nil {
		return p.fetchTag(ctx, t) // none, or of an algorithm that is not kept
	}
	p.sight(t, desc.Digest, desc)
	if !known || desc.Digest == old.Digest || t.rules.noStore {
		return desc.Digest, nil
	}
	b, err := p.open(ctx, t, desc.Digest)
	if err != nil {
		return "", fmt.Errorf("fetch what the tag moved to: %w", err)
	}
	defer b.Close()
	if err := b.Wait(ctx); err != nil && !errors.Is(err, storage.ErrNotKept) {
		return "", fmt.Errorf("fetch what the tag moved to: %w", err)
	}
	return desc.Digest, nil
}

// fetchTag gets the manifest itself, from an upstream that tells no digest.
func (p *Proxy) fetchTag(ctx context.Context, t target) (digest.Digest, error) {
	mediaType, body, err := t.registry.Manifest(ctx, t.repo, t.tag)
	if err != nil {
		return "", err
	}
	return p.keep(ctx, t.scope(), mediaType, body)
}

// keep stores content that an upstream has just sent for this scope, where
// there is room for it.
func (p *Proxy) keep(ctx context.Context, sc storage.Scope, mediaType string, body []byte) (digest.Digest, error) {
	d := digest.FromBytes(body)
	if err := p.store.PutLink(sc, d, mediaType); err != nil {
		return "", err
	}
	b, err := p.store.Get(ctx, sc, d, storage.Bytes(mediaType, bytes.Clone(body)))
	if err != nil {
		return "", err
	}
	defer b.Close()
	if err := b.Wait(ctx); err != nil && !errors.Is(err, storage.ErrNotKept) {
		return "", fmt.Errorf("keep %s: %w", d, err)
	}
	return d, nil
}
