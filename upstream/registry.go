package upstream

import (
	"context"
	_ "crypto/sha256" // digests that upstreams may name
	_ "crypto/sha512"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v5"
	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/sony/gobreaker/v2"
)

// Kind is what is asked for.
type Kind string

const (
	KindManifest  Kind = "manifest"
	KindBlob      Kind = "blob"
	KindTags      Kind = "tags"
	KindReferrers Kind = "referrers"
)

// MaxManifestSize is the longest manifest accepted, in bytes: the least that
// the distribution specification wants registries to accept.
const MaxManifestSize = 4 << 20

// manifestTime bounds a whole manifest, which is small; blobs have no such bound.
const manifestTime = 2 * time.Minute

// Registry is one upstream registry. Its methods may be called concurrently.
// They fail with an *Error, or with the context's error inside one.
type Registry struct {
	cfg       Config
	log       *slog.Logger
	metrics   *Metrics
	egress    *egress
	transport *http.Transport
	endpoints []*endpoint
	breakers  *lru.Cache[string, *gobreaker.TwoStepCircuitBreaker[struct{}]] // by origin
	rests     *lru.Cache[string, time.Time]                                  // by origin: not asked before
	downloads chan struct{}                                                  // one slot per blob body under way

	pause func() backoff.BackOff // between tries
	ctx   context.Context        // of work that outlives its caller: pings and token requests
	stop  context.CancelFunc
}

// New makes a registry. It contacts nobody. Its errors name the configuration
// key to change.
func New(cfg Config, m *Metrics, log *slog.Logger) (*Registry, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults()
	policy := newEgress(cfg)
	transport, err := newTransport(cfg, policy)
	if err != nil {
		return nil, err
	}
	r := &Registry{
		cfg: cfg, log: log, metrics: m, egress: policy, transport: transport, pause: jittered,
		downloads: make(chan struct{}, max(cfg.MaxConnections-max(cfg.MaxConnections/8, 1), 1)),
	}
	r.breakers, err = lru.New[string, *gobreaker.TwoStepCircuitBreaker[struct{}]](maxOrigins)
	if err != nil {
		return nil, fmt.Errorf("make breaker cache: %w", err)
	}
	if r.rests, err = lru.New[string, time.Time](maxOrigins); err != nil {
		return nil, fmt.Errorf("make cache of rests: %w", err)
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

// Name is the registry's name as clients say it.
func (r *Registry) Name() string { return r.cfg.Name }

// Close ends pings and token requests under way and closes idle connections. Bodies
// that are being read are not touched.
func (r *Registry) Close() {
	r.stop()
	r.transport.CloseIdleConnections()
}

// manifestTypes is what a manifest may be. Registries convert or refuse what
// they do not find here; "*/*" admits what nobody has thought of yet.
const manifestTypes = "application/vnd.oci.image.index.v1+json, " +
	"application/vnd.oci.image.manifest.v1+json, " +
	"application/vnd.docker.distribution.manifest.list.v2+json, " +
	"application/vnd.docker.distribution.manifest.v2+json, " +
	"application/vnd.docker.distribution.manifest.v1+prettyjws;q=0.5, " +
	"application/vnd.docker.distribution.manifest.v1+json;q=0.4, " +
	"*/*;q=0.1"

// content is the question for a manifest or blob.
func content(method string, kind Kind, repo, reference string) query {
	q := query{
		op: strings.ToLower(method) + "_" + string(kind), method: method, repo: repo,
		path: repo + "/blobs/" + reference, raced: strings.Contains(reference, ":"), // a digest, no tag
	}
	if kind == KindManifest {
		q.path = repo + "/manifests/" + reference
		q.header = http.Header{"Accept": {manifestTypes}}
	}
	return q
}

// Head asks for a manifest by tag or digest, or a blob by digest, without its
// content. In the descriptor, Digest is what upstream said, "" when it said
// nothing or nonsense, and Size is -1 when unknown. ErrUnsupported: upstream
// does not answer HEAD requests.
func (r *Registry) Head(ctx context.Context, kind Kind, repo, reference string) (ocispec.Descriptor, error) {
	resp, err := r.ask(ctx, content(http.MethodHead, kind, repo, reference))
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	resp.Body.Close()
	d, err := digest.Parse(resp.Header.Get("Docker-Content-Digest"))
	if err != nil {
		d = ""
	}
	return ocispec.Descriptor{MediaType: mediaType(resp), Digest: d, Size: resp.ContentLength}, nil
}

func mediaType(resp *http.Response) string {
	t, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if err != nil {
		return ""
	}
	return t
}

// Content is a manifest or blob on its way. Body must be closed. It fails with
// an *Error: ErrTimeout after a silence or trickle of Timeouts.Progress,
// ErrUnavailable when the connection breaks. Open again at the offset reached.
type Content struct {
	Body io.ReadCloser
	// Offset is where Body starts: the offset asked for, or 0 where upstream
	// ignored the range.
	Offset int64
	// End is where it ends: Size, or before it where less was asked for.
	End int64
	// Size is that of the whole content, -1 when upstream did not say.
	Size      int64
	MediaType string
}

// Span is what is asked for of a blob or manifest: its bytes from Offset on.
type Span struct {
	Offset int64
	Length int64 // 0: all to the end; what an upstream without ranges sends in any case
	// Spare: one more connection is wanted for a blob that has one. It is refused
	// at once while half of the registry's connections are in use, and where the
	// upstream does not give just the span.
	Spare bool
}

// header is the Range of RFC 9110, section 14.2; "" for everything.
func (s Span) header() string {
	switch {
	case s.Length > 0:
		return fmt.Sprintf("bytes=%d-%d", s.Offset, s.Offset+s.Length-1)
	case s.Offset > 0:
		return fmt.Sprintf("bytes=%d-", s.Offset)
	}
	return ""
}

// isIn reports whether an answer's Content-Range is what was asked for.
func (s Span) isIn(start, end, total int64) bool {
	if start != s.Offset || s.Length == 0 {
		return start == s.Offset
	}
	return total >= 0 && end == min(s.Offset+s.Length, total)-1
}

// Open starts to download a blob or manifest, or a span of it. The content is not
// verified here. For blobs it waits for one of the registry's connections.
func (r *Registry) Open(ctx context.Context, kind Kind, repo string, d digest.Digest, s Span) (*Content, error) {
	q := content(http.MethodGet, kind, repo, d.String())
	if s.Offset < 0 || s.Length < 0 {
		return nil, r.fail(q.op, ErrInvalid, "negative offset")
	}
	release := func() {}
	if kind == KindBlob {
		if err := r.connection(ctx, q.op, s.Spare); err != nil {
			return nil, err
		}
		release = func() { <-r.downloads }
	}
	c, b, err := r.open(ctx, q, kind, s)
	if err != nil {
		release()
		return nil, err
	}
	b.after(release)
	return c, nil
}

// connection takes one of those that are for blobs.
func (r *Registry) connection(ctx context.Context, op string, spare bool) error {
	if spare && 2*len(r.downloads) >= cap(r.downloads) {
		return r.fail(op, ErrUnavailable, "not asked, for half of the connections are in use")
	}
	select {
	case r.downloads <- struct{}{}:
		return nil
	case <-ctx.Done():
		return r.networkError(ctx, op, "waiting for a connection", context.Cause(ctx))
	}
}

func (r *Registry) open(ctx context.Context, q query, kind Kind, s Span) (*Content, *body, error) {
	if header := s.header(); header != "" {
		ranged := q
		ranged.header = q.header.Clone()
		if ranged.header == nil {
			ranged.header = http.Header{}
		}
		ranged.header.Set("Range", header)
		resp, err := r.ask(ctx, ranged)
		switch {
		case statusOf(err) == http.StatusRequestedRangeNotSatisfiable && !s.Spare:
			// Shorter than we think, or no ranges: the whole will tell.
		case err != nil:
			return nil, nil, err
		case resp.StatusCode == http.StatusOK && !s.Spare:
			return r.accept(q, kind, resp, 0, resp.ContentLength, resp.ContentLength)
		default:
			start, end, total, ok := parseContentRange(resp.Header.Get("Content-Range"))
			length := resp.ContentLength
			if ok && resp.StatusCode == http.StatusPartialContent && s.isIn(start, end, total) && (length < 0 || length == end-start+1) {
				return r.accept(q, kind, resp, start, end+1, total)
			}
			resp.Body.Close()
			if s.Spare {
				return nil, nil, r.fail(q.op, ErrInvalid, "status %d to a range, and not just that", resp.StatusCode)
			}
		}
	}
	resp, err := r.ask(ctx, q)
	if err != nil {
		return nil, nil, err
	}
	if resp.StatusCode != http.StatusOK {
		resp.Body.Close()
		return nil, nil, r.fail(q.op, ErrInvalid, "status %d to a plain GET", resp.StatusCode)
	}
	return r.accept(q, kind, resp, 0, resp.ContentLength, resp.ContentLength)
}

// accept starts to count a body, and bounds a manifest's.
func (r *Registry) accept(q query, kind Kind, resp *http.Response, offset, end, size int64) (*Content, *body, error) {
	b := resp.Body.(*body)
	b.fetched = r.metrics.fetched.WithLabelValues(r.cfg.label(), string(kind))
	if kind != KindBlob {
		if max(size, resp.ContentLength) > MaxManifestSize {
			_ = b.Close() // given up
			return nil, nil, r.fail(q.op, ErrInvalid, "longer than %d bytes", MaxManifestSize)
		}
		b.left = MaxManifestSize - offset
		b.bound(manifestTime)
	}
	return &Content{Body: b, Offset: offset, End: max(end, 0), Size: size, MediaType: mediaType(resp)}, b, nil
}

// Manifest fetches a manifest by tag. The body is not verified.
func (r *Registry) Manifest(ctx context.Context, repo, tag string) (string, []byte, error) {
	q := content(http.MethodGet, KindManifest, repo, tag)
	var c *Content
	body, err := r.retryBody(ctx, func() (io.ReadCloser, error) {
		var err error
		c, _, err = r.open(ctx, q, KindManifest, Span{})
		if err != nil {
			return nil, err
		}
		return c.Body, nil
	})
	if err != nil {
		return "", nil, err
	}
	return c.MediaType, body, nil
}
