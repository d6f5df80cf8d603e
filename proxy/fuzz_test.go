package proxy

import (
	"bytes"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cachalot-registry/cachalot/upstream"
)

// FuzzAccept: a client that accepts an index's media type gets indexes, whatever else it accepts.
func FuzzAccept(f *testing.F) {
	for _, s := range []string{"*/*", "application/json", "a/b;q=0.1, */*;q=0", `text/html; a="x, */*"`, ",,", "APPLICATION/*"} {
		f.Add(s, "")
	}
	f.Fuzz(func(t *testing.T, one, two string) {
		accepts := acceptsIndex(http.Header{"Accept": {one, two}})
		if again := acceptsIndex(http.Header{"Accept": {two, one}}); again != accepts {
			t.Errorf("%q and %q: the order of fields counts", one, two)
		}
		if !acceptsIndex(http.Header{"Accept": {one, ocispec.MediaTypeImageIndex, two}}) {
			t.Errorf("%q and %q: no index", one, two)
		}
		if accepts && !strings.Contains(one+two, "/") {
			t.Errorf("%q and %q accept an index", one, two)
		}
	})
}

// FuzzKeptList: a stored list is read or rejected. The response is JSON and has no items
// that the list does not have.
func FuzzKeptList(f *testing.F) {
	for _, s := range []string{`{"tags":["a","b"],"next":"n=1"}`, `{"tags":null}`, `{"manifests":[{"artifactType":"a/b","x":1},null,3]}`, `{"manifests":null,"<":[1e999]}`, `{"manifests":{}}`, `null`, `{"a":1,"a":2,"manifests":[]}`} {
		f.Add([]byte(s), "a/b")
	}
	f.Fuzz(func(t *testing.T, b []byte, artifactType string) {
		if l, err := readReferrers(t.Context(), b); err == nil {
			var all bytes.Buffer
			for part := range l.filtered(artifactType) {
				all.Write(part)
			}
			var got struct{ Manifests []ocispec.Descriptor }
			if !json.Valid(all.Bytes()) {
				t.Errorf("%q of type %q: %q", b, artifactType, all.Bytes())
			} else if json.Unmarshal(all.Bytes(), &got) == nil && len(got.Manifests) > len(l.manifests) {
				t.Errorf("%q of type %q has %d", b, artifactType, len(got.Manifests))
			}
		}
		list, err := readTagList(t.Context(), b)
		var want upstream.TagPage
		if err != nil || json.Unmarshal(b, &want) != nil {
			return
		}
		for i := range len(want.Tags) + 1 {
			sameTags(t, list.page("", i), want.Tags[:i])
		}
		sameTags(t, list.page("", -1), want.Tags)
		for _, last := range want.Tags {
			if last != "" { // "" is not a tag
				sameTags(t, list.page(last, -1), want.Tags[slices.Index(want.Tags, last)+1:])
			}
		}
	})
}

// sameTags compares a tag list as a client gets it.
func sameTags(t *testing.T, list tagList, want []string) {
	t.Helper()
	var all bytes.Buffer
	for part := range list.parts("a/b") {
		all.Write(part)
	}
	var got struct {
		Name string
		Tags []string
	}
	if err := json.Unmarshal(all.Bytes(), &got); err != nil || got.Name != "a/b" || got.Tags == nil || !slices.Equal(got.Tags, want) {
		t.Errorf("%q, %v; want %q", all.Bytes(), err, want)
	}
}
