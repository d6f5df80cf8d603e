package upstream

import (
	"errors"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// TestURLs_WrongContent: if one URL sends wrong content, another is asked for that content, and for no
// other.
func TestURLs_WrongContent(t *testing.T) {
	t.Parallel()
	mirror, img := image(t, upstreamtest.Options{})
	up, _ := image(t, upstreamtest.Options{})
	sick, well := img.Layers[0].Digest, img.Config.Digest
	mirror.Fault(upstreamtest.Match{Op: upstreamtest.GetBlob, Reference: sick.String()}, upstreamtest.WrongBytes())
	r := asking(t, mirror, up)
	var wrong func()
	get := func(d digest.Digest) bool {
		t.Helper()
		c, err := r.Open(t.Context(), KindBlob, repo, d, Span{})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Body.Close()
		wrong = c.Wrong
		v := d.Verifier()
		if _, err := io.Copy(v, c.Body); err != nil {
			t.Fatal(err)
		}
		return v.Verified()
	}
	if get(sick) {
		t.Fatal("nothing is wrong, so nothing is tested")
	}
	wrong()
	if !r.HasOther(sick) || !get(sick) || !get(sick) || !get(well) {
		t.Error("the other URL was not asked")
	}
	if n := mirror.Count(upstreamtest.GetBlob); n != 2 {
		t.Errorf("the mirror was asked %d times, want once for each", n)
	}
	up.Fault(upstreamtest.Match{Op: upstreamtest.GetBlob, Reference: sick.String()}, upstreamtest.WrongBytes())
	if get(sick) {
		t.Error("right, though it was made wrong")
	}
	wrong()
	if r.HasOther(sick) {
		t.Error("there is no third URL")
	}
}

// TestOpen_OddStatus: a response without the whole content is a failure of its URL.
func TestOpen_OddStatus(t *testing.T) {
	t.Parallel()
	for _, status := range []int{http.StatusNoContent, http.StatusAccepted, http.StatusPartialContent, http.StatusResetContent} {
		mirror, img := image(t, upstreamtest.Options{})
		up, _ := image(t, upstreamtest.Options{})
		mirror.Fault(upstreamtest.Match{Op: upstreamtest.GetBlob}, upstreamtest.StatusOf(status))
		read(t, asking(t, mirror, up), KindBlob, img.Layers[0].Digest, 0)
	}
	up, img := image(t, upstreamtest.Options{})
	up.Fault(upstreamtest.Match{Op: upstreamtest.GetBlob}, upstreamtest.StatusOf(http.StatusNonAuthoritativeInfo))
	read(t, asking(t, up), KindBlob, img.Layers[0].Digest, 0)
}

// TestURLs_BrokenBody: if one URL breaks off a body, another is asked for it, and for no other
// content unless the first one is slow. If the length is known, an early end is a break too.
func TestURLs_BrokenBody(t *testing.T) {
	t.Parallel()
	for name, faults := range map[string][]upstreamtest.Fault{
		"cut":           {upstreamtest.CutAfter(1)},
		"reset":         {upstreamtest.ResetAfter(1)},
		"looks whole":   {upstreamtest.OpenEnd(), upstreamtest.CutAfter(1)},
		"nothing comes": {upstreamtest.StallAfter(1, nil)},
	} {
		mirror, img := image(t, upstreamtest.Options{})
		up, _ := image(t, upstreamtest.Options{})
		sick, well := img.Layers[0], img.Config
		mirror.Fault(upstreamtest.Match{Op: upstreamtest.GetBlob, Reference: sick.Digest.String()}, faults...)
		cfg := Config{URLs: []string{mirror.URL, up.URL}}
		if name == "nothing comes" {
			cfg.Timeouts = Timeouts{Dial: never, TLSHandshake: never, ResponseHeader: never, Progress: 2 * time.Second} // the other URL has this timeout too
		}
		r := dialing(t, cfg)
		c, err := r.Open(t.Context(), KindBlob, repo, sick.Digest, Span{Offset: 1})
		if err != nil {
			t.Fatal(err)
		}
		if n, err := io.Copy(io.Discard, c.Body); !errors.Is(err, ErrUnavailable) {
			t.Errorf("%s: %d bytes, %v", name, n, err)
		}
		_ = c.Body.Close() // broken
		read(t, r, KindBlob, sick.Digest, 2)
		read(t, r, KindBlob, well.Digest, 0)
		want := 1
		if name == "nothing comes" { // the URL counts as slow for all content
			want = 2
		}
		wantCounts(t, up, map[upstreamtest.Op]int{upstreamtest.Ping: 1, upstreamtest.GetBlob: want})
	}
}
