package proxy

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"

	ut "github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// walk requests a repository's tags page by page, as clients do. It returns the pages and
// their Link headers.
func (m *mirror) walk(path string) (pages []string, links []string) {
	m.t.Helper()
	for next := path; len(pages) < 20; {
		a := m.get(next)
		if a.status != http.StatusOK {
			m.t.Errorf("%s: %d %s", next, a.status, a.body)
			return pages, links
		}
		var list struct {
			Name string
			Tags []string
		}
		if err := json.Unmarshal(a.body, &list); err != nil || list.Name != "library/app" || list.Tags == nil {
			m.t.Errorf("%s: %s, %v", next, a.body, err)
		}
		pages = append(pages, strings.Join(list.Tags, " "))
		link := a.header.Get("Link")
		if link == "" {
			return pages, links
		}
		links = append(links, link)
		reference, _, _ := strings.Cut(strings.TrimPrefix(link, "<"), ">")
		to, err := url.Parse(reference)
		if err != nil {
			m.t.Fatal(err)
		}
		from, err := url.Parse(next)
		if err != nil {
			m.t.Fatal(err)
		}
		next = from.ResolveReference(to).RequestURI()
	}
	m.t.Errorf("%s: no end", path)
	return pages, links
}

// TestTagPages: the pages are the upstream's. Each is fetched once, and served when the
// upstream is down.
func TestTagPages(t *testing.T) {
	t.Parallel()
	up := ut.New(t, ut.Options{PageSize: 2})
	img := up.AddImage("library/app", "a", ut.NewImage(1, 10))
	for _, tag := range []string{"b", "c", "d", "e"} {
		up.Tag("library/app", tag, img.Index.Digest)
	}
	m := newMirror(t, nil, registry(t, "docker.io", up.URL))
	for _, when := range []string{"cold", "warm", "upstream gone"} {
		switch when {
		case "warm":
			up.WantCounts(t, map[ut.Op]int{ut.Tags: 3 + 5 + 3})
			up.Forget()
		case "upstream gone":
			up.WantCounts(t, nil)
			up.Down()
			m.restart(due, registry(t, "docker.io", up.URL))
		}
		for query, want := range map[string]struct{ pages, link string }{
			// containers/image sends no n, and needs the path.
			"":        {"a b,c d,e", `</v2/library/app/tags/list?last=b>; rel="next"`},
			"?n=1":    {"a,b,c,d,e", `<list?last=a&n=1>; rel="next"`},
			"?n=1000": {"a b,c d,e", `<list?last=b&n=2>; rel="next"`}, // the upstream's page size is smaller
		} {
			pages, links := m.walk("/v2/library/app/tags/list" + query)
			if got := strings.Join(pages, ","); got != want.pages || len(links) == 0 || links[0] != want.link {
				t.Errorf("%s, tags%s: %s, %q", when, query, got, links)
			}
		}
	}
}

// TestTagsFromAnywhere: a page that follows no stored page is passed through and not stored.
func TestTagsFromAnywhere(t *testing.T) {
	t.Parallel()
	up := ut.New(t, ut.Options{PageSize: 2})
	img := up.AddImage("library/app", "a", ut.NewImage(1, 10))
	for _, tag := range []string{"b", "c", "d", "e"} {
		up.Tag("library/app", tag, img.Index.Digest)
	}
	m := newMirror(t, nil, registry(t, "docker.io", up.URL))
	for range 2 {
		if a := m.get("/v2/library/app/tags/list?last=bb"); !strings.Contains(string(a.body), `["c","d"]`) {
			t.Errorf("%d %s", a.status, a.body)
		}
	}
	up.WantCounts(t, map[ut.Op]int{ut.Tags: 2})
	if a := m.get("/v2/library/app/tags/list?last=" + strings.Repeat("b", maxListQuery)); a.status != http.StatusBadRequest {
		t.Errorf("a long query: %d %s", a.status, a.body)
	}
}

// TestTagsCut: if the whole list is stored as one page, other pages are cut from it.
func TestTagsCut(t *testing.T) {
	t.Parallel()
	up := ut.New(t, ut.Options{})
	img := up.AddImage("library/app", "a", ut.NewImage(1, 10))
	for _, tag := range []string{"b", "c", "d", "e"} {
		up.Tag("library/app", tag, img.Index.Digest)
	}
	m := newMirror(t, nil, registry(t, "docker.io", up.URL))
	m.get("/v2/library/app/tags/list")
	up.Down()
	for query, want := range map[string]string{
		"": "a b c d e", "?n=0": "", "?n=2": "a b,c d,e", "?n=2&last=b": "c d,e", "?n=1&last=dd": "e", "?last=zz": "", "?last=c": "d e", "?n=1000": "a b c d e",
	} {
		if pages, _ := m.walk("/v2/library/app/tags/list" + query); strings.Join(pages, ",") != want {
			t.Errorf("%s: %q", query, pages)
		}
	}
}

// TestReferrers_Stored: cold, warm, with an HTML page instead of the upstream's response,
// and with the upstream down.
func TestReferrers_Stored(t *testing.T) {
	t.Parallel()
	for _, noAPI := range []bool{false, true} {
		t.Run(fmt.Sprint("fallback ", noAPI), func(t *testing.T) {
			t.Parallel()
			up := ut.New(t, ut.Options{NoReferrers: noAPI, PageSize: 2})
			img := up.AddImage("library/app", "a", ut.NewImage(1, 10))
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
			up.WantCounts(t, nil)
			m.restart(due, registry(t, "docker.io", up.URL))
			for _, status := range []int{200, 403, 404, 410, 500} {
				page := []ut.Fault{ut.Body("text/html", []byte("<html>blocked</html>")), ut.StatusOf(status)}
				faults := []*ut.Scripted{up.Fault(ut.Match{Op: ut.Referrers}, page...), up.Fault(ut.Match{Op: ut.GetManifest}, page...)}
				if !noAPI {
					faults[1].Remove() // without the API, GET of the tag stays as it is
				}
				check(fmt.Sprint("a page with ", status))
				faults[0].Remove()
				faults[1].Remove()
			}
			up.Down()
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
