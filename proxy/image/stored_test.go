package image

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/cachalot-registry/cachalot/storage"
	"github.com/cachalot-registry/cachalot/storage/download"
	ut "github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// keep makes a store with these manifests in a repository.
func keep(t *testing.T, repo string, manifests ...ut.Content) Stored {
	t.Helper()
	s, err := storage.Open(storage.Config{Path: t.TempDir(), MaxFills: 64}, storage.NewMetrics(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	for _, m := range manifests {
		b, err := s.Get(t.Context(), storage.Scope{Upstream: "docker.io", Repository: repo, Manifest: true}, m.Digest, download.Bytes(m.MediaType, m.Bytes))
		if err != nil {
			t.Fatal(err)
		}
		if err := b.Wait(t.Context()); err != nil {
			t.Error(err)
		}
		b.Close()
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for len(s.Fills()) > 0 {
		<-tick.C
	}
	return Stored{Store: s}
}

// TestWalk_LeaveBetween: no manifest is opened after the caller has left.
func TestWalk_LeaveBetween(t *testing.T) {
	t.Parallel()
	index := ut.Index(ut.Layers(0, 100)...)
	k := keep(t, "library/app", index)
	ctx, leave := context.WithCancelCause(t.Context())
	gone := errors.New("gone")
	opened := 0
	w := k.Walk("docker.io", "library/app")
	open := w.Open
	w.Open = func(ctx context.Context, d Descriptor) (*storage.Blob, error) {
		if opened++; opened == 5 {
			leave(gone)
		}
		return open(ctx, d)
	}
	if err := w.Run(ctx, Descriptor{Digest: index.Digest}, func(*Node) error { return nil }); !errors.Is(err, gone) || opened != 5 {
		t.Errorf("%v after %d manifests", err, opened)
	}
}

// TestUnreferenced_Bounds: with too many blobs, the search leaves some out. With too many
// manifests to read, it fails.
func TestUnreferenced_Bounds(t *testing.T) {
	t.Parallel()
	large := ut.Manifest(1, ut.Layers(0, 100)...)
	var held []Root
	var bytes int64
	all := []ut.Content{large}
	for n := range 10 {
		one := ut.Manifest(100+n, ut.Layers(0, 10)...)
		all = append(all, one)
		bytes += one.Size
		held = append(held, Root{"docker.io", "library/app", one.Digest})
	}
	k := keep(t, "library/app", all...)
	for name, tt := range map[string]struct {
		change    func(*search)
		blobs     int
		looks     int
		truncated bool
		err       error
	}{
		"in bounds":      {func(s *search) { s.maxManifests, s.maxBytes, s.maxBlobs = 10, bytes, 102 }, 91, 20, false, nil}, // the manifest, and 90 layers
		"many blobs":     {func(s *search) { s.maxBlobs = 50 }, 39, 20, true, nil},
		"many manifests": {func(s *search) { s.maxManifests = 9 }, 0, 10, false, ErrManyManifests},
		"many bytes":     {func(s *search) { s.maxBytes = bytes - 1 }, 0, 10, false, ErrManyManifests},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSearch(k)
			tt.change(&s)
			looks := 0
			blobs, truncated, err := s.run(t.Context(), []Root{{"docker.io", "library/app", large.Digest}}, func(look func(Root) bool) error {
				for _, r := range append(slices.Clone(held), held...) { // several tags point to one image
					if looks++; !look(r) {
						break
					}
				}
				return nil
			})
			if len(blobs) != tt.blobs || looks != tt.looks || truncated != tt.truncated || !errors.Is(err, tt.err) {
				t.Errorf("%d blobs after %d looks, truncated %v, %v", len(blobs), looks, truncated, err)
			}
		})
	}
}

// TestUnreferenced_Deep: nested indexes of any depth cause no deep recursion.
func TestUnreferenced_Deep(t *testing.T) {
	t.Parallel()
	all := []ut.Content{ut.Manifest(0)}
	for range 20 {
		all = append(all, ut.Index(all[len(all)-1].Descriptor))
	}
	k := keep(t, "library/app", all...)
	none := func(func(Root) bool) error { return nil }
	blobs, truncated, err := k.Unreferenced(t.Context(), []Root{{"docker.io", "library/app", all[20].Digest}}, none)
	if len(blobs) != maxDepth+1 || !truncated || err != nil {
		t.Errorf("%d blobs, truncated %v, %v: %v", len(blobs), truncated, err, slices.Collect(maps.Keys(blobs)))
	}
}
