package upstream

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// fixedAnswer is a transport with one response for all requests.
type fixedAnswer struct {
	status int
	header http.Header
	body   []byte
}

func (a fixedAnswer) RoundTrip(req *http.Request) (*http.Response, error) {
	return &http.Response{
		StatusCode: a.status, Header: a.header, Body: io.NopCloser(bytes.NewReader(a.body)), ContentLength: int64(len(a.body)), Request: req,
	}, nil
}

// FuzzIndex: the merged index has the descriptors of all pages, unchanged.
func FuzzIndex(f *testing.F) {
	list := `{"schemaVersion":2,"mediaType":"` + ocispec.MediaTypeImageIndex + `","manifests":[{"digest":"sha256:a","x":1e999}],"annotations":{"a":"b"}}`
	f.Add([]byte(list), []byte(list), "")
	f.Add([]byte(`{"manifests":[]}`), []byte(`{"manifests":null}`), ocispec.MediaTypeImageIndex)
	f.Add([]byte(`{"manifests":[null,1,"<"]}`), []byte(`null`), ocispec.MediaTypeImageIndex)
	f.Add([]byte(`null`), []byte(`{"manifests":[1]}`), ocispec.MediaTypeImageIndex)
	f.Fuzz(func(t *testing.T, one, two []byte, contentType string) {
		var pages []index
		var all []string
		for _, b := range [][]byte{one, two} {
			i, err := parseIndex(t.Context(), b, contentType)
			if err != nil {
				continue
			}
			if i.isEmpty() && len(i.manifests) > 0 {
				t.Errorf("%q is empty", b)
			}
			pages = append(pages, i)
			for _, m := range i.manifests {
				all = append(all, compact(t, m))
			}
		}
		if len(pages) == 0 {
			return
		}
		merged, err := mergeIndexes(pages)
		if err != nil {
			t.Fatal(err)
		}
		i, err := parseIndex(t.Context(), merged, ocispec.MediaTypeImageIndex)
		if err != nil || len(i.manifests) != len(all) {
			t.Fatalf("%q of %d descriptors has %d, %v", merged, len(all), len(i.manifests), err)
		}
		for n, m := range i.manifests {
			if compact(t, m) != all[n] {
				t.Errorf("%q became %q", all[n], m)
			}
		}
	})
}

// compact returns JSON without spaces, with the escapes of encoding/json.
func compact(t *testing.T, raw json.RawMessage) string {
	t.Helper()
	b, err := json.Marshal(raw)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// FuzzTagAnswer: a manifest that is accepted for a tag has the digest that it is known by, or
// is signed.
func FuzzTagAnswer(f *testing.F) {
	manifest := []byte(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"digest":"sha256:x"},"layers":[]}`)
	f.Add(manifest, digest.FromBytes(manifest).String(), "application/vnd.oci.image.manifest.v1+json")
	f.Add(manifest, digest.SHA512.FromBytes(manifest).String(), "text/html")
	f.Add([]byte(`{"schemaVersion":1,"signatures":[{"protected":"eyJmb3JtYXRMZW5ndGgiOjUsImZvcm1hdFRhaWwiOiJDbjAifQ"}]}`), "sha256:00", "")
	f.Add([]byte(`{"errors":[]}`), "", "application/json; a")
	f.Fuzz(func(t *testing.T, b []byte, named, contentType string) {
		resp := &http.Response{Header: http.Header{"Docker-Content-Digest": {named}, "Content-Type": {contentType}}}
		m, err := readManifest(resp, b)
		switch {
		case err != nil:
		case m.Digest.Algorithm().FromBytes(b) == m.Digest:
			if json.Unmarshal(b, &struct{}{}) != nil || !bytes.Equal(m.Content, b) || m.Size != int64(len(b)) {
				t.Errorf("%q is taken for %+v", b, m)
			}
		case !isSigned(b, namedDigest(resp)):
			t.Errorf("%q has not the digest %s", b, m.Digest)
		}
		if m.MediaType != "" && !isManifestType(m.MediaType) {
			t.Errorf("%q is a manifest's media type", m.MediaType)
		}
		if parseManifest(b).isSound() && !json.Valid(b) {
			t.Errorf("%q is sound", b)
		}
	})
}

// FuzzTokenAnswer: a token is a valid header value and lives no longer than maxTokenLife. No
// error quotes one.
func FuzzTokenAnswer(f *testing.F) {
	for _, s := range []string{`{"token":"canary","expires_in":300}`, `{"access_token":"a","expires_in":"60","issued_at":"2000-01-01T00:00:00Z"}`, `{"token":"a b"}`, `{"token":"canary"`, `{"token":"a","expires_in":1e308}`, `{"token":"a","expires_in":-5}`, `null`} {
		f.Add([]byte(s), "Sat, 01 Jan 2000 00:00:30 GMT")
	}
	f.Fuzz(func(t *testing.T, b []byte, date string) {
		before := time.Now()
		got, err := parseToken(b, serverTime(http.Header{"Date": {date}}))
		if err != nil {
			if len(err.Error()) > 100 || strings.Contains(err.Error(), "canary") {
				t.Errorf("%q: %v", b, err)
			}
			return
		}
		if life := got.expires.Sub(before); life < 0 || life > maxTokenLife+time.Minute {
			t.Errorf("%q lives for %s", b, life)
		}
		req := &http.Request{Method: http.MethodGet, URL: &url.URL{Scheme: "http", Host: "r.test"}, Header: http.Header{"Authorization": {"Bearer " + got.value}}}
		if err := req.Write(io.Discard); err != nil || got.value == "" || len(got.value) > maxToken || strings.ContainsAny(got.value, "\r\n") {
			t.Errorf("%q is a token: %v", got.value, err)
		}
	})
}

// FuzzErrorAnswer: the text of an error response is short and printable, and does not have the
// account's secret.
func FuzzErrorAnswer(f *testing.F) {
	for _, s := range []string{`{"errors":[{"code":"DENIED","message":"no, canary-1234"}]}`, `{"errors":[]}`, `{"errors":[null]}`, `{"details":"x"}`, `{"message":"\u001b[31m"}`, `{"error":"invalid_grant","error_description":"AADSTS50001: canary-1234"}`, `<html>`, `null`} {
		f.Add([]byte(s), 401, "1")
	}
	f.Fuzz(func(t *testing.T, b []byte, status int, after string) {
		resp, err := fixedAnswer{status, http.Header{"Retry-After": {after}}, b}.RoundTrip(&http.Request{Method: http.MethodGet, URL: &url.URL{Scheme: "https", Host: "r.test"}})
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		r := Registry{cfg: Config{Name: "r.test"}}
		failed := r.statusError("manifest", resp, "canary-1234")
		for _, text := range []string{failed.Error(), failed.Public(), refused("r.test", status, b).Error()} {
			if len(text) > 1024 || strings.ContainsFunc(text, unicode.IsControl) || strings.Contains(text, "canary-1234") {
				t.Errorf("%q: %q", b, text)
			}
		}
		if failed.RetryAfter < 0 || failed.RetryAfter > maxRetryAfter {
			t.Errorf("Retry-After %q: %s", after, failed.RetryAfter)
		}
	})
}

// FuzzUnzip: packed content is unpacked unchanged, up to MaxManifestSize.
func FuzzUnzip(f *testing.F) {
	f.Add([]byte("{}"), false)
	f.Add([]byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0}, true)
	r := &Registry{}
	f.Fuzz(func(t *testing.T, b []byte, asItIs bool) {
		packed := b
		if !asItIs {
			var buffer bytes.Buffer
			w := gzip.NewWriter(&buffer)
			_, _ = w.Write(b) // into memory
			_ = w.Close()
			packed = buffer.Bytes()
		}
		plain, err := r.unzip(t.Context(), "manifest", packed)
		if len(plain) > MaxManifestSize || !asItIs && (err != nil || !bytes.Equal(plain, b)) {
			t.Errorf("%q became %q, %v", packed, plain, err)
		}
	})
}

// FuzzNextPage: the next page of a list is of the same list, at the registry's own host.
func FuzzNextPage(f *testing.F) {
	for _, s := range []string{`</v2/a/tags/list?last=b>; rel="next"`, `<?n=1>; rel=next`, `<http://169.254.169.254/v2/a/tags/list>; rel="next"`, `<//x/v2/a/tags/list?a>; rel="next"`, `<http://a:b@r.test/v2/a/tags/list>; rel="next"`} {
		f.Add(s)
	}
	page, err := url.Parse("https://r.test/v2/a/tags/list?n=1")
	if err != nil {
		f.Fatal(err)
	}
	r := &Registry{cfg: Config{Name: "r.test"}, endpoints: []*endpoint{{base: page}}}
	f.Fuzz(func(t *testing.T, header string) {
		link := parseNextLink([]string{header})
		if link == "" {
			return
		}
		q, err := r.nextPage(tagsQuery("a", ""), page, link)
		if err != nil {
			return
		}
		to, err := page.Parse(link)
		if err != nil || to.Host != "r.test" || to.User != nil || q.path != "a/tags/list" || q.rawQuery != to.RawQuery {
			t.Errorf("%q leads to %s, %+v", header, to, q)
		}
	})
}

// FuzzCloudAnswer: a response of a cloud's token server is a token or an error. No error quotes
// a secret, and no token lives longer than maxTokenLife.
func FuzzCloudAnswer(f *testing.F) {
	for _, s := range []string{
		`{"refresh_token":"a.b.c"}`, `{"access_token":"a","expires_in":3600}`, `{"access_token":"a","expires_in":9223372036854775807}`, `{"access_token":"a","expires_in":-1}`,
		`{"errors":[{"code":"UNAUTHORIZED","message":"canary-1234"}]}`, `null`, "eyJhbGciOiJub25lIn0.eyJleHAiOjk5OTk5OTk5OTk5fQ.", "eyJhbGciOiJub25lIn0.eyJleHAiOjFlMzA4fQ.",
	} {
		f.Add([]byte(s), 200)
		f.Add([]byte(s), 401)
	}
	base := &url.URL{Scheme: "https", Host: "r.test"}
	f.Fuzz(func(t *testing.T, b []byte, status int) {
		got, err := exchange(t.Context(), base, fixedAnswer{status, http.Header{}, b}, "r.test", "canary-1234")
		switch {
		case err == nil && (got == "" || len(got) > maxToken || status != http.StatusOK):
			t.Errorf("%d %q: a token of %d bytes", status, b, len(got))
		case err != nil && (strings.Contains(err.Error(), "canary-1234") || strings.ContainsFunc(err.Error(), unicode.IsControl)):
			t.Errorf("%q: %q", b, err)
		}
		most := time.Now().Add(maxTokenLife + time.Minute)
		if expires := jwtExpiry(string(b)); expires.After(most) {
			t.Errorf("%q: it expires at %s", b, expires)
		}
		if google, err := googleToken(b); err == nil && (google.AccessToken == "" || google.Expiry.After(most)) {
			t.Errorf("%q: %+v", b, google)
		}
	})
}

// FuzzHelperAnswer: the error of a credential helper is one short line.
func FuzzHelperAnswer(f *testing.F) {
	f.Add([]byte(`{"Secret":"canary"}`), []byte("line\nset -x canary"))
	f.Add([]byte(`null`), []byte("\x1b[31m"))
	f.Fuzz(func(t *testing.T, stdout, stderr []byte) {
		p := &program{}
		_, _ = p.stdout.Write(stdout) // more than fits is refused
		_, _ = p.stderr.Write(stderr) // the end is kept
		text := p.complaint()
		if len(text) > 300 || strings.ContainsFunc(text, unicode.IsControl) {
			t.Errorf("%q", text)
		}
	})
}
