package upstream

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// TestOpen_WrongHeaders: right content with a wrong header is accepted. Requests ask for no other encoding
// of it.
func TestOpen_WrongHeaders(t *testing.T) {
	t.Parallel()
	for _, faults := range []upstreamtest.Fault{
		upstreamtest.Header("Content-Encoding", "aws-chunked"),
		upstreamtest.Header("Content-Encoding", "gzip"),
		upstreamtest.Header("Content-Encoding", "none"),
		upstreamtest.Header("Content-Encoding", "UTF-8"),
		upstreamtest.Header("Content-Type", "text/plain"),
		upstreamtest.Header("Content-Type", ""),
		upstreamtest.StatusOf(http.StatusNonAuthoritativeInfo),
		upstreamtest.Header("Content-Range", "bytes 5-6/7"),
	} {
		up, img := image(t, upstreamtest.Options{})
		for _, op := range []upstreamtest.Op{upstreamtest.HeadManifest, upstreamtest.GetManifest, upstreamtest.GetBlob} {
			up.Fault(upstreamtest.Match{Op: op}, faults)
		}
		r := asking(t, up)
		c, err := r.Open(t.Context(), KindBlob, repo, img.Layers[0].Digest, Span{})
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(c.Body); err != nil || !bytes.Equal(got, img.Layers[0].Bytes) {
			t.Errorf("%d other bytes, %v", len(got), err)
		}
		_ = c.Body.Close() // read to its end
		if m, err := r.Manifest(t.Context(), repo, "latest"); err != nil || !bytes.Equal(m.Content, img.Index.Bytes) {
			t.Errorf("%+v, %v", m.Descriptor, err)
		}
		for _, q := range up.Requests() {
			if got := q.Header.Get("Accept-Encoding"); q.Op != upstreamtest.Ping && got != "identity" {
				t.Errorf("%s with Accept-Encoding %q", q.Op, got)
			}
		}
	}
}

// TestOtherAlgorithm: a registry may name content by the digest of another algorithm
// (distribution-spec, Pulling manifests).
func TestOtherAlgorithm(t *testing.T) {
	t.Parallel()
	up := upstreamtest.New(t, upstreamtest.Options{})
	img := upstreamtest.NewImageBy(digest.SHA512, 1, 1000)
	up.AddImage(repo, "latest", img)
	for _, op := range []upstreamtest.Op{upstreamtest.HeadManifest, upstreamtest.GetManifest} {
		up.Fault(upstreamtest.Match{Op: op}, upstreamtest.LyingDigest(digest.FromBytes(img.Index.Bytes)))
	}
	r := asking(t, up)
	if desc, err := r.Has(t.Context(), KindManifest, repo, img.Index.Digest); err != nil || desc.Digest != img.Index.Digest {
		t.Errorf("%+v, %v", desc, err)
	}
	if got := read(t, r, KindManifest, img.Index.Digest, 0); !bytes.Equal(got, img.Index.Bytes) {
		t.Errorf("%d other bytes", len(got))
	}
}

// TestHTTPRedirects: a redirect from https to http is followed only if it is allowed, and only
// for content by digest. No credential is sent there.
func TestHTTPRedirects(t *testing.T) {
	t.Parallel()
	store, img := image(t, upstreamtest.Options{})
	up := upstreamtest.New(t, upstreamtest.Options{TLS: true, Auth: upstreamtest.Basic, Username: "me", Password: "canary"})
	up.AddImage(repo, "latest", img)
	up.Fault(upstreamtest.Match{Op: upstreamtest.GetBlob}, upstreamtest.Redirect(store.URL+"/v2/"+repo+"/blobs/"+img.Layers[0].Digest.String()))
	up.Fault(upstreamtest.Match{Op: upstreamtest.GetManifest}, upstreamtest.Redirect(store.URL+"/v2/"+repo+"/manifests/latest"))
	for _, allowed := range []bool{false, true} {
		r := dialing(t, Config{
			URLs: []string{up.URL}, CAFile: up.CAFile, Accounts: []Account{{Username: "me", Password: "canary"}}, AllowHTTPRedirects: allowed,
		})
		c, err := r.Open(t.Context(), KindBlob, repo, img.Layers[0].Digest, Span{})
		if (err == nil) != allowed || !allowed && !strings.Contains(fmt.Sprint(err), "allow_http_redirects") {
			t.Errorf("allowed %t: %v", allowed, err)
		}
		if err == nil {
			if b, err := io.ReadAll(c.Body); err != nil || !bytes.Equal(b, img.Layers[0].Bytes) {
				t.Errorf("%d bytes, %v", len(b), err)
			}
			c.Body.Close()
		}
		if m, err := r.Manifest(t.Context(), repo, "latest"); err == nil {
			t.Errorf("a tag in the clear: %+v", m.Descriptor)
		}
	}
	for _, q := range store.Requests() {
		if q.Header.Get("Authorization") != "" {
			t.Error("the account went along")
		}
	}
}

// TestFirstByteTooLate: if an upstream is slower than the configured timeout, the error names
// the key.
func TestFirstByteTooLate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := served(t, func(_ http.ResponseWriter, req *http.Request) { <-req.Context().Done() })
		r.transport.ResponseHeaderTimeout = 10 * time.Second
		r.cfg.Timeouts.ResponseHeader = 10 * time.Second
		_, err := r.Open(t.Context(), KindBlob, repo, digest.FromString("x"), Span{})
		if err == nil || !strings.Contains(err.Error(), "timeouts.response_header") {
			t.Error(err)
		}
	})
}

// TestTokensOfManyRepositories: the tokens of maxTokens repositories are stored, within
// maxTokenBytes.
func TestTokensOfManyRepositories(t *testing.T) {
	t.Parallel()
	kept, err := newTokens()
	if err != nil {
		t.Fatal(err)
	}
	for i := range maxTokens {
		kept.add(tokenKey{"realm", "service", fmt.Sprint(i)}, token{value: "x", expires: time.Now().Add(time.Hour)})
	}
	for i := range maxTokens {
		if _, ok := kept.valid(tokenKey{"realm", "service", fmt.Sprint(i)}, ""); !ok {
			t.Fatalf("token %d of %d is gone", i, maxTokens)
		}
	}
	long := strings.Repeat("x", 1<<20)
	for i := range 100 {
		kept.add(tokenKey{"realm", "service", fmt.Sprint("long", i)}, token{value: long, expires: time.Now().Add(time.Hour)})
		if kept.bytes > maxTokenBytes {
			t.Fatalf("%d bytes", kept.bytes)
		}
	}
	kept.kept.Purge()
	if kept.bytes != 0 {
		t.Errorf("%d bytes of none", kept.bytes)
	}
}

// age makes an account's tokens older.
func age(a *account, by time.Duration) {
	for _, key := range a.tokens.kept.Keys() {
		t, _ := a.tokens.kept.Get(key)
		t.made = t.made.Add(-by)
		a.tokens.add(key, t)
	}
}

// TestToken_RefusedIsReplaced: a token that the registry no longer accepts, whatever its response, is
// replaced once.
func TestToken_RefusedIsReplaced(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]upstreamtest.Fault{
		"401 without a challenge": upstreamtest.Status(401),
		"403":                     upstreamtest.Status(403),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			up, img := image(t, upstreamtest.Options{Auth: upstreamtest.Bearer})
			r := asking(t, up)
			if _, err := r.Manifest(t.Context(), repo, "latest"); err != nil {
				t.Fatal(err)
			}
			age(r.endpoints[0].accounts[0], 2*youngToken)
			up.RevokeTokens()
			up.Fault(upstreamtest.Match{AnyAuth: true, Op: upstreamtest.GetManifest, Times: 1}, fault)
			up.Forget()
			if m, err := r.Manifest(t.Context(), repo, "latest"); err != nil || m.Digest != img.Index.Digest {
				t.Errorf("%+v, %v", m.Descriptor, err)
			}
			wantCounts(t, up, map[upstreamtest.Op]int{upstreamtest.GetManifest: 2, upstreamtest.Token: 1})
		})
	}
}

// TestManifestType: if a response has no media type of a manifest, the type is that in the
// content, or is detected.
func TestManifestType(t *testing.T) {
	t.Parallel()
	const index, image = "application/vnd.oci.image.index.v1+json", "application/vnd.oci.image.manifest.v1+json"
	for _, tt := range []struct{ said, content, want string }{
		{"text/plain", `{"schemaVersion":2,"mediaType":"` + index + `","manifests":[]}`, index},
		{"application/json; charset=utf-8", `{"schemaVersion":2,"layers":[]}`, image},
		{"", `{"schemaVersion":2,"manifests":[]}`, index},
		{"application/octet-stream", `{"schemaVersion":1,"fsLayers":[]}`, "application/vnd.docker.distribution.manifest.v1+json"},
		{"application/octet-stream", `{"schemaVersion":2,"mediaType":"text/html","layers":[]}`, image},
		{image, `{"schemaVersion":2,"mediaType":"` + index + `","manifests":[]}`, image}, // the header's type, as clients get it
	} {
		c := upstreamtest.NewContent(tt.said, []byte(tt.content))
		up := upstreamtest.New(t, upstreamtest.Options{})
		up.AddManifest(repo, c, "latest")
		up.Fault(upstreamtest.Match{}, upstreamtest.Header("Content-Type", tt.said))
		r := asking(t, up)
		if m, err := r.Manifest(t.Context(), repo, "latest"); err != nil || m.MediaType != tt.want {
			t.Errorf("%+v by tag: %q, %v", tt, m.MediaType, err)
		}
		got, err := r.Open(t.Context(), KindManifest, repo, c.Digest, Span{})
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(got.Body)
		if err != nil || string(b) != tt.content || got.MediaType != tt.want || got.Size != c.Size {
			t.Errorf("%+v by digest: %q, %d bytes of %d, %v", tt, got.MediaType, len(b), got.Size, err)
		}
		_ = got.Body.Close()
		if desc, err := r.Has(t.Context(), KindManifest, repo, c.Digest); err != nil || desc.MediaType != "" && desc.MediaType != tt.want {
			t.Errorf("%+v by HEAD: %q, %v", tt, desc.MediaType, err)
		}
	}
}

// TestGzip_UnpackedOnMismatch: if a proxy compresses content without a request to do so, and the bytes do not
// match the digest, they are unpacked.
func TestGzip_UnpackedOnMismatch(t *testing.T) {
	t.Parallel()
	up, img := image(t, upstreamtest.Options{})
	layer := img.Layers[0]
	up.Fault(upstreamtest.Match{}, upstreamtest.Gzip())
	r := asking(t, up)
	for _, c := range []upstreamtest.Content{img.Index, img.Manifest} {
		if got := read(t, r, KindManifest, c.Digest, 0); !bytes.Equal(got, c.Bytes) {
			t.Errorf("%s: %d other bytes", c.MediaType, len(got))
		}
	}
	if m, err := r.Manifest(t.Context(), repo, "latest"); err != nil || !bytes.Equal(m.Content, img.Index.Bytes) {
		t.Errorf("%+v, %v", m.Descriptor, err)
	}
	if desc, err := r.Has(t.Context(), KindBlob, repo, layer.Digest); err != nil || desc.Size != -1 {
		t.Errorf("the length of the packed blob is %d, %v", desc.Size, err)
	}
	var wrong func()
	get := func() []byte {
		t.Helper()
		c, err := r.Open(t.Context(), KindBlob, repo, layer.Digest, Span{})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Body.Close()
		if wrong = c.Wrong; c.Size != -1 {
			t.Errorf("a length of %d, of which it says that it is packed", c.Size)
		}
		b, err := io.ReadAll(c.Body)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	if bytes.Equal(get(), layer.Bytes) {
		t.Error("nothing is packed, so nothing is tested")
	}
	wrong()
	if !r.HasOther(layer.Digest) {
		t.Error("nothing is to be tried")
	}
	for range 2 { // the next time too
		if got := get(); !bytes.Equal(got, layer.Bytes) {
			t.Errorf("%d other bytes", len(got))
		}
	}
	wrong()
	if r.HasOther(layer.Digest) {
		t.Error("there is no third way")
	}
}

// TestManifest_DigestMismatch: if the digest header and the bytes for a tag do not match, the registry is
// asked which of the two digests it has.
func TestManifest_DigestMismatch(t *testing.T) {
	t.Parallel()
	const index = "application/vnd.oci.image.index.v1+json"
	other := upstreamtest.NewContent(index, []byte(`{"schemaVersion":2,"manifests":[]}`))
	byTag := upstreamtest.Match{Op: upstreamtest.GetManifest, Reference: "latest"}
	for _, name := range []string{"the name", "the bytes", "the bytes, and the right ones are gone", "all"} {
		up, img := image(t, upstreamtest.Options{})
		want := img.Index.Digest
		switch name {
		case "the name":
			up.Fault(byTag, upstreamtest.LyingDigest(digest.FromString("none")))
		case "the bytes":
			up.Fault(byTag, upstreamtest.Body(index, other.Bytes))
		case "the bytes, and the right ones are gone":
			up.Fault(byTag, upstreamtest.Body(index, other.Bytes), upstreamtest.LyingDigest(digest.FromString("none")))
			want = ""
		case "all": // a server with one response for all requests
			up.Fault(upstreamtest.Match{Op: upstreamtest.GetManifest}, upstreamtest.Body(index, other.Bytes), upstreamtest.LyingDigest(digest.FromString("none")))
			want = ""
		}
		m, err := asking(t, up).Manifest(t.Context(), repo, "latest")
		if m.Digest != want && want != "" || (err == nil) != (want != "") || want == "" && !errors.Is(err, ErrInvalid) {
			t.Errorf("wrong is %s: %s, %v", name, m.Digest, err)
		}
	}
}

// TestNotPacked: if a URL says that content is gzip, and it is neither that nor the requested
// content, the other URLs are asked first from then on.
func TestNotPacked(t *testing.T) {
	t.Parallel()
	for name, body := range map[string][]byte{"nothing": nil, "no gzip": []byte("no gzip at all"), "half of one": packed(t, []byte("other bytes"))[:20]} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			first, img := image(t, upstreamtest.Options{})
			second, _ := image(t, upstreamtest.Options{})
			layer := img.Layers[0]
			first.Fault(upstreamtest.Match{Op: upstreamtest.GetBlob}, upstreamtest.Body("", body), upstreamtest.Header("Content-Encoding", "gzip"))
			r := asking(t, first, second)
			for range 3 {
				c, err := r.Open(t.Context(), KindBlob, repo, layer.Digest, Span{})
				if err != nil {
					t.Fatal(err)
				}
				got, err := io.ReadAll(c.Body)
				c.Body.Close()
				if bytes.Equal(got, layer.Bytes) {
					return
				}
				if err == nil {
					c.Wrong()
				}
			}
			t.Error("the second URL was not asked")
		})
	}
}

func packed(t *testing.T, b []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}
