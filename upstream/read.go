package upstream

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cachalot-registry/cachalot/bounds"
)

// read requests something small and reads the whole body. If valid refuses the body, or it
// is not complete in time, the URL that sent it has failed, and the next URL is tried. If
// a body breaks, read starts over once: unlike a blob, a small body is not resumed.
func (r *Registry) read(ctx context.Context, kind Kind, q query, valid func(resp *http.Response, body []byte) error) error {
	var telling error
	for broke := false; ; {
		resp, err := r.ask(ctx, q)
		if err != nil {
			return moreTelling(telling, err)
		}
		from := resp.Body.(*body).from
		body, err := r.readBody(q, kind, resp)
		breaks := errors.Is(err, ErrUnavailable) && !errors.Is(err, ErrTimeout)
		if err == nil {
			err = valid(resp, body)
		}
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil, errors.Is(err, bounds.ErrNoMemory):
			return err
		case breaks && !broke:
			broke = true
			continue
		}
		if _, ok := errors.AsType[*Error](err); !ok {
			err = r.fail(q.op, ErrInvalid, "%v", err)
		}
		telling = moreTelling(telling, err)
		q.skip = append(slices.Clip(q.skip), from)
		if len(q.skip) == len(r.endpoints) {
			return telling
		}
	}
}

// readBody reads a small body, and decompresses it if it is gzip, which was not requested.
func (r *Registry) readBody(q query, kind Kind, resp *http.Response) ([]byte, error) {
	c, _, err := r.accept(q, kind, resp, 0, resp.ContentLength, resp.ContentLength)
	if err != nil {
		return nil, err
	}
	defer c.Body.Close()
	ctx := resp.Body.(*body).ctx
	b, err := bounds.ReadAll(ctx, c.Body, resp.ContentLength)
	if err != nil || !isGzip(resp.Header) {
		return b, err
	}
	return r.unzip(ctx, q.op, b)
}

// isGzip reports whether a response says that its body is gzip, which was not requested.
func isGzip(h http.Header) bool {
	encoding := h.Get("Content-Encoding")
	return strings.EqualFold(encoding, "gzip") || strings.EqualFold(encoding, "x-gzip")
}

// errNoGzip: the body is not gzip, although the response says so.
var errNoGzip = fmt.Errorf("%w: not gzip, although Content-Encoding says so", ErrInvalid)

// unzip decompresses a small body. A body that is no gzip is returned as it is: the header
// is wrong.
func (r *Registry) unzip(ctx context.Context, op string, b []byte) ([]byte, error) {
	decoder, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		return b, nil //nolint:nilerr // see above
	}
	plain, err := bounds.ReadAll(ctx, io.LimitReader(decoder, MaxManifestSize+1), -1)
	switch {
	case errors.Is(err, bounds.ErrNoMemory):
		return nil, err
	case len(plain) > MaxManifestSize:
		return nil, r.fail(op, ErrInvalid, "longer than %d bytes", MaxManifestSize)
	case err != nil:
		return nil, r.fail(op, errNoGzip, "")
	}
	return plain, nil
}

// unpacked returns content without the gzip around it. Its length is not known. If the
// content is not gzip, wrong is called.
func (r *Registry) unpacked(op string, c *Content, wrong func()) (*Content, error) {
	decoder, err := gzip.NewReader(c.Body)
	if err != nil {
		_ = c.Body.Close() // given up
		return nil, r.noGzip(op, err, wrong)
	}
	return &Content{Body: &unpacking{decoder, c.Body, r, op, wrong}, Size: -1, MediaType: c.MediaType}, nil
}

type unpacking struct {
	decoder *gzip.Reader
	io.Closer
	registry *Registry
	op       string
	wrong    func()
}

func (u *unpacking) Read(p []byte) (int, error) {
	n, err := u.decoder.Read(p)
	if err != nil && err != io.EOF { //nolint:errorlint // a wrapped one is a broken connection
		err = u.registry.noGzip(u.op, err, u.wrong)
	}
	return n, err
}

// noGzip returns the error for a body that cannot be decompressed, and calls wrong. If the
// body broke, it returns that error, and does not call wrong.
func (r *Registry) noGzip(op string, err error, wrong func()) error {
	if _, ok := errors.AsType[*Error](err); ok { // the body broke
		return err
	}
	wrong()
	return r.fail(op, errNoGzip, "")
}

// readOdd reads a manifest whose response has unusual headers: no media type of a manifest,
// or gzip. It finds out the media type; whether to decompress, the digest decides. For a
// signed manifest of schema 1 it fails with ErrSigned.
func (r *Registry) readOdd(ctx context.Context, op string, c *Content, d digest.Digest, gzipped bool) (*Content, error) {
	b, err := bounds.ReadAll(ctx, c.Body, c.Size)
	_ = c.Body.Close() // read to its end
	if err != nil {
		return nil, err
	}
	if isSigned(b, d) {
		return nil, r.fail(op, ErrSigned, "asked by digest")
	}
	if gzipped && d.Algorithm().Available() && d.Algorithm().FromBytes(b) != d {
		if b, err = r.unzip(ctx, op, b); err != nil {
			return nil, err
		}
	}
	size := int64(len(b))
	return &Content{Body: io.NopCloser(bytes.NewReader(b)), End: size, Size: size, MediaType: parseManifest(b).mediaType(c.MediaType)}, nil
}

// settle finds out which is wrong, the named digest or the bytes. If the registry has a
// manifest with the named digest, the result is that. If not, and it has the bytes by
// their own digest, the result is those.
func (r *Registry) settle(ctx context.Context, repo string, named digest.Digest, m Resolved) (Resolved, error) {
	got, err := r.byDigest(ctx, repo, named)
	if err == nil || !errors.Is(err, ErrNotFound) {
		return got, err
	}
	return r.byDigest(ctx, repo, m.Digest)
}

// byDigest reads a manifest and verifies it.
func (r *Registry) byDigest(ctx context.Context, repo string, d digest.Digest) (Resolved, error) {
	c, err := r.Open(ctx, KindManifest, repo, d, Span{})
	if err != nil {
		return Resolved{}, err
	}
	defer c.Body.Close()
	b, err := bounds.ReadAll(ctx, c.Body, c.Size)
	if err == nil && d.Algorithm().FromBytes(b) != d {
		err = errNamed
	}
	return Resolved{Descriptor: ocispec.Descriptor{MediaType: c.MediaType, Digest: d, Size: int64(len(b))}, Content: b}, err
}
