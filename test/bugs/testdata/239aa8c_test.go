package proxy

import (
	"context"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/cachalot-registry/cachalot/upstream"
	ut "github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// TestWarmHasLeft: whose request has ended begins no download, though a slot is free.
func TestWarmHasLeft(t *testing.T) {
	up := ut.New(t, ut.Options{})
	img := up.AddImage("library/app", "1", ut.NewImage(1, 1000))
	hub := registry(t, "docker.io", up.URL)
	m := newMirror(t, nil, hub)
	c := &call{api: newAPI(AdminConfig{}), p: m.proxy}
	w := &warmth{store: m.store, active: map[digest.Digest]int64{}}
	ctx, leave := context.WithCancel(t.Context())
	leave()
	for range 100 {
		if _, err := c.fetch(ctx, target{registry: hub, repo: "library/app", name: "library/app", kind: upstream.KindBlob}, img.Layers[0].Digest, 1000, w); err == nil {
			t.Error("it is fetched")
		}
	}
	m.settle()
	if n := up.Count(ut.GetBlob); n > 0 {
		t.Errorf("%d downloads", n)
	}
}
