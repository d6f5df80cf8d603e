package admin

import (
	"bytes"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cachalot-registry/cachalot/proxy"
	"github.com/prometheus/client_golang/prometheus"
)

// FuzzAdmin: each response of the admin listener matches the API's document, and none is an
// internal error.
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
	m := newMirror(f, nil, registry(f, "docker.io", "http://127.0.0.1:1")) // an upstream that refuses connections
	doc := newDocument(f)
	admin := New(Config{
		Gatherer: prometheus.NewRegistry(), Ready: func() error { return nil }, Version: "v0", Started: time.Now(), Log: slog.New(slog.DiscardHandler),
		Current: func() (*proxy.Proxy, func()) { return m.proxy, func() {} }, Pins: m.pins,
		Token: func() (string, string, error) { return "admin.token", token, nil },
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
			return // a redirect to the same path without dots
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

// FuzzPins: a file of pins is read or rejected. Pins that are read, written and read again
// stay the same.
func FuzzPins(f *testing.F) {
	for _, s := range []string{`{"version":1,"pins":[{"match":"b/*","created":"2000-01-01T00:00:00Z"},{"match":"a/*","comment":"x"}]}`, `{"version":2}`, `{"version":1,"pins":null}`, `{"version":1,"pins":[{"created":"x"}]}`, `null`, `{`, ``} {
		f.Add([]byte(s))
	}
	p := OpenPins(filepath.Join(f.TempDir(), "pins.json"), slog.New(slog.DiscardHandler))
	f.Fuzz(func(t *testing.T, b []byte) {
		if err := os.WriteFile(p.file, b, 0o600); err != nil {
			t.Fatal(err)
		}
		pins, err := p.read()
		if err != nil {
			return
		}
		if len(pins) > mostPins || !slices.IsSortedFunc(pins, func(a, b Pin) int { return strings.Compare(a.Pattern, b.Pattern) }) {
			t.Errorf("%q: %+v", b, pins)
		}
		for i := range pins {
			if y := pins[i].Created.Year(); y < 0 || y > 9999 {
				return // encoding/json cannot write this time
			}
		}
		if err := p.write(pins); err != nil {
			t.Fatal(err)
		}
		again, err := p.read()
		if err != nil || len(again) != len(pins) || len(pins) > 0 && !reflect.DeepEqual(again, pins) {
			t.Errorf("%+v became %+v, %v", pins, again, err)
		}
	})
}
