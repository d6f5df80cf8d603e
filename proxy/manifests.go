package proxy

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/cachalot-registry/cachalot/storage"
	"github.com/cachalot-registry/cachalot/storage/download"
	"github.com/cachalot-registry/cachalot/upstream"
)

// manifest serves a manifest by tag or digest. It ignores the types that the client accepts,
// with one exception: by tag, a client that cannot read indexes gets the manifest for
// olderPlatform.
func (p *Proxy) manifest(w *response, r *http.Request, t target) error {
	if t.digest != "" {
		err := p.serve(w, r, t, t.digest, resultHit)
		if errors.Is(err, upstream.ErrSigned) {
			return p.passSigned(w, r, t)
		}
		return err
	}
	res, err := p.resolve(w.ctx, p.tagPointer(t))
	if err != nil {
		return err
	}
	if !acceptsIndex(r.Header) {
		if res.digest, err = p.withoutIndex(w.ctx, t, res.digest); err != nil {
			return err
		}
	}
	err = p.serve(w, r, t, res.digest, res.result)
	if elsewhere(err) && !w.wrote && w.ctx.Err() == nil {
		return p.servePlain(w, r, t, res.result, err)
	}
	return err
}

// servePlain serves a tag by a GET of the tag itself. It is for upstreams that name a digest
// for the tag, and fail to send that digest; err is that failure.
func (p *Proxy) servePlain(w *response, r *http.Request, t target, looked result, err error) error {
	key := p.tagPointer(t).key
	d, plainErr := once(w.ctx, p.checks, t.asks("plain", pointerKey(key)), func(ctx context.Context) (digest.Digest, error) {
		d, err := p.fetchTag(ctx, t)
		if err == nil {
			err = p.store.PutTag(key, storage.Tag{Digest: d, Checked: time.Now()}, keptTimes*p.cfg.MaxStale)
		}
		return d, err
	})
	if plainErr != nil {
		return err
	}
	return p.serve(w, r, t, d, looked)
}

// passSigned passes a manifest of schema 1 through by digest. It is not stored, because its
// digest is not that of its bytes. By tag it is stored, under the digest of its bytes.
func (p *Proxy) passSigned(w *response, r *http.Request, t target) error {
	ctx, closed := p.cfg.Memory.Account(w.ctx, t.holder())
	defer closed()
	m, err := t.registry.Manifest(ctx, t.repo, string(t.digest))
	if err != nil {
		return err
	}
	w.result = resultMiss
	setContentHeaders(w, t, t.digest, m.MediaType)
	return writeBody(w, r, m.Content)
}

// elsewhere reports whether err is the failure of one way to get content, so that another
// way may work.
func elsewhere(err error) bool {
	_, asked := errors.AsType[*upstream.Error](err)
	return asked && !errors.Is(err, upstream.ErrRateLimited) || errors.Is(err, storage.ErrDigest) || errors.Is(err, download.ErrChanged)
}

// tagPointer returns the pointer of the target's tag.
func (p *Proxy) tagPointer(t target) pointer {
	return pointer{
		key:          storage.TagKey{Upstream: t.registry.Name(), Repository: t.repo, Name: t.tag},
		client:       t.client,
		freshFor:     t.policy.freshFor,
		followDenied: t.policy.followDenied,
		check: func(ctx context.Context, old storage.Tag, known bool) (digest.Digest, error) {
			return p.checkTag(ctx, t, old, known)
		},
	}
}

// checkTag asks the upstream for the tag's digest. A known tag moves only after its new
// content is stored.
func (p *Proxy) checkTag(ctx context.Context, t target, old storage.Tag, known bool) (digest.Digest, error) {
	res, err := t.registry.Resolve(ctx, t.repo, t.tag)
	if err != nil {
		return "", err
	}
	if res.Content != nil {
		return p.keep(ctx, t.scope(), res)
	}
	if _, err := storage.ParseDigest(string(res.Digest)); err != nil {
		return p.fetchTag(ctx, t) // content of this algorithm is not stored
	}
	if res.MediaType == "" && (!known || res.Digest != old.Digest) {
		return p.fetchTag(ctx, t) // the answer may not be a registry's
	}
	p.heads.add(contentKey(t, res.Digest), res.Descriptor)
	if !known || res.Digest == old.Digest || t.policy.noStore {
		return res.Digest, nil
	}
	err = p.fetch(ctx, t, res.Digest)
	if err == nil {
		return res.Digest, nil
	}
	if elsewhere(err) {
		if d, err := p.fetchTag(ctx, t); err == nil {
			return d, nil
		}
	}
	// The error is about the content, not about the tag: so it must not remove the tag.
	return "", &told{is: upstream.ErrUnavailable, words: "the tag's new content could not be fetched", cause: err}
}

// fetch downloads content that is not stored.
func (p *Proxy) fetch(ctx context.Context, t target, d digest.Digest) error {
	b, err := p.open(ctx, t, d)
	if err != nil {
		return err
	}
	defer b.Close()
	if err := b.Wait(ctx); err != nil && !errors.Is(err, storage.ErrNotStored) {
		return err
	}
	return nil
}

// fetchTag gets the manifest itself.
func (p *Proxy) fetchTag(ctx context.Context, t target) (digest.Digest, error) {
	res, err := t.registry.Manifest(ctx, t.repo, t.tag)
	if err != nil {
		return "", err
	}
	return p.keep(ctx, t.scope(), res)
}

// keep stores what an upstream has just sent for this scope, if there is space.
func (p *Proxy) keep(ctx context.Context, sc storage.Scope, res upstream.Resolved) (digest.Digest, error) {
	d := res.Digest
	if _, err := storage.ParseDigest(string(d)); err != nil {
		d = digest.FromBytes(res.Content)
	}
	src := download.Bytes(res.MediaType, res.Content)
	b, err := p.get(ctx, sc, d, src, func() error {
		if p.store.Admit(sc, d, res.MediaType) {
			return nil
		}
		return p.store.PutLink(sc, d, res.MediaType)
	})
	if err != nil {
		return "", err
	}
	defer b.Close()
	if err := b.Wait(ctx); err != nil && !errors.Is(err, storage.ErrNotStored) {
		return "", fmt.Errorf("store %s: %w", d, err)
	}
	if b.MediaType != res.MediaType { // the registry has changed the media type
		return d, p.store.PutLink(sc, d, res.MediaType)
	}
	return d, nil
}
