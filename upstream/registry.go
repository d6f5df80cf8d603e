package upstream

import (
	"context"
	_ "crypto/sha256" // digests that upstreams may name
	_ "crypto/sha512"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/sony/gobreaker/v2"

	"github.com/cachalot-registry/cachalot/bounds"
)

// Kind is the kind of content that is requested.
type Kind string

const (
	KindManifest  Kind = "manifest"
	KindBlob      Kind = "blob"
	KindTags      Kind = "tags"
	KindReferrers Kind = "referrers"
)

// MaxManifestSize is the longest manifest accepted, in bytes: the minimum that
// the distribution specification wants registries to accept.
const MaxManifestSize = 4 << 20

// manifestTime bounds a whole manifest, which is small; blobs have no such bound.
const manifestTime = 2 * time.Minute

// Registry is one upstream registry. Its methods may be called concurrently.
// They fail with an *Error, or with the context's error inside one.
type Registry struct {
	cfg         Config
	log         *slog.Logger
	metrics     *Metrics
	egress      *egress
	transport   *http.Transport
	endpoints   []*endpoint
	connections *connections
	breakers    *breakers
	rests       *rests
	downloads   *bounds.Bulkhead // a place for each blob body under way, by repository
	wrong       *wrong
	guests      *guests

	pause func() backoff.BackOff // between tries
	ctx   context.Context        // of work that outlives its caller: pings and token requests
	stop  context.CancelFunc
}

// downloadShare is the part of the places for blobs that a repository leaves to others. It
// is larger than that of connections, by so much that the downloads of a repository leave
// one connection for its other requests, if there are two.
const downloadShare = 0.375

// New returns a registry. It sends no request. Its error is a [*KeyError] if a value of
// the configuration is wrong.
func New(cfg Config, m *Metrics, log *slog.Logger) (*Registry, error) {
	if wrong := cfg.Validate(); len(wrong) > 0 {
		return nil, wrong[0]
	}
	cfg = cfg.withDefaults()
	policy := newEgress(cfg)
	transport, err := newTransport(cfg, policy)
	if err != nil {
		return nil, err
	}
	r := &Registry{
		cfg: cfg, log: log, metrics: m, egress: policy, transport: transport, pause: jittered,
		downloads: bounds.NewBulkhead(max(cfg.MaxConnections-max(cfg.MaxConnections/8, 1), 1), downloadShare),
	}
	if r.connections, err = newConnections(transport); err != nil {
		return nil, err
	}
	if r.wrong, err = newWrong(); err != nil {
		return nil, err
	}
	if r.guests, err = newGuests(r); err != nil {
		return nil, err
	}
	r.breakers, err = newBreakers(func(origin string, from, to gobreaker.State) {
		log.Info("upstream circuit breaker", "upstream", cfg.Name, "origin", origin, "from", from.String(), "to", to.String())
	})
	if err != nil {
		return nil, err
	}
	if r.rests, err = newRests(); err != nil {
		return nil, err
	}
	for _, raw := range cfg.URLs {
		base, err := parseBase(raw)
		if err != nil {
			return nil, err
		}
		e, err := newEndpoint(r, base)
		if err != nil {
			return nil, err
		}
		r.endpoints = append(r.endpoints, e)
	}
	r.ctx, r.stop = context.WithCancel(context.Background())
	return r, nil
}

// Name returns the registry's name as clients write it.
func (r *Registry) Name() string { return r.cfg.Name }

// HasAccount reports whether requests to the registry use an account: its content may not
// be public.
func (r *Registry) HasAccount() bool {
	return slices.ContainsFunc(r.endpoints, func(e *endpoint) bool {
		return slices.ContainsFunc(e.accounts, func(a *account) bool { return a.source != nil })
	})
}

// Close ends pings and token requests under way and closes idle connections. Bodies
// that are being read are not touched.
func (r *Registry) Close() {
	r.stop()
	r.connections.close()
	for _, e := range r.endpoints {
		for _, a := range e.accounts {
			a.forget()
		}
	}
}

// manifestTypes is the Accept header for manifests. Registries convert or refuse types
// that are not in it; "*/*" admits unknown types.
const manifestTypes = "application/vnd.oci.image.index.v1+json, " +
	"application/vnd.oci.image.manifest.v1+json, " +
	"application/vnd.docker.distribution.manifest.list.v2+json, " +
	"application/vnd.docker.distribution.manifest.v2+json, " +
	"application/vnd.docker.distribution.manifest.v1+prettyjws;q=0.5, " +
	"application/vnd.docker.distribution.manifest.v1+json;q=0.4, " +
	"*/*;q=0.1"

// content returns the query for a manifest or blob.
func content(method string, kind Kind, repo, reference string) query {
	q := query{
		op: strings.ToLower(method) + "_" + string(kind), method: method, repo: repo,
		path: repo + "/blobs/" + reference, raced: strings.Contains(reference, ":"), // a digest, not a tag
	}
	if kind == KindManifest {
		q.path = repo + "/manifests/" + reference
		q.header = http.Header{"Accept": {manifestTypes}}
	}
	return q
}

// Has checks whether a repository has a manifest or blob: by HEAD, or by a plain GET
// whose body is not read. Size is -1 when unknown.
func (r *Registry) Has(ctx context.Context, kind Kind, repo string, d digest.Digest) (ocispec.Descriptor, error) {
	desc, err := r.head(ctx, kind, repo, d.String())
	if err == nil && (desc.Digest == "" || desc.Digest.Algorithm() != d.Algorithm() || desc.Digest == d) {
		desc.Digest = d // a registry may name it by another algorithm
		return desc, nil
	}
	if err != nil && !plainHelps(ctx, err) {
		return ocispec.Descriptor{}, err
	}
	c, err := r.Open(ctx, kind, repo, d, Span{})
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	return ocispec.Descriptor{MediaType: c.MediaType, Digest: d, Size: c.Size}, c.Body.Close()
}

// Resolved is the manifest that a tag points to.
type Resolved struct {
	ocispec.Descriptor        // Size is -1 when unknown
	Content            []byte // of the manifest, if it had to be fetched; else nil
}

// Resolve returns the manifest that a tag points to: by HEAD, which costs no quota, or by
// a plain GET if the HEAD does not give the digest.
func (r *Registry) Resolve(ctx context.Context, repo, tag string) (Resolved, error) {
	desc, err := r.head(ctx, KindManifest, repo, tag)
	if err == nil && desc.Digest != "" {
		return Resolved{Descriptor: desc}, nil
	}
	if err != nil && !plainHelps(ctx, err) {
		return Resolved{}, err
	}
	return r.Manifest(ctx, repo, tag)
}

// head sends a HEAD, which is optional. In the descriptor, Digest is the one that upstream
// sent, "" if it sent none or an invalid one, and Size is -1 when unknown.
func (r *Registry) head(ctx context.Context, kind Kind, repo, reference string) (ocispec.Descriptor, error) {
	resp, err := r.optional(ctx, content(http.MethodHead, kind, repo, reference))
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	resp.Body.Close()
	size := resp.ContentLength
	if size == 0 && !isNothing(reference) || isGzip(resp.Header) { // no length, or that of the compressed body
		size = -1
	}
	return ocispec.Descriptor{MediaType: mediaType(kind, resp), Digest: namedDigest(resp), Size: size}, nil
}

// isNothing reports whether a reference is the digest of empty content.
func isNothing(reference string) bool {
	d, err := digest.Parse(reference)
	return err == nil && d == d.Algorithm().FromBytes(nil)
}

// namedDigest returns the digest that a response names; "" if there is none, or it is invalid.
func namedDigest(resp *http.Response) digest.Digest {
	d, err := digest.Parse(resp.Header.Get("Docker-Content-Digest"))
	if err != nil {
		return ""
	}
	return d
}

// mediaType returns the media type of a response; "" if it has none, or one that its
// manifest cannot have.
func mediaType(kind Kind, resp *http.Response) string {
	t, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if err != nil || kind == KindManifest && !isManifestType(t) {
		return ""
	}
	return t
}

// isManifestType reports whether t may be a manifest's media type: all of them are vendor types.
func isManifestType(t string) bool {
	return strings.HasPrefix(t, "application/vnd.")
}

// Content is a manifest or blob that is being downloaded. Body must be closed. It fails with
// an *Error: ErrTimeout after a pause or trickle of Timeouts.Progress, ErrUnavailable
// when the connection breaks. To resume, call Open again at the offset reached.
type Content struct {
	Body io.ReadCloser
	// Offset is where Body starts: the requested offset, or 0 if upstream
	// ignored the range.
	Offset int64
	// End is where Body ends: Size, or before it if less was requested.
	End int64
	// Size is the size of the whole content, -1 when upstream did not say.
	Size      int64
	MediaType string
	// Wrong is to be called if the whole that began with this body proves to be other
	// content than was requested: next time the body is decompressed, or the URL is
	// skipped for a while. Nil: there is no other way.
	Wrong func()
}

// Span is the part of a blob or manifest that is requested: its bytes from Offset on.
type Span struct {
	Offset int64
	Length int64 // 0: to the end; an upstream without ranges always sends all
	// Spare: one more connection is wanted for a blob that has one. Open fails at
	// once while half of the registry's connections are in use, and if the
	// upstream does not send exactly the span.
	Spare bool
}

// header returns the Range header (RFC 9110, section 14.2); "" for the whole content.
func (s Span) header() string {
	switch {
	case s.Length > 0:
		return fmt.Sprintf("bytes=%d-%d", s.Offset, s.Offset+s.Length-1)
	case s.Offset > 0:
		return fmt.Sprintf("bytes=%d-", s.Offset)
	}
	return ""
}

// isIn reports whether a Content-Range is the requested one.
func (s Span) isIn(start, end, total int64) bool {
	if start != s.Offset || s.Length == 0 {
		return start == s.Offset
	}
	return total >= 0 && end == min(s.Offset+s.Length, total)-1
}

// Open starts to download a blob or manifest, or a span of it. The content is not
// verified here. For blobs it waits for one of the registry's connections. One repository
// cannot take all of them.
func (r *Registry) Open(ctx context.Context, kind Kind, repo string, d digest.Digest, s Span) (*Content, error) {
	q := content(http.MethodGet, kind, repo, d.String())
	if s.Offset < 0 || s.Length < 0 {
		return nil, r.fail(q.op, ErrInvalid, "negative offset")
	}
	skip, unpacks := r.wrong.skip(d)
	if len(skip) < len(r.endpoints) {
		q.skip = skip
	}
	if unpacks {
		s = Span{Spare: s.Spare} // a compressed body has no ranges of the content
	}
	release := func() {}
	if kind == KindBlob {
		if s.Spare && 2*r.downloads.Taken() >= r.downloads.Limit() {
			return nil, r.fail(q.op, ErrUnavailable, "not asked: half of the connections are in use")
		}
		var err error
		if release, err = enter(ctx, r.downloads, repo); err != nil {
			return nil, r.networkError(ctx, q.op, "waiting for a connection", err)
		}
	}
	c, b, err := r.open(ctx, q, kind, s)
	if err != nil {
		release()
		return nil, err
	}
	b.after(release)
	var wrong func()
	if len(r.endpoints) > 1 || b.gzipped {
		r.wrong.note(d, b.from, b.gzipped)
		b.broke = func() { r.wrong.broken(d, b.from) }
		wrong = func() { r.wrong.refuse(d, b.from) }
	}
	if kind == KindBlob && b.gzipped && c.Offset == 0 {
		c.Size, c.End = -1, 0 // the length may be that of the compressed body
	}
	switch {
	case kind == KindManifest && c.Offset == 0 && (b.gzipped || c.MediaType == mediaTypeSigned || !isManifestType(c.MediaType)):
		c, err = r.readOdd(ctx, q.op, c, d, b.gzipped)
	case kind == KindBlob && b.gzipped && r.wrong.unpacks(d, b.from):
		if c, err = r.unpacked(q.op, c, wrong); errors.Is(err, errNoGzip) {
			return r.Open(ctx, kind, repo, d, s) // in another way: without decompression
		}
	}
	if err != nil {
		return nil, err
	}
	c.Wrong = wrong
	return c, nil
}

func (r *Registry) open(ctx context.Context, q query, kind Kind, s Span) (*Content, *body, error) {
	q.accept = r.isContent(q.op) //nolint:bodyclose // it makes no response
	if header := s.header(); header != "" {
		c, b, err := r.openRange(ctx, q, kind, s, header)
		later := s.Offset > 0 && (transient(err) || errors.Is(err, ErrRateLimited)) && slices.ContainsFunc(r.endpoints, func(e *endpoint) bool { return e.ranges.Load() })
		if err == nil || s.Spare || later || !plainHelps(ctx, err) {
			return c, b, err
		}
	}
	resp, err := r.ask(ctx, q) //nolint:bodyclose // accept takes it
	if err != nil {
		return nil, nil, err
	}
	return r.accept(q, kind, resp, 0, resp.ContentLength, resp.ContentLength)
}

// openRange requests a range. After a break it tries more than once, because the plain
// request would bring all bytes again. If an upstream is known to support ranges, the
// caller of Open decides whether to do that.
func (r *Registry) openRange(ctx context.Context, q query, kind Kind, s Span, header string) (*Content, *body, error) {
	q.header = q.header.Clone()
	if q.header == nil {
		q.header = http.Header{}
	}
	q.header.Set("Range", header)
	q.accept = nil
	ask := r.optional
	if s.Offset > 0 && !s.Spare {
		ask = r.ask
	}
	resp, err := ask(ctx, q)
	if err != nil {
		return nil, nil, err
	}
	if resp.StatusCode != http.StatusPartialContent && !s.Spare && isWhole(resp) {
		return r.accept(q, kind, resp, 0, resp.ContentLength, resp.ContentLength)
	}
	start, end, total, ok := parseContentRange(resp.Header.Get("Content-Range"))
	length := resp.ContentLength
	if ok && resp.StatusCode == http.StatusPartialContent && s.isIn(start, end, total) && (length < 0 || length == end-start+1) {
		resp.Body.(*body).from.ranges.Store(true)
		return r.accept(q, kind, resp, start, end+1, total)
	}
	resp.Body.Close()
	return nil, nil, r.fail(q.op, ErrInvalid, "status %d to a range request, with wrong range", resp.StatusCode)
}

// isWhole reports whether a response to a plain GET brings the whole content. A 203 may be
// transformed; the digest decides whether it is right.
func isWhole(resp *http.Response) bool {
	switch resp.StatusCode {
	case http.StatusOK, http.StatusNonAuthoritativeInfo:
		return true
	case http.StatusPartialContent:
		start, end, total, ok := parseContentRange(resp.Header.Get("Content-Range"))
		return ok && start == 0 && end == total-1
	}
	return false
}

// isContent returns a check that refuses a response without the whole content.
func (r *Registry) isContent(op string) func(*http.Response) error {
	return func(resp *http.Response) error {
		if isWhole(resp) {
			return nil
		}
		return r.fail(op, ErrInvalid, "status %d to a plain GET", resp.StatusCode)
	}
}

// accept starts to count the bytes of a body, and bounds the size and time of all but blobs.
func (r *Registry) accept(q query, kind Kind, resp *http.Response, offset, end, size int64) (*Content, *body, error) {
	b := resp.Body.(*body)
	b.fetched = r.metrics.fetched.WithLabelValues(r.cfg.label(), string(kind))
	if end >= 0 {
		b.missing = end - offset
	}
	if kind != KindBlob {
		if max(size, resp.ContentLength) > MaxManifestSize {
			_ = b.Close() // given up
			return nil, nil, r.fail(q.op, ErrInvalid, "longer than %d bytes", MaxManifestSize)
		}
		b.left = MaxManifestSize - offset
		b.bound(manifestTime)
	}
	return &Content{Body: b, Offset: offset, End: max(end, 0), Size: size, MediaType: mediaType(kind, resp)}, b, nil
}

// Manifest fetches a manifest by tag, or by digest after ErrSigned. It verifies that the
// bytes are a manifest, and match the digest that the response names. The digest in the
// result is that of the bytes.
func (r *Registry) Manifest(ctx context.Context, repo, reference string) (Resolved, error) {
	q := content(http.MethodGet, KindManifest, repo, reference)
	q.accept = r.isContent(q.op) //nolint:bodyclose // it makes no response
	var m Resolved
	err := r.read(ctx, KindManifest, q, func(resp *http.Response, body []byte) (err error) {
		if busy := bounds.Work(ctx, len(body), func() { m, err = readManifest(resp, body) }); busy != nil {
			return busy
		}
		if !errors.Is(err, errNamed) {
			return err
		}
		if settled, other := r.settle(ctx, repo, namedDigest(resp), m); other == nil {
			m, err = settled, nil
		}
		return err
	})
	return m, err
}
