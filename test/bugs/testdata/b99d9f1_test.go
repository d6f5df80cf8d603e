package proxy

import (
	"net/http"
	"testing"
	"time"

	ut "github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// TestShortWithoutLength: a body that announces no length and ends early is no blob.
func TestShortWithoutLength(t *testing.T) {
	up := ut.New(t, ut.Options{})
	layer := ut.NewContent("", ut.Random(10, 100_000))
	up.AddBlob("library/app", layer)
	up.Fault(ut.Match{Op: ut.GetBlob, Times: 1}, ut.OpenEnd(), ut.CutAfter(1000))
	m := newMirror(t, nil, registry(t, "docker.io", up.URL))
	m.want(m.get("/v2/library/app/blobs/"+layer.Digest.String()), layer)
}

// TestLongRetryAfter: a client is told at once that a registry rests for long.
func TestLongRetryAfter(t *testing.T) {
	up := ut.New(t, ut.Options{})
	layer := ut.NewContent("", ut.Random(10, 100_000))
	up.AddBlob("library/app", layer)
	up.Fault(ut.Match{Op: ut.GetBlob, Times: 1}, ut.CutAfter(60_000))
	up.Fault(ut.Match{Op: ut.GetBlob, After: 1, Times: 1}, ut.Status(http.StatusServiceUnavailable, "Retry-After", "600"))
	m := newMirror(t, nil, registry(t, "docker.io", up.URL))
	start := time.Now()
	m.get("/v2/library/app/blobs/" + layer.Digest.String())
	if took := time.Since(start); took > 8*time.Second {
		t.Errorf("told after %s", took)
	}
}
