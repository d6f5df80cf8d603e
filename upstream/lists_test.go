package upstream

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

func TestTags(t *testing.T) {
	t.Parallel()
	tags := func(names ...string) []byte {
		b, err := json.Marshal(map[string][]string{"tags": names})
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	list := func(link string, names ...string) []upstreamtest.Fault {
		return []upstreamtest.Fault{upstreamtest.Body("application/json", tags(names...)), upstreamtest.Header("Link", link)}
	}
	for _, tt := range []struct {
		name     string
		pageSize int
		faults   []upstreamtest.Fault
		want     []string
		err      error
		requests int
	}{
		{name: "one page", want: []string{"a", "b", "c", "latest"}, requests: 1},
		{name: "pages", pageSize: 1, want: []string{"a", "b", "c", "latest"}, requests: 4},
		{name: "unsorted, twice", faults: list("", "b", "a", "b"), want: []string{"b", "a", "b"}, requests: 1},
		{name: "null", faults: []upstreamtest.Fault{upstreamtest.Body("application/json", []byte(`{"tags":null}`))}, requests: 1},
		{name: "not found", faults: []upstreamtest.Fault{upstreamtest.Status(404)}, err: ErrNotFound, requests: 1},
		{name: "no JSON", faults: []upstreamtest.Fault{upstreamtest.Body("text/html", []byte("<p>"))}, err: ErrInvalid, requests: 1},
		{name: "leads to itself", faults: list(`</v2/`+repo+`/tags/list>; rel="next"`, "a"), err: ErrInvalid, requests: 1},
		{name: "leads to itself by another way", faults: list(`<?last=a>; rel="next"`, "a"), err: ErrInvalid, requests: 2},
		{name: "leads to another origin", faults: list(`<http://127.0.0.1:1/v2/`+repo+`/tags/list?last=a>; rel="next"`, "a"), err: ErrInvalid, requests: 1},
		{name: "leads to another repository", faults: list(`</v2/other/tags/list?last=a>; rel="next"`, "a"), err: ErrInvalid, requests: 1},
		{name: "leads to nonsense", faults: list(`<http://[>; rel="next"`, "a"), err: ErrInvalid, requests: 1},
		{name: "too long", faults: []upstreamtest.Fault{upstreamtest.Endless()}, err: ErrInvalid, requests: 1},
		{name: "breaks once", faults: nil, want: []string{"a", "b", "c", "latest"}, requests: 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			up, img := image(t, upstreamtest.Options{PageSize: tt.pageSize, Auth: upstreamtest.Bearer})
			for _, tag := range []string{"c", "a", "b"} {
				up.Tag(repo, tag, img.Index.Digest)
			}
			if tt.faults != nil {
				up.Fault(upstreamtest.Match{Op: upstreamtest.Tags}, tt.faults...)
			}
			if tt.name == "breaks once" {
				up.Fault(upstreamtest.Match{Op: upstreamtest.Tags, Times: 1}, upstreamtest.CutAfter(5))
			}
			got, err := allTags(t, asking(t, up), repo)
			if !errors.Is(err, tt.err) || err == nil && fmt.Sprint(got) != fmt.Sprint(tt.want) {
				t.Errorf("got %v, %v; want %v, %v", got, err, tt.want, tt.err)
			}
			wantCounts(t, up, map[upstreamtest.Op]int{upstreamtest.Ping: 1, upstreamtest.Tags: tt.requests, upstreamtest.Token: 1})
		})
	}
}

// allTags walks from page to page, as a client does.
func allTags(t *testing.T, r *Registry, repo string) ([]string, error) {
	t.Helper()
	var all []string
	for query := ""; ; {
		page, err := r.TagPage(t.Context(), repo, query)
		if all = append(all, page.Tags...); err != nil || page.Next == "" {
			return all, err
		}
		query = page.Next
	}
}

// TestEndlessReferrers: an endless list ends, also one of large pages.
func TestEndlessReferrers(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct{ padding, most int }{
		"many":  {0, maxPages},
		"large": {MaxManifestSize - 200, maxListSize/MaxManifestSize + 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				page := fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"manifests":[],"x":%q}`, ocispec.MediaTypeImageIndex, strings.Repeat("a", tt.padding))
				pages := 0
				r := served(t, func(w http.ResponseWriter, _ *http.Request) {
					pages++
					w.Header().Set("Content-Type", ocispec.MediaTypeImageIndex)
					w.Header().Set("Link", fmt.Sprintf(`<?last=%d>; rel=next`, pages))
					_, _ = w.Write(page) // the client may have left
				})
				if _, _, err := r.Referrers(t.Context(), repo, blobDigest); !errors.Is(err, ErrInvalid) {
					t.Errorf("got %v", err)
				}
				if pages > tt.most {
					t.Errorf("%d pages", pages)
				}
			})
		})
	}
}

func TestReferrers(t *testing.T) {
	t.Parallel()
	const unknownField = `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[],"x":1}`
	fallback := func(img upstreamtest.Image) string { return "sha256-" + img.Index.Digest.Encoded() }
	for _, tt := range []struct {
		name     string
		options  upstreamtest.Options
		fault    upstreamtest.Fault
		tagged   upstreamtest.Content // what the fallback tag names
		want     int                  // descriptors
		exact    string
		err      error
		requests map[upstreamtest.Op]int
	}{
		{name: "API", want: 3, requests: map[upstreamtest.Op]int{upstreamtest.Ping: 1, upstreamtest.Referrers: 1}},
		{name: "pages", options: upstreamtest.Options{PageSize: 1}, want: 3, requests: map[upstreamtest.Op]int{upstreamtest.Ping: 1, upstreamtest.Referrers: 3}},
		{
			name: "byte for byte", fault: upstreamtest.Body(ocispec.MediaTypeImageIndex, []byte(unknownField)), exact: unknownField,
			requests: map[upstreamtest.Op]int{upstreamtest.Ping: 1, upstreamtest.Referrers: 1},
		},
		{name: "no API, no tag", options: upstreamtest.Options{NoReferrers: true}, requests: map[upstreamtest.Op]int{upstreamtest.Ping: 1, upstreamtest.Referrers: 1, upstreamtest.GetManifest: 1}},
		{
			name: "no API, a tag", options: upstreamtest.Options{NoReferrers: true},
			tagged: upstreamtest.NewContent(ocispec.MediaTypeImageIndex, []byte(unknownField)), exact: unknownField,
			requests: map[upstreamtest.Op]int{upstreamtest.Ping: 1, upstreamtest.Referrers: 1, upstreamtest.GetManifest: 1},
		},
		{
			name: "a tag that names no index", options: upstreamtest.Options{NoReferrers: true}, err: ErrInvalid,
			tagged:   upstreamtest.NewContent(ocispec.MediaTypeImageManifest, []byte(`{}`)),
			requests: map[upstreamtest.Op]int{upstreamtest.Ping: 1, upstreamtest.Referrers: 1, upstreamtest.GetManifest: 1},
		},
		{
			name: "something else answers", fault: upstreamtest.Body("text/html", []byte("<p>")),
			requests: map[upstreamtest.Op]int{upstreamtest.Ping: 1, upstreamtest.Referrers: 1, upstreamtest.GetManifest: 1},
		},
		{name: "405", fault: upstreamtest.Status(405), requests: map[upstreamtest.Op]int{upstreamtest.Ping: 1, upstreamtest.Referrers: 1, upstreamtest.GetManifest: 1}},
		{name: "429", fault: upstreamtest.Status(429), err: ErrRateLimited, requests: map[upstreamtest.Op]int{upstreamtest.Ping: 1, upstreamtest.Referrers: 1}},
		{name: "403", fault: upstreamtest.Status(403), err: ErrDenied, requests: map[upstreamtest.Op]int{upstreamtest.Ping: 1, upstreamtest.Referrers: 1}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			up, img := image(t, tt.options)
			for i := range 3 {
				up.AddManifest(repo, upstreamtest.Subject(img.Index.Descriptor, fmt.Sprintf("application/x.%d", i)))
			}
			if tt.fault != nil {
				up.Fault(upstreamtest.Match{Op: upstreamtest.Referrers}, tt.fault)
			}
			if tt.tagged.Bytes != nil {
				up.AddManifest(repo, tt.tagged, fallback(img))
			}
			b, _, err := asking(t, up).Referrers(t.Context(), repo, img.Index.Digest)
			if !errors.Is(err, tt.err) {
				t.Fatalf("got %v, want %v", err, tt.err)
			}
			wantCounts(t, up, tt.requests)
			if err != nil {
				return
			}
			var index ocispec.Index
			if err := json.Unmarshal(b, &index); err != nil || index.MediaType != ocispec.MediaTypeImageIndex || index.Manifests == nil {
				t.Fatalf("not an index: %s, %v", b, err)
			}
			if len(index.Manifests) != tt.want || tt.exact != "" && string(b) != tt.exact {
				t.Errorf("got %s; want %d descriptors %s", b, tt.want, tt.exact)
			}
		})
	}
}
