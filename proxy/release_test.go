package proxy

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/cachalot-registry/cachalot/storage"
	ut "github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// settleReleases waits until what deleted tags held has been looked at.
func (m *mirror) settleReleases() {
	m.t.Helper()
	waitFor(m.t, func() bool {
		m.proxy.mu.Lock()
		defer m.proxy.mu.Unlock()
		return !m.proxy.releasing
	})
}

// TestRelease_OtherRepository: that another repository has an image's index, and not
// what it names, takes nothing from who has both.
func TestRelease_OtherRepository(t *testing.T) {
	t.Parallel()
	up := ut.New(t, ut.Options{})
	shared := ut.NewContent("", ut.Random(1, 20_000))
	kept, gone := manifestOf(1, shared.Descriptor), manifestOf(2, shared.Descriptor)
	index := indexOf(kept.Descriptor)
	for _, repo := range []string{"library/app", "a/evil"} {
		up.AddBlob(repo, shared)
		add(up, repo, "1", kept, index)
	}
	add(up, "library/app", "gone", gone)
	m := newMirror(t, due, registry(t, "docker.io", up.URL))
	m.keep("library/app", kept, gone)
	m.want(m.get("/v2/library/app/blobs/"+shared.Digest.String()), shared)
	m.want(m.get(tagPath("1")), index)
	m.want(m.get(tagPath("gone")), gone)
	m.want(m.get("/v2/a/evil/manifests/1"), index)
	m.settle()
	m.restart(due, registry(t, "docker.io", up.URL)) // a/evil comes first now
	a := newAdmin(t, m, nil, nil)

	up.Tag("library/app", "gone", "")
	m.wantError(m.get(tagPath("gone")), http.StatusNotFound, "MANIFEST_UNKNOWN")
	m.settleReleases()
	for d, unwanted := range map[digest.Digest]bool{gone.Digest: true, shared.Digest: false, kept.Digest: false, index.Digest: false} {
		var b BlobAnswer
		a.get("blob?digest="+string(d), &b)
		if b.Unwanted != unwanted {
			t.Errorf("%s is unwanted: %v", d, b.Unwanted)
		}
	}
}

// TestUnheldSearch_Bounds: the search leaves out what is too much to look for, and fails
// where there is too much to look at.
func TestUnheldSearch_Bounds(t *testing.T) {
	t.Parallel()
	up := ut.New(t, ut.Options{})
	large := manifestOf(1, layers(0, 100)...)
	add(up, "library/app", "large", large)
	var held []imageRoot
	var bytes int64
	all := []ut.Content{large}
	for n := range 10 {
		one := manifestOf(100+n, layers(0, 10)...)
		add(up, "library/app", fmt.Sprint(n), one)
		all = append(all, one)
		bytes += one.Size
		held = append(held, imageRoot{"docker.io", "library/app", one.Digest})
	}
	m := newMirror(t, nil, registry(t, "docker.io", up.URL))
	m.keep("library/app", all...)
	for name, tt := range map[string]struct {
		change    func(*unreferencedSearch)
		blobs     int
		looks     int
		truncated bool
		err       error
	}{
		"in bounds":      {func(s *unreferencedSearch) { s.maxManifests, s.maxBytes, s.maxBlobs = 10, bytes, 102 }, 91, 20, false, nil}, // itself, and 90 layers
		"many blobs":     {func(s *unreferencedSearch) { s.maxBlobs = 50 }, 39, 20, true, nil},
		"many manifests": {func(s *unreferencedSearch) { s.maxManifests = 9 }, 0, 10, false, errManyManifests},
		"many bytes":     {func(s *unreferencedSearch) { s.maxBytes = bytes - 1 }, 0, 10, false, errManyManifests},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := m.proxy.unreferencedSearch()
			tt.change(&s)
			looks := 0
			blobs, truncated, err := s.run(t.Context(), []imageRoot{{"docker.io", "library/app", large.Digest}}, func(look func(imageRoot) bool) error {
				for _, r := range append(slices.Clone(held), held...) { // several tags have one image
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

// TestUnheldSearch_Deep: indexes in indexes, in any number, are no deep recursion.
func TestUnheldSearch_Deep(t *testing.T) {
	t.Parallel()
	up := ut.New(t, ut.Options{})
	all := []ut.Content{manifestOf(0)}
	for range 20 {
		all = append(all, indexOf(all[len(all)-1].Descriptor))
	}
	add(up, "library/app", "1", all...)
	m := newMirror(t, nil, registry(t, "docker.io", up.URL))
	m.keep("library/app", all...)
	none := func(func(imageRoot) bool) error { return nil }
	blobs, truncated, err := m.proxy.unreferencedSearch().run(t.Context(), []imageRoot{{"docker.io", "library/app", all[20].Digest}}, none)
	if len(blobs) != maxWalkDepth+1 || !truncated || err != nil {
		t.Errorf("%d blobs, truncated %v, %v: %v", len(blobs), truncated, err, slices.Collect(maps.Keys(blobs)))
	}
}

// TestRelease_Queue: so many deleted tags wait.
func TestRelease_Queue(t *testing.T) {
	t.Parallel()
	up := ut.New(t, ut.Options{})
	m := newMirror(t, nil, registry(t, "docker.io", up.URL))
	m.proxy.mu.Lock()
	m.proxy.releasing = true // as if it went on
	m.proxy.mu.Unlock()
	for n := range maxReleased + 100 {
		m.proxy.release(storage.TagKey{Upstream: "docker.io", Repository: "library/app", Name: fmt.Sprint(n)}, digest.FromString("x"))
	}
	if n := len(m.proxy.released); n != maxReleased {
		t.Errorf("%d wait", n)
	}
}
