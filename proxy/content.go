package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cachalot-registry/cachalot/storage"
	"github.com/cachalot-registry/cachalot/storage/download"
	"github.com/cachalot-registry/cachalot/upstream"
)

// blob serves a layer, a config or any other content by digest.
func (p *Proxy) blob(w *response, r *http.Request, t target) error {
	return p.serve(w, r, t, t.digest, resultHit)
}

// open returns content by digest: from disk, or by a fill from the upstream. Content that
// came through another repository needs a HEAD to the upstream first.
func (p *Proxy) open(ctx context.Context, t target, d digest.Digest) (*storage.Blob, error) {
	b, err := p.get(ctx, t.scope(), d, p.source(t, d), func() error { return p.link(ctx, t, d) })
	if errors.Is(err, storage.ErrDigest) || errors.Is(err, download.ErrChanged) {
		return nil, p.broke(ctx, t, d, err)
	}
	if err != nil {
		return nil, p.negative.add(contentKey(t, d), err)
	}
	return b, nil
}

// maxLinks bounds how often get links the same content, if it is evicted again at once.
const maxLinks = 4

// get is Store.Get; it calls link if the place has no link yet.
func (p *Proxy) get(ctx context.Context, sc storage.Scope, d digest.Digest, src download.Source, link func() error) (*storage.Blob, error) {
	b, err := p.store.Get(ctx, sc, d, src)
	for tries := 0; errors.Is(err, storage.ErrUnlinked) && tries < maxLinks; tries++ {
		if err := link(); err != nil {
			return nil, err
		}
		b, err = p.store.Get(ctx, sc, d, src)
	}
	return b, err
}

// source returns a Source of content by digest. While the negative cache has the content,
// it fails without a request.
func (p *Proxy) source(t target, d digest.Digest) download.Source {
	var tried atomic.Bool // once more, after a body of no announced length: see openBody
	return func(ctx context.Context, s download.Span) (*download.Part, error) {
		if err := p.negative.get(contentKey(t, d)); err != nil {
			return nil, fmt.Errorf("%w: %w", download.ErrRefused, err)
		}
		span := upstream.Span{Offset: s.Offset, Length: s.Length, Spare: s.Spare}
		if s.IfLong && !p.isLong(t, d, s) {
			span.Length = 0
		}
		closed := func() {}
		if t.kind == upstream.KindManifest { // the upstream may have to read it whole
			ctx, closed = p.cfg.Memory.Account(ctx, t.holder())
		}
		c, err := t.registry.Open(ctx, t.kind, t.repo, d, span)
		if err != nil {
			closed()
			return nil, final(err)
		}
		c.Body = finalBody{c.Body}
		if c.Size < 0 && c.Offset == 0 {
			c.Body = openBody{c.Body, d.Verifier(), &tried}
		}
		return accounted((*download.Part)(c), closed), nil
	}
}

// longestRest is the longest Retry-After that a download waits for: as long as storage
// retries after a break. With a longer one clients get the error at once, and can use
// another registry.
const longestRest = 15 * time.Second

// final wraps errors that a retry does not fix, or not soon enough, with
// [storage.ErrRefused].
func final(err error) error {
	asked, ok := errors.AsType[*upstream.Error](err)
	no := errors.Is(err, upstream.ErrNotFound) || errors.Is(err, upstream.ErrDenied)
	if no || errors.Is(err, upstream.ErrInvalid) || errors.Is(err, upstream.ErrSigned) || ok && asked.RetryAfter > longestRest {
		return fmt.Errorf("%w: %w", download.ErrRefused, err)
	}
	return err
}

// finalBody is a body whose errors go through final.
type finalBody struct{ io.ReadCloser }

func (b finalBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = final(err)
	}
	return n, err
}

// openBody is a whole body of no announced length. A broken connection can look like its
// end (RFC 9112 section 6.3). So the first body that does not match the digest counts as
// broken, and the Source is asked for the rest.
type openBody struct {
	io.ReadCloser
	verifier digest.Verifier
	tried    *atomic.Bool
}

func (b openBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	_, _ = b.verifier.Write(p[:n]) // a hash never fails
	if errors.Is(err, io.EOF) && !b.verifier.Verified() && b.tried.CompareAndSwap(false, true) {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// confirm asks the upstream whether the target's repository has the digest, unless the
// upstream has said so after since. Concurrent callers share one HEAD.
func (p *Proxy) confirm(ctx context.Context, t target, d digest.Digest, since time.Time) (ocispec.Descriptor, error) {
	key := contentKey(t, d)
	if desc, ok := p.heads.get(key, since); ok {
		return desc, nil
	}
	if err := p.negative.get(key); err != nil {
		return ocispec.Descriptor{}, err
	}
	return once(ctx, p.checks, t.asks("confirm", key), func(ctx context.Context) (ocispec.Descriptor, error) {
		desc, err := t.registry.Has(ctx, t.kind, t.repo, d)
		if err != nil {
			return desc, p.negative.add(key, err)
		}
		p.heads.add(key, desc)
		return desc, nil
	})
}

// link links content that is stored, or being downloaded, to the target's repository.
func (p *Proxy) link(ctx context.Context, t target, d digest.Digest) error {
	since := time.Now().Add(-p.cfg.FreshFor)
	length, here := p.store.Length(d)
	if !here { // the same registry is sending it, which proves that it has it
		desc, err := p.confirm(ctx, t, d, since)
		if err == nil {
			p.store.Admit(t.scope(), d, desc.MediaType)
		}
		return err
	}
	believed, err := p.believes(t.registry, d)
	if err != nil {
		return err
	}
	var desc ocispec.Descriptor
	if believed {
		desc, err = p.confirm(ctx, t, d, since)
	} else {
		desc, err = p.verifyByDownload(ctx, t, d, length)
	}
	if err != nil {
		return err
	}
	return p.store.PutLink(t.scope(), d, desc.MediaType)
}

// believes reports whether a registry's HEAD is enough to serve stored content as its own;
// otherwise the registry has to send the content. HEAD is enough:
//
//   - if the registry has sent the content before;
//   - if the registry is configured, and the content is public (a registry sent it without
//     an account) or of unknown origin (the index was lost).
//
// An unlisted registry may belong to the client that named it, and content that only came
// through an account must not leak to another registry's clients.
func (p *Proxy) believes(r *upstream.Registry, d digest.Digest) (bool, error) {
	own, public, known := false, false, false
	err := p.store.Origins(d, func(name string) bool {
		origin := p.registries.byName[name]
		own = name == r.Name()
		public = public || origin != nil && !origin.HasAccount()
		known = true
		return !own
	})
	return own || !p.registries.isUnlisted(r) && (public || !known), err
}

// verifyByDownload downloads content that is stored already, and compares it, while a client
// waits. So the registry proves that it has the content.
func (p *Proxy) verifyByDownload(ctx context.Context, t target, d digest.Digest, length int64) (ocispec.Descriptor, error) {
	key := contentKey(t, d)
	if err := p.negative.get(key); err != nil {
		return ocispec.Descriptor{}, err
	}
	q := t.asks("verify", key)
	q.abandoned = true
	return once(ctx, p.checks, q, func(ctx context.Context) (ocispec.Descriptor, error) {
		c, err := t.registry.Open(ctx, t.kind, t.repo, d, upstream.Span{})
		if err != nil {
			return ocispec.Descriptor{}, p.negative.add(key, err)
		}
		defer c.Body.Close()
		verifier := d.Verifier()
		if _, err := io.Copy(verifier, io.LimitReader(c.Body, length+1)); err != nil {
			return ocispec.Descriptor{}, err
		}
		if !verifier.Verified() {
			return ocispec.Descriptor{}, storage.ErrDigest
		}
		return ocispec.Descriptor{MediaType: c.MediaType, Digest: d, Size: c.Size}, nil
	})
}

// serve answers with content by digest. looked is how the digest was found. If one of the
// upstream's URLs sends other content, serve asks the next one.
func (p *Proxy) serve(w *response, r *http.Request, t target, d digest.Digest, looked result) error {
	serve := p.serveWhole
	if r.Method == http.MethodHead {
		serve = p.serveHead
	}
	for tries := 0; ; tries++ {
		err := serve(w, r, t, d, looked)
		if _, again := errors.AsType[*wrongURL](err); !again || w.wrote || w.ctx.Err() != nil || tries == maxURLs {
			return err
		}
	}
}

// maxURLs bounds how many URLs of an upstream are asked for content, one after the other.
const maxURLs = 8

// wrongURL is the error of wrong content from an upstream that has another URL to ask.
type wrongURL struct{ error }

func (e *wrongURL) Unwrap() error { return e.error }

// serveWhole answers with content, and downloads it if it is not stored.
func (p *Proxy) serveWhole(w *response, r *http.Request, t target, d digest.Digest, looked result) error {
	b, err := p.open(w.ctx, t, d)
	// Over HTTP/1.0 a client cannot tell the end of a body without a length from a break
	// (RFC 9112 section 6.3).
	endless := t.kind == upstream.KindManifest || !r.ProtoAtLeast(1, 1)
	if err == nil && endless && b.Size < 0 && b.Stored {
		// Clients need the length, which is known once the download is complete.
		outcome := b.Outcome
		err = b.Wait(w.ctx)
		b.Close()
		if err != nil && !errors.Is(err, storage.ErrNotStored) {
			return p.broke(w.ctx, t, d, err)
		}
		if b, err = p.open(w.ctx, t, d); err == nil {
			b.Outcome = outcome
		}
	}
	if err != nil {
		return err
	}
	defer b.Close()
	if b.Size < 0 && !r.ProtoAtLeast(1, 1) {
		return &told{is: upstream.ErrInvalid, words: "the length is unknown, and HTTP/1.0 cannot mark a cut body: use HTTP/1.1"}
	}
	return p.send(w, r, t, b, looked)
}

// serveHead answers without downloading anything.
func (p *Proxy) serveHead(w *response, r *http.Request, t target, d digest.Digest, looked result) error {
	b, err := p.get(w.ctx, t.scope(), d, nil, func() error { return p.link(w.ctx, t, d) })
	if err == nil {
		defer b.Close()
		return p.send(w, r, t, b, looked)
	}
	if !errors.Is(err, storage.ErrNotFound) {
		return err
	}
	// Only an answer from now on promises that GET works.
	desc, err := p.confirm(w.ctx, t, d, w.started)
	if err != nil {
		return err
	}
	if t.kind == upstream.KindManifest && (desc.Size < 0 || desc.MediaType == "") {
		// Clients fail, or use another registry, without them, and ask for the manifest next.
		return p.serveWhole(w, r, t, d, looked)
	}
	w.result = resultMiss
	setContentHeaders(w, t, d, desc.MediaType)
	if desc.Size >= 0 {
		w.Header().Set("Content-Length", strconv.FormatInt(desc.Size, 10))
	}
	w.WriteHeader(http.StatusOK)
	return nil
}

// send writes an open blob. The standard library does ranges, conditions and HEAD. The blob
// holds back its last byte until it has verified.
func (p *Proxy) send(w *response, r *http.Request, t target, b *storage.Blob, looked result) error {
	w.stored = b.Stored
	switch b.Outcome {
	case storage.Miss:
		w.result = resultMiss
	case storage.Collapsed:
		w.result = resultCollapsed
	case storage.Hit:
		w.result = looked
	}
	if t.kind == upstream.KindManifest && b.Outcome != storage.Hit {
		// A manifest is small: a clean error is worth more than an early first byte.
		if err := b.Wait(w.ctx); err != nil && !errors.Is(err, storage.ErrNotStored) {
			return p.broke(w.ctx, t, b.Digest, err)
		}
	}
	if t.kind == upstream.KindManifest && r.Method == http.MethodGet && b.Stored {
		p.noteSizes(w.ctx, t, b)
	}
	setContentHeaders(w, t, b.Digest, b.MediaType)
	if err := limitRange(w, r, b); err != nil {
		return err
	}
	body := &noteError{ReadSeeker: b.Content}
	switch {
	case b.Size < 0: // the upstream did not say, so chunked
		w.WriteHeader(http.StatusOK)
		if r.Method == http.MethodGet {
			_, _ = io.Copy(w, body) // a client that has left is no news
		}
	case b.Outcome == storage.Hit:
		http.ServeContent(w, r, "", time.Time{}, b.Content) // the *os.File itself, for sendfile
		if err := w.cutByFile(); err != nil {
			b.Broken() // before the client can ask for the rest
			return fmt.Errorf("stored content: %w", err)
		}
	default:
		http.ServeContent(w, r, "", time.Time{}, body)
	}
	return p.broke(w.ctx, t, b.Digest, body.err)
}

// broke adds the error of a download that failed half-way to the negative cache, and returns
// it. It does not add an error that is due to a client that has left. If the upstream has
// another URL for the content, it returns a wrongURL.
func (p *Proxy) broke(ctx context.Context, t target, d digest.Digest, err error) error {
	wrong := errors.Is(err, storage.ErrDigest) || errors.Is(err, download.ErrChanged)
	if wrong && t.registry.HasOther(d) {
		return &wrongURL{err}
	}
	if err != nil && !isNegative(err) && ctx.Err() == nil && !errors.Is(err, storage.ErrClosed) {
		p.negative.addFailed(contentKey(t, d), err)
	}
	return err
}

// setContentHeaders sets what GET and HEAD say of content.
func setContentHeaders(w *response, t target, d digest.Digest, mediaType string) {
	if t.kind != upstream.KindManifest || mediaType == "" {
		mediaType = "application/octet-stream"
	}
	w.digest = d
	w.set("Content-Type", mediaType)
	w.set("Docker-Content-Digest", string(d))
	w.set("Etag", `"`+string(d)+`"`)
	if !inert(mediaType) {
		w.set("X-Content-Type-Options", "nosniff")
		w.set("Content-Security-Policy", "sandbox; default-src 'none'")
	}
	w.setCacheStatus()
}

// inert reports whether a browser cannot run a media type as a page or script. Nearly all
// images have such types; others are chosen by the upstream, and can be text/html. Inert ones
// get no protective headers: with more than eight headers net/http's maps take a tenth of
// the request's time.
func inert(mediaType string) bool {
	if mediaType == "application/octet-stream" {
		return true
	}
	vendor := strings.HasPrefix(mediaType, "application/vnd.oci.") || strings.HasPrefix(mediaType, "application/vnd.docker.")
	return vendor && strings.HasSuffix(mediaType, "json") && !strings.ContainsAny(mediaType, ";, ")
}
