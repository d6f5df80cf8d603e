package proxy

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	ut "github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// TestOlderClients: a client that accepts no index gets, by tag, the linux/amd64 manifest.
func TestOlderClients(t *testing.T) {
	t.Parallel()
	up := ut.New(t, ut.Options{})
	img := up.AddImage("library/app", "latest", ut.NewImage(1, 10))
	up.AddManifest("library/app", ut.NewContent("application/vnd.oci.image.index.v1+json",
		[]byte(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}`)), "none")
	m := newMirror(t, nil, registry(t, "docker.io", up.URL))
	const manifest = "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json;q=0.9"
	for _, tt := range []struct {
		reference, accept string
		want              ut.Content
	}{
		{"latest", manifest, img.Manifest},
		{"latest", "", img.Index},
		{"latest", "*/*", img.Index},
		{"latest", manifest + ", application/vnd.oci.image.index.v1+json;q=0.5", img.Index},
		{img.Index.Digest.String(), manifest, img.Index},
		{img.Manifest.Digest.String(), manifest, img.Manifest},
	} {
		for _, method := range []string{http.MethodGet, http.MethodHead} {
			var header []string
			if tt.accept != "" {
				header = []string{"Accept", tt.accept}
			}
			a := m.do(method, "/v2/library/app/manifests/"+tt.reference, header...)
			if a.status != http.StatusOK || a.header.Get("Docker-Content-Digest") != tt.want.Digest.String() || a.header.Get("Content-Type") != tt.want.MediaType {
				t.Errorf("%s %s, Accept %q: %d %v", method, tt.reference, tt.accept, a.status, a.header)
			}
		}
	}
	if a := m.do(http.MethodGet, "/v2/library/app/manifests/none", "Accept", manifest); a.status != http.StatusNotFound {
		t.Errorf("an index without linux/amd64: %d %s", a.status, a.body)
	}
}

// TestHead_OnlyWhatGetServes: HEAD does not store a tag's content. With the upstream down,
// HEAD fails as GET does.
func TestHead_OnlyWhatGetServes(t *testing.T) {
	t.Parallel()
	up := ut.New(t, ut.Options{})
	up.AddImage("library/app", "latest", ut.NewImage(1, 10))
	m := newMirror(t, nil, registry(t, "docker.io", up.URL))
	for range 2 {
		if a := m.do(http.MethodHead, "/v2/library/app/manifests/latest"); a.status != http.StatusOK {
			t.Fatalf("%d %v", a.status, a.header)
		}
	}
	up.WantCounts(t, map[ut.Op]int{ut.HeadManifest: 2})
	up.Down()
	head, get := m.do(http.MethodHead, "/v2/library/app/manifests/latest"), m.get("/v2/library/app/manifests/latest")
	if head.status < 500 || get.status < 500 {
		t.Errorf("HEAD %d, GET %d", head.status, get.status)
	}
}

// TestSigned: a manifest of Docker's schema 1 is valid content. By tag it is stored, by
// digest passed through.
func TestSigned(t *testing.T) {
	t.Parallel()
	const payload = "{\n   \"schemaVersion\": 1,\n   \"name\": \"library/app\",\n   \"tag\": \"old\",\n   \"fsLayers\": []\n}"
	const mediaType = "application/vnd.docker.distribution.manifest.v1+prettyjws"
	length := len(payload) - len("\n}")
	encode := base64.RawURLEncoding.EncodeToString
	protected := encode(fmt.Appendf(nil, `{"formatLength":%d,"formatTail":%q}`, length, encode([]byte(payload[length:]))))
	content := fmt.Appendf(nil, "%s,\n   \"signatures\": [{\"signature\":\"eA\",\"protected\":%q}]\n}", payload[:length], protected)
	d := digest.FromString(payload)

	up := ut.New(t, ut.Options{})
	up.AddImage("library/app", "latest", ut.NewImage(1, 10))
	for _, op := range []ut.Op{ut.HeadManifest, ut.GetManifest} {
		up.Fault(ut.Match{Op: op}, ut.Body(mediaType, content), ut.Header("Docker-Content-Digest", d.String()))
	}
	m := newMirror(t, nil, registry(t, "docker.io", up.URL))
	check := func(when, reference string) {
		t.Helper()
		a := m.get("/v2/library/app/manifests/" + reference)
		if a.status != http.StatusOK || !bytes.Equal(a.body, content) || a.header.Get("Content-Type") != mediaType {
			t.Errorf("%s, %s: %d %s", when, reference, a.status, a.body)
		}
		if got := a.header.Get("Docker-Content-Digest"); reference != "old" && got != reference {
			t.Errorf("%s: it is %s", reference, got)
		}
	}
	check("cold", "old")
	check("cold", d.String())
	check("again", "old")
	check("again", d.String())
	m.restart(due, registry(t, "docker.io", up.URL))
	check("checked", "old")
	up.Down()
	check("upstream gone", "old")
}

// TestContentHeaders: a browser does not show content as a page, whatever its media type.
func TestContentHeaders(t *testing.T) {
	t.Parallel()
	up := ut.New(t, ut.Options{})
	m := newMirror(t, nil, registry(t, "docker.io", up.URL))
	for n, mediaType := range []string{
		"text/html", "text/html; charset=utf-8", "application/xhtml+xml", "image/svg+xml", "application/xml", "text/xml", "text/javascript", "application/pdf",
		"application/vnd.evil+xml", "application/vnd.oci.image.manifest.v1+xml", "application/vnd.oci.image.manifest.v1+json, text/html",
	} {
		c := ut.NewContent(mediaType, fmt.Appendf(nil, `{"schemaVersion":2,"annotations":{"n":"<script>alert(%d)</script>"}}`, n))
		up.AddManifest("library/app", c, fmt.Sprint("tag", n))
		for _, a := range []reply{m.get(fmt.Sprint("/v2/library/app/manifests/tag", n)), m.head("/v2/library/app/manifests/" + string(c.Digest))} {
			is := a.header.Get("Content-Type")
			alone := a.header.Get("Content-Security-Policy") == "sandbox; default-src 'none'" && a.header.Get("X-Content-Type-Options") == "nosniff"
			if a.status != http.StatusOK || is != "application/octet-stream" && !alone || strings.HasSuffix(mediaType, "1+xml") && is != mediaType {
				t.Errorf("%s: %d %v", mediaType, a.status, a.header)
			}
		}
		up.AddBlob("library/app", c)
		if a := m.get("/v2/library/app/blobs/" + string(c.Digest)); a.header.Get("Content-Type") != "application/octet-stream" {
			t.Errorf("a blob is %s", a.header.Get("Content-Type"))
		}
	}
}
