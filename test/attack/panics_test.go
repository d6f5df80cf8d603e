package attack

import (
	"fmt"
	"io"
	"net/http"
	"testing"

	ut "github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// TestPanics: a response that is not a list or manifest, or has null in it, fails only its
// own request and causes no panic.
func TestPanics(t *testing.T) {
	s := lay(t, "tags: {fresh_for: 0s, negative_for: 0s}")
	bodies := []string{
		"null", "[]", "{}", "0", `""`, "true", "", "{", `{"manifests":null}`, `{"manifests":[null]}`, `{"manifests":{}}`, `{"manifests":[{"digest":null}]}`,
		`{"tags":null}`, `{"tags":[null]}`, `{"tags":{}}`, `{"errors":null}`, `{"schemaVersion":null}`, `{"layers":[null],"config":null}`,
		`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{"digest":"sha256:x","platform":null}]}`, "\x00", "\xff\xfe",
	}
	kinds := []string{"application/vnd.oci.image.index.v1+json", "application/json", "text/html", ""}
	target := s.image.Index.Digest.String()
	paths := []string{"referrers/" + target, "referrers/" + target + "?artifactType=x", "tags/list", "tags/list?n=1", "manifests/t", "manifests/" + target, "blobs/" + target}
	tried := 0
	s.during(func() {
		for _, body := range bodies {
			for _, kind := range kinds {
				for _, header := range []ut.Fault{ut.Header("X-None", "1"), ut.Header("Link", `</v2/a/b/referrers/`+target+`?x=1>; rel="next"`), ut.Header("Docker-Content-Digest", "sha256:"), ut.Header("Content-Encoding", "gzip")} {
					lie := s.evil.Fault(ut.Match{}, ut.Body(kind, []byte(body)), header)
					for _, path := range paths {
						resp, err := http.Get(fmt.Sprintf("%s/v2/evil.test/a/b%d/%s", s.URL, tried, path)) //nolint:noctx // loopback
						tried++
						if err != nil {
							continue // the body may break off
						}
						_, _ = io.Copy(io.Discard, resp.Body)
						_ = resp.Body.Close()
					}
					lie.Remove()
				}
			}
		}
	})
	if n := s.Metrics(t)["cachalot_panics_total"]; n != 0 {
		t.Errorf("%v panics: %s", n, s.Log)
	}
	t.Logf("%d answers", tried)
}
