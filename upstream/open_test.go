package upstream

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

func TestHead(t *testing.T) {
	t.Parallel()
	lie := digest.FromString("lie")
	for _, tt := range []struct {
		name   string
		kind   Kind
		fault  upstreamtest.Fault
		digest func(upstreamtest.Image) digest.Digest
		size   int64 // if it is not the content's
		want   error
	}{
		{name: "manifest", kind: KindManifest},
		{name: "blob", kind: KindBlob},
		{name: "no digest", kind: KindManifest, fault: upstreamtest.NoDigest(), digest: func(upstreamtest.Image) digest.Digest { return "" }},
		{
			name: "digest is nonsense", kind: KindManifest, fault: upstreamtest.Header("Docker-Content-Digest", "sha256:xyz"),
			digest: func(upstreamtest.Image) digest.Digest { return "" },
		},
		{name: "digest is a lie", kind: KindManifest, fault: upstreamtest.LyingDigest(lie), digest: func(upstreamtest.Image) digest.Digest { return lie }},
		{name: "no length", kind: KindManifest, fault: upstreamtest.NoLength(), size: -1},
		{name: "405", kind: KindManifest, fault: upstreamtest.Status(405), want: ErrUnsupported},
		{name: "501", kind: KindBlob, fault: upstreamtest.Status(501), want: ErrUnsupported},
		{name: "404", kind: KindBlob, fault: upstreamtest.Status(404), want: ErrNotFound},
		{name: "403", kind: KindManifest, fault: upstreamtest.Status(403), want: ErrDenied},
		{name: "400", kind: KindManifest, fault: upstreamtest.Status(400), want: ErrInvalid},
		{name: "304", kind: KindManifest, fault: upstreamtest.Status(304), want: ErrInvalid},
		{name: "redirected", kind: KindBlob, fault: upstreamtest.RedirectToCDN(), digest: func(upstreamtest.Image) digest.Digest { return "" }},
		{name: "redirected to nobody", kind: KindBlob, fault: upstreamtest.Redirect("http://127.0.0.1:1/"), want: ErrUnavailable},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			up, img := image(t, upstreamtest.Options{})
			want, reference := img.Index.Descriptor, "latest"
			if tt.kind == KindBlob {
				want = img.Layers[0].Descriptor
				reference, want.MediaType = want.Digest.String(), "application/octet-stream"
			}
			if tt.fault != nil {
				up.Fault(upstreamtest.Match{Method: "HEAD"}, tt.fault)
			}
			if tt.digest != nil {
				want.Digest = tt.digest(img)
			}
			if tt.size != 0 {
				want.Size = tt.size
			}
			got, err := asking(t, up).Head(t.Context(), tt.kind, repo, reference)
			if !errors.Is(err, tt.want) {
				t.Fatalf("got %v, want %v", err, tt.want)
			}
			if err == nil && (got.Digest != want.Digest || got.Size != want.Size || got.MediaType != want.MediaType) {
				t.Errorf("got %+v, want %+v", got, want)
			}
			if up.SentAll() != 0 {
				t.Errorf("%d bytes sent", up.SentAll())
			}
		})
	}
}

// TestResume: whatever the response to a range, the bytes start at Offset.
func TestResume(t *testing.T) {
	t.Parallel()
	const offset = 40_000
	for _, tt := range []struct {
		name   string
		at     int64
		fault  upstreamtest.Fault
		offset int64 // where the body starts
		size   int64 // announced; 0: the right one
		gets   int
		cdn    bool
	}{
		{name: "whole", gets: 1},
		{name: "range", at: offset, offset: offset, gets: 1},
		{name: "range at a CDN", at: offset, offset: offset, gets: 1, cdn: true},
		{name: "range ignored", at: offset, fault: upstreamtest.IgnoreRange(), gets: 1},
		{name: "other start", at: offset, fault: upstreamtest.ShiftedRange(10), gets: 2},
		{name: "no Content-Range", at: offset, fault: upstreamtest.WrongContentRange(""), gets: 2},
		{name: "garbage", at: offset, fault: upstreamtest.WrongContentRange("bytes 40000-"), gets: 2},
		{name: "other end", at: offset, fault: upstreamtest.WrongContentRange("bytes 40000-50000/100000"), gets: 2},
		{name: "start says 0", at: offset, fault: upstreamtest.WrongContentRange("bytes 0-99999/100000"), gets: 2},
		{name: "total unknown", at: offset, fault: upstreamtest.WrongContentRange("bytes 40000-99999/*"), offset: offset, size: -1, gets: 1},
		{name: "416", at: offset, fault: upstreamtest.RangeNotSatisfiable(), gets: 2},
		{name: "past the end", at: 200_000, gets: 2},
		{name: "no length", fault: upstreamtest.NoLength(), size: -1, gets: 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			up, img := image(t, upstreamtest.Options{CDN: tt.cdn})
			layer := img.Layers[0]
			if tt.fault != nil {
				up.Fault(upstreamtest.Match{Op: upstreamtest.GetBlob}, tt.fault)
			}
			r := asking(t, up)
			c, err := r.Open(t.Context(), KindBlob, repo, layer.Digest, Span{Offset: tt.at})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Body.Close()
			if tt.size == 0 {
				tt.size = layer.Size
			}
			if c.Offset != tt.offset || c.Size != tt.size {
				t.Errorf("offset %d of %d, want %d of %d", c.Offset, c.Size, tt.offset, tt.size)
			}
			b, err := io.ReadAll(c.Body)
			if err != nil || !bytes.Equal(b, layer.Bytes[tt.offset:]) {
				t.Errorf("%d bytes, %v: not the layer's from %d", len(b), err, tt.offset)
			}
			if n := up.Count(upstreamtest.GetBlob); n != tt.gets {
				t.Errorf("%d GETs, want %d", n, tt.gets)
			}
			if got := fetched(t, r, KindBlob); got != int64(len(b)) {
				t.Errorf("counted %d bytes, read %d", got, len(b))
			}
		})
	}
}

// TestInvalidAnswers: invalid responses are refused, and not read further than needed.
func TestInvalidAnswers(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		kind   Kind
		faults []upstreamtest.Fault
		late   bool // found out while reading
	}{
		{"206 to no range", KindBlob, []upstreamtest.Fault{upstreamtest.Status(206)}, false},
		{"202", KindBlob, []upstreamtest.Fault{upstreamtest.Status(202)}, false},
		{"huge manifest", KindManifest, []upstreamtest.Fault{upstreamtest.Huge(MaxManifestSize + 1)}, false},
		{"huge manifest, chunked", KindManifest, []upstreamtest.Fault{upstreamtest.Huge(MaxManifestSize + 1), upstreamtest.NoLength()}, true},
		{"endless manifest", KindManifest, []upstreamtest.Fault{upstreamtest.Endless()}, false}, // without a manifest's media type, it is read to detect the type
		{"redirect loop", KindBlob, []upstreamtest.Fault{upstreamtest.RedirectLoop()}, false},
		{"endless redirects", KindBlob, []upstreamtest.Fault{upstreamtest.RedirectEndless()}, false},
		{"redirect to nowhere", KindBlob, []upstreamtest.Fault{upstreamtest.Redirect("")}, false},
		{"redirect to a file", KindBlob, []upstreamtest.Fault{upstreamtest.Redirect("file:///etc/passwd")}, false},
		{"redirect with a user", KindBlob, []upstreamtest.Fault{upstreamtest.Redirect("http://a:b@127.0.0.1/")}, false},
		{"redirect to nonsense", KindBlob, []upstreamtest.Fault{upstreamtest.Redirect("http://[::1")}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			up, img := image(t, upstreamtest.Options{})
			d, op := img.Layers[0].Digest, upstreamtest.GetBlob
			if tt.kind == KindManifest {
				d, op = img.Index.Digest, upstreamtest.GetManifest
			}
			up.Fault(upstreamtest.Match{Op: op}, tt.faults...)
			r := asking(t, up)
			c, err := r.Open(t.Context(), tt.kind, repo, d, Span{})
			if tt.late {
				if err != nil {
					t.Fatal(err)
				}
				var b []byte
				b, err = io.ReadAll(c.Body)
				c.Body.Close()
				if len(b) > MaxManifestSize {
					t.Errorf("%d bytes came through", len(b))
				}
			}
			if !errors.Is(err, ErrInvalid) || errors.Is(err, ErrUnavailable) {
				t.Errorf("got %v", err)
			}
			if n := up.Count(op); n > maxRedirects+1 || up.Count() != n+1 {
				t.Errorf("%d requests, and %d others", n, up.Count()-n)
			}
			if tt.kind == KindManifest {
				if _, err := r.Manifest(t.Context(), repo, "latest"); !errors.Is(err, ErrInvalid) {
					t.Errorf("by tag: %v", err)
				}
			}
		})
	}
}

func TestManifestOfTheLongestLength(t *testing.T) {
	t.Parallel()
	up, img := image(t, upstreamtest.Options{})
	for _, faults := range [][]upstreamtest.Fault{{upstreamtest.Huge(MaxManifestSize), upstreamtest.NoDigest()}, {upstreamtest.Huge(MaxManifestSize), upstreamtest.NoDigest(), upstreamtest.NoLength()}} {
		s := up.Fault(upstreamtest.Match{Op: upstreamtest.GetManifest}, faults...)
		m, err := asking(t, up).Manifest(t.Context(), repo, "latest")
		if err != nil || len(m.Content) != MaxManifestSize || m.MediaType != img.Index.MediaType {
			t.Errorf("%d bytes of %q, %v", len(m.Content), m.MediaType, err)
		}
		s.Remove()
	}
}

// TestBadNames: invalid names are not sent to the upstream.
func TestBadNames(t *testing.T) {
	t.Parallel()
	up, img := image(t, upstreamtest.Options{})
	r := asking(t, up)
	for _, name := range []string{"", "a/../b", "..", "/a", "a/", "a//b", "a\x00b", "a b", `a\b`, "ä"} {
		if _, err := r.Open(t.Context(), KindBlob, name, img.Config.Digest, Span{}); !errors.Is(err, ErrInvalid) {
			t.Errorf("repository %q: %v", name, err)
		}
	}
	for _, tag := range []string{"", "..", "../../x", "a\r\nHost: b"} {
		if _, err := r.Manifest(t.Context(), repo, tag); !errors.Is(err, ErrInvalid) {
			t.Errorf("tag %q: %v", tag, err)
		}
	}
	if _, err := r.Open(t.Context(), KindBlob, repo, img.Config.Digest, Span{Offset: -1}); !errors.Is(err, ErrInvalid) {
		t.Errorf("negative offset: %v", err)
	}
	if n := up.Count(); n != 0 {
		t.Fatalf("%d requests", n)
	}
	// Characters with a meaning in URLs are escaped.
	if _, err := r.Head(t.Context(), KindManifest, "a?b=c#d%2fe", "x?y"); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
	if asked := up.Requests(); len(asked) != 2 || asked[0].Path != "/v2/" || asked[1].Path != "/v2/a%3Fb=c%23d%252fe/manifests/x%3Fy" {
		t.Errorf("asked %+v", asked)
	}
}

// TestBrokenBody: a broken body is an error at the byte where it broke, and can be resumed
// there.
func TestBrokenBody(t *testing.T) {
	t.Parallel()
	for _, n := range []int{0, 1, 32 << 10, 99_999} {
		up, img := image(t, upstreamtest.Options{})
		layer := img.Layers[0]
		up.Fault(upstreamtest.Match{Op: upstreamtest.GetBlob, Times: 1}, upstreamtest.CutAfter(n))
		r := asking(t, up)
		c, err := r.Open(t.Context(), KindBlob, repo, layer.Digest, Span{})
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(c.Body)
		c.Body.Close()
		if !errors.Is(err, ErrUnavailable) || errors.Is(err, ErrTimeout) || len(b) > n {
			t.Fatalf("cut after %d: %d bytes, %v", n, len(b), err)
		}
		b = append(b, read(t, r, KindBlob, layer.Digest, int64(len(b)))...)
		if !bytes.Equal(b, layer.Bytes) {
			t.Errorf("cut after %d: other bytes", n)
		}
	}
}

// TestProgress: a body that stops is an error. TestTrickle has slow readers.
func TestProgress(t *testing.T) {
	t.Parallel()
	up, img := image(t, upstreamtest.Options{})
	up.Fault(upstreamtest.Match{Op: upstreamtest.GetBlob, Times: 1}, upstreamtest.StallAfter(1000, nil))
	r := dialing(t, Config{URLs: []string{up.URL}, Timeouts: Timeouts{Dial: never, TLSHandshake: never, ResponseHeader: never, Progress: 50 * time.Millisecond}})
	c, err := r.Open(t.Context(), KindBlob, repo, img.Layers[0].Digest, Span{})
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(c.Body)
	c.Body.Close()
	if !errors.Is(err, ErrTimeout) || !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "progress") || len(b) != 1000 {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	rest := read(t, r, KindBlob, img.Layers[0].Digest, int64(len(b)))
	if !bytes.Equal(append(b, rest...), img.Layers[0].Bytes) {
		t.Error("other bytes")
	}
}

// TestCallerLeaves: a caller that cancels gets context.Canceled, in every phase.
func TestCallerLeaves(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		fault func(arrived chan<- struct{}) []upstreamtest.Fault
	}{
		{"before the answer", func(arrived chan<- struct{}) []upstreamtest.Fault {
			return []upstreamtest.Fault{upstreamtest.Arrived(arrived), upstreamtest.BlackHole()}
		}},
		{"in the body", func(arrived chan<- struct{}) []upstreamtest.Fault {
			return []upstreamtest.Fault{upstreamtest.Arrived(arrived), upstreamtest.StallAfter(10, nil)}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			up, img := image(t, upstreamtest.Options{})
			arrived := make(chan struct{})
			up.Fault(upstreamtest.Match{Op: upstreamtest.GetBlob, Times: 1}, tt.fault(arrived)...)
			ctx, leave := context.WithCancel(t.Context())
			go func() {
				<-arrived
				leave()
			}()
			r := asking(t, up)
			c, err := r.Open(ctx, KindBlob, repo, img.Layers[0].Digest, Span{})
			if err == nil {
				_, err = io.ReadAll(c.Body)
				c.Body.Close()
			}
			if !errors.Is(err, context.Canceled) || errors.Is(err, ErrUnavailable) {
				t.Errorf("got %v", err)
			}
			if n := up.Count(upstreamtest.GetBlob); n != 1 {
				t.Errorf("%d GETs", n)
			}
		})
	}
}

// TestDownloadsLeaveRoom: if downloads use all their connections, other requests are still
// sent, and a download that waits can leave.
func TestDownloadsLeaveRoom(t *testing.T) {
	t.Parallel()
	up, img := image(t, upstreamtest.Options{})
	release := make(chan struct{})
	up.Fault(upstreamtest.Match{Op: upstreamtest.GetBlob}, upstreamtest.StallAfter(10, release))
	cfg := Config{URLs: []string{up.URL}, MaxConnections: 4}
	r := dialing(t, cfg)
	var open []*Content
	for range 2 { // of the three that are for blobs, one is for other repositories
		c, err := r.Open(t.Context(), KindBlob, repo, img.Layers[0].Digest, Span{})
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, c)
	}
	ctx, leave := context.WithCancel(t.Context())
	waited := make(chan error)
	go func() {
		_, err := r.Open(ctx, KindBlob, repo, img.Layers[0].Digest, Span{})
		waited <- err
	}()
	head(t, r, repo)
	leave()
	if err := <-waited; !errors.Is(err, context.Canceled) {
		t.Errorf("who waited got %v", err)
	}
	close(release)
	for _, c := range open {
		if b, err := io.ReadAll(c.Body); err != nil || !bytes.Equal(b, img.Layers[0].Bytes) {
			t.Errorf("%d bytes, %v", len(b), err)
		}
		c.Body.Close()
		c.Body.Close() // the second Close gives no slot back
	}
	if n := r.downloads.Taken(); n != 0 {
		t.Errorf("%d slots are still taken", n)
	}
}
