package proxy

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"testing"

	"github.com/gorilla/mux"

	"github.com/cachalot-registry/cachalot/upstream"
)

// The specification's grammar. isName and isTag must match it.
func nameRegexp() *regexp.Regexp {
	return regexp.MustCompile(`^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(\/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*$`)
}

func tagRegexp() *regexp.Regexp { return regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`) }

// words visits all strings of up to n letters.
func words(letters string, n int, visit func(string)) {
	visit("")
	if n == 0 {
		return
	}
	for _, c := range letters {
		words(letters, n-1, func(s string) { visit(string(c) + s) })
	}
}

func TestNameGrammar(t *testing.T) {
	t.Parallel()
	name, tag := nameRegexp(), tagRegexp()
	n := 0
	words("a0._-/", 6, func(s string) {
		n++
		if isName(s) != name.MatchString(s) {
			t.Errorf("isName(%q) is %t", s, isName(s))
		}
	})
	words("Aa0._-:", 4, func(s string) {
		if isTag(s) != tag.MatchString(s) {
			t.Errorf("isTag(%q) is %t", s, isTag(s))
		}
	})
	for _, s := range []string{strings.Repeat("a", 128), strings.Repeat("a", 129), "A", "a\x00", "a\n", "é", "a b", "a%2fb", "~", "a@b", "{", "`"} {
		if isName(s) != name.MatchString(s) || isTag(s) != tag.MatchString(s) {
			t.Errorf("%q: a name %t, a tag %t", s, isName(s), isTag(s))
		}
	}
	if n < 50_000 {
		t.Errorf("%d words", n)
	}
}

// FuzzParsePath compares parsePath with the same routes in mux.
func FuzzParsePath(f *testing.F) {
	routes := mux.NewRouter().SkipClean(true).UseEncodedPath()
	kinds := map[string]upstream.Kind{
		"/manifests/{reference:[^/]+}": upstream.KindManifest, "/blobs/{reference:[^/]+}": upstream.KindBlob,
		"/tags/{reference:list}": upstream.KindTags, "/referrers/{reference:[^/]+}": upstream.KindReferrers,
	}
	for path := range kinds {
		for _, prefix := range []string{"/v2/{name:.+}", "/{registry}/v2/{name:.+}"} {
			routes.Path(prefix + path).Name(path)
		}
	}
	for _, s := range []string{
		"/v2/a/manifests/1", "/v2/a/b/blobs/sha256:0", "/hub/v2/a/tags/list", "/v2/a/tags/lists", "/v2/v2/a/blobs/1", "/a/b/v2/c/blobs/1", "//v2/a/blobs/1",
		"/v2//blobs/1", "/v2/a/blobs/", "/v2/a/blobs", "/v2/manifests/1", "/v2/a%2fb/manifests/%31", "/v2/a/manifests/1/", "/x/v2/v2/a/tags/list", "v2/a/tags/list", "/v2/a/uploads/1", "*",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, path string) {
		u, err := url.ParseRequestURI(path)
		if err != nil || strings.ContainsAny(path, "\n\r") {
			t.Skip() // net/http rejects it
		}
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", http.NoBody)
		r.URL = u
		got, ok := parsePath(u.EscapedPath())
		var want mux.RouteMatch
		if known := routes.Match(r, &want); ok != known {
			t.Fatalf("%q: matches %t, want %t", path, ok, known)
		}
		if !ok {
			return
		}
		w := contentPath{want.Vars["registry"], want.Vars["name"], kinds[want.Route.GetName()], want.Vars["reference"]}
		if got != w {
			t.Errorf("%q: %v, want %v", path, got, w)
		}
	})
}
