package upstream

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// signed makes a manifest of Docker's schema 1, and its digest.
func signed() (content []byte, d digest.Digest) {
	const payload = "{\n   \"schemaVersion\": 1,\n   \"name\": \"library/app\",\n   \"tag\": \"old\",\n   \"fsLayers\": []\n}"
	length := len(payload) - len("\n}")
	encode := base64.RawURLEncoding.EncodeToString
	protected := encode(fmt.Appendf(nil, `{"formatLength":%d,"formatTail":%q,"time":"2015-04-20T18:30:00Z"}`, length, encode([]byte(payload[length:]))))
	content = fmt.Appendf(nil, "%s,\n   \"signatures\": [{\"header\":{\"alg\":\"ES256\"},\"signature\":\"eA\",\"protected\":%q}]\n}", payload[:length], protected)
	return content, digest.FromString(payload)
}

// TestSigned: the digest of a signed manifest is that of its payload.
func TestSigned(t *testing.T) {
	t.Parallel()
	up, _ := image(t, upstreamtest.Options{})
	content, d := signed()
	answer := []upstreamtest.Fault{upstreamtest.Body(mediaTypeSigned, content), upstreamtest.Header("Docker-Content-Digest", d.String())}
	up.Fault(upstreamtest.Match{Op: upstreamtest.GetManifest}, answer...)
	up.Fault(upstreamtest.Match{Op: upstreamtest.HeadManifest}, answer...)
	r := asking(t, up)
	if res, err := r.Resolve(t.Context(), repo, "old"); err != nil || res.Digest != d {
		t.Errorf("%+v, %v", res, err)
	}
	if _, err := r.Open(t.Context(), KindManifest, repo, d, Span{}); !errors.Is(err, ErrSigned) {
		t.Errorf("by digest: %v", err)
	}
	for _, reference := range []string{"old", d.String()} {
		m, err := r.Manifest(t.Context(), repo, reference)
		if err != nil || !bytes.Equal(m.Content, content) || m.Digest != digest.FromBytes(content) {
			t.Errorf("%s: %+v, %v", reference, m.Descriptor, err)
		}
	}
	up.Fault(upstreamtest.Match{Op: upstreamtest.GetManifest}, upstreamtest.Body(mediaTypeSigned, bytes.Replace(content, []byte("app"), []byte("bad"), 1)))
	if _, err := r.Manifest(t.Context(), repo, "old"); !errors.Is(err, ErrInvalid) {
		t.Errorf("another payload: %v", err)
	}
}

// TestSigned_OnlyByMediaType: a manifest with only the media type of a signed one is verified as usual.
func TestSigned_OnlyByMediaType(t *testing.T) {
	t.Parallel()
	up, img := image(t, upstreamtest.Options{})
	up.Fault(upstreamtest.Match{Op: upstreamtest.GetManifest}, upstreamtest.Header("Content-Type", mediaTypeSigned))
	if got := read(t, asking(t, up), KindManifest, img.Manifest.Digest, 0); !bytes.Equal(got, img.Manifest.Bytes) {
		t.Errorf("%d other bytes", len(got))
	}
}
