package proxy

import (
	"bytes"
	"fmt"
	"io"
	"math"
	"mime"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	ut "github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

func TestParseRange(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		header string
		size   int64
		want   []byteRange
		err    error
	}{
		{"bytes=0-", 10, []byteRange{{0, 9}}, nil},
		{"bytes=3-5", 10, []byteRange{{3, 5}}, nil},
		{"BYTES=3-5", 10, []byteRange{{3, 5}}, nil},
		{"bytes=3-500", 10, []byteRange{{3, 9}}, nil},
		{"bytes=-3", 10, []byteRange{{7, 9}}, nil},
		{"bytes=-30", 10, []byteRange{{0, 9}}, nil},
		{"bytes=0-0,-1", 10, []byteRange{{0, 0}, {9, 9}}, nil},
		{"bytes=0-0, ,50-", 10, []byteRange{{0, 0}}, nil},
		{"bytes=9-99999999999999999999", 10, []byteRange{{9, 9}}, nil},
		{"lines=1-2", 10, nil, nil},
		{"nonsense", 10, nil, nil},
		{"bytes=" + strings.Repeat("0-0,", maxRanges+1), 10, nil, nil},
		{"bytes=10-", 10, nil, errUnsatisfiableRange},
		{"bytes=-0", 10, nil, errUnsatisfiableRange},
		{"bytes=0-", 0, nil, errUnsatisfiableRange},
		{"bytes=99999999999999999999-", 10, nil, errUnsatisfiableRange},
		{"bytes=5-3", 10, nil, errMalformedRange},
		{"bytes=", 10, nil, errMalformedRange},
		{"bytes=,", 10, nil, errMalformedRange},
		{"bytes=-", 10, nil, errMalformedRange},
		{"bytes=a-b", 10, nil, errMalformedRange},
		{"bytes=0x1-", 10, nil, errMalformedRange},
		{"bytes=1 - 2", 10, nil, errMalformedRange},
		{"bytes=--1", 10, nil, errMalformedRange},
		{"bytes=+1-2", 10, nil, errMalformedRange},
	} {
		got, err := parseRange(tc.header, tc.size)
		if !slices.Equal(got, tc.want) || err != tc.err { //nolint:errorlint // these are never wrapped
			t.Errorf("%q of %d: %v %v, want %v %v", tc.header, tc.size, got, err, tc.want, tc.err)
		}
	}
}

// FuzzParseRange checks that an accepted range lies within the content and means the same
// to the standard library.
func FuzzParseRange(f *testing.F) {
	for _, s := range []string{"bytes=0-", "bytes=-1", "bytes=1-2,3-", "bytes=5-3", "x=1", "bytes=0-0,-1"} {
		f.Add(s, int64(10))
	}
	content := make([]byte, 100)
	f.Fuzz(func(t *testing.T, header string, size int64) {
		size = max(0, size) % 100
		ranges, err := parseRange(header, size)
		for _, r := range ranges {
			if r.start < 0 || r.last < r.start || r.last >= size {
				t.Fatalf("%q of %d: %v", header, size, r)
			}
		}
		if err != nil || len(ranges) != 1 {
			return
		}
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", http.NoBody)
		r.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", ranges[0].start, ranges[0].last))
		w := httptest.NewRecorder()
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content[:size]))
		want := fmt.Sprintf("bytes %d-%d/%d", ranges[0].start, ranges[0].last, size)
		if w.Code != http.StatusPartialContent || w.Header().Get("Content-Range") != want {
			t.Errorf("%q of %d: %d %q, want %q", header, size, w.Code, w.Header().Get("Content-Range"), want)
		}
	})
}

func TestRanges(t *testing.T) {
	t.Parallel()
	up := ut.New(t, ut.Options{})
	m := newMirror(t, nil, registry(t, "docker.io", up.URL))
	for i, when := range []string{"cold", "warm"} {
		layer := ut.NewContent("", ut.Random(20, 1<<20))
		path := "/v2/library/app/blobs/" + layer.Digest.String()
		up.AddBlob("library/app", layer)
		for header, want := range map[string][]byte{
			"bytes=100-": layer.Bytes[100:], "bytes=0-0": layer.Bytes[:1], "bytes=-5": layer.Bytes[1<<20-5:], "bytes=1000-1999": layer.Bytes[1000:2000],
		} {
			if i == 0 { // every range is tested on a cold blob
				layer = ut.NewContent("", ut.Random(uint64(len(want))+21, 1<<20))
				start := map[string]int{"bytes=100-": 100, "bytes=0-0": 0, "bytes=-5": 1<<20 - 5, "bytes=1000-1999": 1000}[header]
				want = layer.Bytes[start : start+len(want)]
				path = "/v2/library/app/blobs/" + layer.Digest.String()
				up.AddBlob("library/app", layer)
			}
			a := m.get(path, "Range", header)
			if a.status != http.StatusPartialContent || !bytes.Equal(a.body, want) || !strings.HasSuffix(a.header.Get("Content-Range"), "/1048576") {
				t.Errorf("%s, %s: %d, %d bytes, %q, %v", when, header, a.status, len(a.body), a.header.Get("Content-Range"), a.err)
			}
		}
		for _, header := range []string{"bytes=1048576-", "bytes=x-y", "bytes=5-3", "bytes=-"} {
			a := m.get(path, "Range", header)
			m.wantError(a, http.StatusRequestedRangeNotSatisfiable, "RANGE_INVALID")
			if a.header.Get("Content-Range") != "bytes */1048576" {
				t.Errorf("%s: Content-Range %q", header, a.header.Get("Content-Range"))
			}
		}
		a := m.get(path, "Range", "bytes=0-9,20-29")
		_, params, err := mime.ParseMediaType(a.header.Get("Content-Type"))
		if err != nil || a.status != http.StatusPartialContent {
			t.Fatalf("%s: several ranges: %d %v", when, a.status, a.header)
		}
		parts := multipart.NewReader(bytes.NewReader(a.body), params["boundary"])
		for _, want := range [][]byte{layer.Bytes[:10], layer.Bytes[20:30]} {
			p, err := parts.NextPart()
			if err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(p); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s: part of %d bytes, %v", when, len(got), err)
			}
		}
		if a := m.get(path, "If-None-Match", `"`+layer.Digest.String()+`"`); a.status != http.StatusNotModified {
			t.Errorf("%s: If-None-Match: %d", when, a.status)
		}
	}
}

// TestRangeOfWrongBytes: a range that looks complete to the client does not end before the
// blob is verified (I1).
func TestRangeOfWrongBytes(t *testing.T) {
	t.Parallel()
	for _, header := range []string{"bytes=0-99", "bytes=0-", "bytes=-10", "bytes=0-9,20-29", "bytes=500000-500000"} {
		up := ut.New(t, ut.Options{})
		layer := ut.NewContent("", ut.Random(30, 1<<20))
		up.AddBlob("library/app", layer)
		up.Fault(ut.Match{Op: ut.GetBlob}, ut.WrongBytes())
		m := newMirror(t, nil, registry(t, "docker.io", up.URL))
		if a := m.get("/v2/library/app/blobs/"+layer.Digest.String(), "Range", header); a.err == nil && a.status < 300 {
			t.Errorf("%s: complete: %d, %d bytes", header, a.status, len(a.body))
		}
	}
}

// TestRangeInFlight: a range of bytes that have arrived waits only for its last byte.
func TestRangeInFlight(t *testing.T) {
	t.Parallel()
	up := ut.New(t, ut.Options{})
	layer := ut.NewContent("", ut.Random(31, 1<<20))
	up.AddBlob("library/app", layer)
	release := make(chan struct{})
	up.Fault(ut.Match{Op: ut.GetBlob}, ut.StallAfter(500_000, release))
	m := newMirror(t, nil, registry(t, "docker.io", up.URL))
	resp, err := m.begin(t.Context(), http.MethodGet, "/v2/library/app/blobs/"+layer.Digest.String(), "Range", "bytes=100000-399999")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	got := make([]byte, 290_000)
	if _, err := io.ReadFull(resp.Body, got); err != nil || !bytes.Equal(got, layer.Bytes[100_000:390_000]) {
		t.Errorf("before the end upstream: %v", err)
	}
	close(release)
	rest, err := io.ReadAll(io.LimitReader(resp.Body, math.MaxInt32))
	if err != nil || !bytes.Equal(rest, layer.Bytes[390_000:400_000]) {
		t.Errorf("after: %d bytes, %v", len(rest), err)
	}
	up.WantCounts(t, map[ut.Op]int{ut.GetBlob: 1})
}
