package proxy

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/cachalot-registry/cachalot/upstream"
)

// FuzzHost: whatever name a browser may have asked for a page of another site by, it is
// not served.
func FuzzHost(f *testing.F) {
	for _, s := range []string{"mirror.test", "MIRROR.test.:5000", "a.example.com", "evil.test", "evil.test:80", "[::1]:5000", "127.0.0.1", "0x7f.1", "localhost.", "evil.svc", "mirror", "mirror.test.evil.test", "[mirror.test]", "a@mirror.test", "", ":80", "evil.test:mirror.test"} {
		f.Add(s)
	}
	h := newHosts("mirror.test", "*.example.com")
	f.Fuzz(func(t *testing.T, host string) {
		name := hostname(host)
		if again := hostname(name); again != name && !strings.ContainsAny(name, ":[].") {
			t.Errorf("%q: %q, and %q", host, name, again)
		}
		if !h.serves(host) {
			return
		}
		// What a browser takes for the host of a URL, it sends as it is.
		u, err := url.Parse("http://" + host + "/")
		if err != nil || u.Host != host || u.User != nil {
			return // no browser sends it
		}
		site := strings.ToLower(strings.TrimSuffix(u.Hostname(), "."))
		_, err = netip.ParseAddr(site)
		if err != nil && site != "" && site != "localhost" && site != "mirror.test" && !strings.HasSuffix(site, ".example.com") {
			t.Errorf("%q is served", host)
		}
	})
}

// FuzzAccept: a client that names an index's media type gets indexes, whatever else it says.
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

// FuzzKeptList: lists as they may be on disk are read or refused, and what is answered of
// them is JSON with no more than they have.
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
			if last != "" { // which is none
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

// FuzzAdmin: whatever the admin listener is asked, its answer is as the API's document
// says, and never a fault of its own.
func FuzzAdmin(f *testing.F) {
	const token = "a token of the operators"
	for _, s := range []string{"stats", "image?name=a:b", "blob?digest=sha256:00", "pins", "tags?repository=a/b&limit=2&cursor=AA", "../healthz", "upstreams?a;b", "blobs?limit=-1&unused_for=1h&min_size=1MiB", "repositories?sort=size&cursor=%00", "verify"} {
		f.Add(0, s, []byte(nil))
	}
	for _, s := range []string{`{"match":"*/*"}`, `{"images":["a/b:c"]}`, `{"image":"a/b"}`, `{"digest":"sha256:x"}`, `{"unused_for":"0s","dry_run":true}`, `{`, `null`, `[]`} {
		f.Add(1, "purge", []byte(s))
		f.Add(1, "pins", []byte(s))
		f.Add(1, "warm", []byte(s))
		f.Add(2, "pins?match=*/*", []byte(nil))
	}
	m := newMirror(f, nil, registry(f, "docker.io", "http://127.0.0.1:1")) // no one is there
	doc := newDocument(f)
	admin := NewAdmin(AdminConfig{
		Gatherer: prometheus.NewRegistry(), Ready: func() error { return nil }, Version: "v0", Started: time.Now(), Log: slog.New(slog.DiscardHandler),
		Current: func() (*Proxy, func()) { return m.proxy, func() {} },
		Token:   func() (string, string, error) { return "admin.token", token, nil },
	})
	f.Fuzz(func(t *testing.T, kind int, path string, body []byte) {
		method := []string{http.MethodGet, http.MethodPost, http.MethodDelete}[uint(kind)%3]
		r := httptest.NewRequestWithContext(t.Context(), method, "http://127.0.0.1/", bytes.NewReader(body))
		path, r.URL.RawQuery, _ = strings.Cut(path, "?")
		r.URL.Path = apiRoot + path
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("Authorization", "Bearer "+token)
		w := httptest.NewRecorder()
		admin.ServeHTTP(w, r)
		if w.Code >= http.StatusInternalServerError {
			t.Errorf("%s %q %q: %d %s", method, path, body, w.Code, w.Body)
		}
		if w.Code == http.StatusMovedPermanently {
			return // to the same path without the dots in it
		}
		answers := [][]byte{w.Body.Bytes()}
		if w.Header().Get("Content-Type") == "application/x-ndjson" {
			answers = bytes.Split(bytes.TrimSpace(w.Body.Bytes()), []byte("\n"))
		}
		for _, b := range answers {
			doc.check(t, method, path, strconv.Itoa(w.Code), w.Header().Get("Content-Type"), b)
		}
	})
}
