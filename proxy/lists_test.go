package proxy

import (
	"fmt"
	"strings"
	"testing"

	ut "github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// TestListsAreKept: cold, warm and with the upstream gone.
func TestListsAreKept(t *testing.T) {
	t.Parallel()
	for _, noAPI := range []bool{false, true} {
		t.Run(fmt.Sprint("fallback ", noAPI), func(t *testing.T) {
			t.Parallel()
			up := ut.New(t, ut.Options{NoReferrers: noAPI, PageSize: 2})
			img := up.AddImage("library/app", "a", ut.NewImage(1, 10))
			for _, tag := range []string{"b", "c", "d", "e"} {
				up.Tag("library/app", tag, img.Index.Digest)
			}
			sbom, sig := ut.Subject(img.Index.Descriptor, "application/sbom"), ut.Subject(img.Index.Descriptor, "application/sig")
			if noAPI {
				index := fmt.Sprintf(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{"mediaType":%q,"digest":%q,"size":%d,"artifactType":"application/sbom"},{"mediaType":%q,"digest":%q,"size":%d,"artifactType":"application/sig"}]}`,
					sbom.MediaType, sbom.Digest, sbom.Size, sig.MediaType, sig.Digest, sig.Size)
				up.AddManifest("library/app", ut.NewContent("application/vnd.oci.image.index.v1+json", []byte(index)), strings.Replace(img.Index.Digest.String(), ":", "-", 1))
			} else {
				up.AddManifest("library/app", sbom)
				up.AddManifest("library/app", sig)
			}
			m := newMirror(t, nil, registry(t, "docker.io", up.URL))
			check := func(when string) {
				t.Helper()
				extra := ""
				if noAPI {
					extra = `"` + strings.Replace(img.Index.Digest.String(), ":", "-", 1) + `"`
				}
				all := `["a","b","c","d","e"]`
				if extra != "" {
					all = `["a","b","c","d","e",` + extra + `]`
				}
				for query, want := range map[string]string{
					"": all, "?n=0": `[]`, "?n=2": `["a","b"]`, "?n=2&last=b": `["c","d"]`, "?n=1&last=bb": `["c"]`, "?last=zz": `[]`, "?n=1000": all,
				} {
					a := m.get("/v2/library/app/tags/list" + query)
					if got := strings.TrimSpace(string(a.body)); a.status != 200 || got != `{"name":"library/app","tags":`+want+`}` {
						t.Errorf("%s, tags%s: %d %s", when, query, a.status, got)
					}
					link := a.header.Get("Link")
					if wantLink := map[string]string{"?n=2": `</v2/library/app/tags/list?last=b&n=2>; rel="next"`, "?n=2&last=b": `</v2/library/app/tags/list?last=d&n=2>; rel="next"`, "?n=1&last=bb": `</v2/library/app/tags/list?last=c&n=1>; rel="next"`}[query]; link != wantLink {
						t.Errorf("%s, tags%s: Link %q", when, query, link)
					}
				}
				path := "/v2/library/app/referrers/" + img.Index.Digest.String()
				a := m.get(path)
				if a.status != 200 || a.header.Get("Content-Type") != "application/vnd.oci.image.index.v1+json" ||
					!strings.Contains(string(a.body), sbom.Digest.String()) || !strings.Contains(string(a.body), sig.Digest.String()) {
					t.Errorf("%s, referrers: %d %s", when, a.status, a.body)
				}
				a = m.get(path + "?artifactType=application/sig")
				if a.header.Get("OCI-Filters-Applied") != "artifactType" || strings.Contains(string(a.body), sbom.Digest.String()) || !strings.Contains(string(a.body), sig.Digest.String()) {
					t.Errorf("%s, filtered: %v %s", when, a.header, a.body)
				}
				a = m.get(path + "?artifactType=none")
				if a.status != 200 || !strings.Contains(string(a.body), `"manifests":[]`) {
					t.Errorf("%s, none: %d %s", when, a.status, a.body)
				}
			}
			check("cold")
			up.Forget()
			check("warm")
			counts(t, up, nil)
			up.Down()
			m.restart(due, registry(t, "docker.io", up.URL))
			check("upstream gone")
		})
	}
}

// TestListEvicted: a list whose content is gone is fetched again.
func TestListEvicted(t *testing.T) {
	t.Parallel()
	up := ut.New(t, ut.Options{})
	up.AddImage("library/app", "a", ut.NewImage(1, 10))
	m := newMirror(t, nil, registry(t, "docker.io", up.URL))
	m.get("/v2/library/app/tags/list")
	up.Tag("library/app", "b", ut.NewImage(1, 10).Index.Digest)
	m.stop()
	removeBlobs(t, m)
	m.start(nil, registry(t, "docker.io", up.URL))
	if a := m.get("/v2/library/app/tags/list"); !strings.Contains(string(a.body), `["a","b"]`) {
		t.Errorf("%d %s", a.status, a.body)
	}
}
