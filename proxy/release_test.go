package proxy

import (
	"fmt"
	"net/http"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/cachalot-registry/cachalot/storage"
	ut "github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// settleReleases waits until the content of deleted tags is processed.
func (m *mirror) settleReleases() {
	m.t.Helper()
	waitFor(m.t, func() bool {
		m.proxy.mu.Lock()
		defer m.proxy.mu.Unlock()
		return !m.proxy.releasing
	})
}

// TestRelease_OtherRepository: another repository has only the index of an image. That
// orphans nothing of a repository that has all of the image.
func TestRelease_OtherRepository(t *testing.T) {
	t.Parallel()
	up := ut.New(t, ut.Options{})
	shared := ut.NewContent("", ut.Random(1, 20_000))
	kept, gone := ut.Manifest(1, shared.Descriptor), ut.Manifest(2, shared.Descriptor)
	index := ut.Index(kept.Descriptor)
	for _, repo := range []string{"library/app", "a/evil"} {
		up.AddBlob(repo, shared)
		up.AddManifests(repo, "1", kept, index)
	}
	up.AddManifests("library/app", "gone", gone)
	m := newMirror(t, due, registry(t, "docker.io", up.URL))
	m.keep("library/app", kept, gone)
	m.want(m.get("/v2/library/app/blobs/"+shared.Digest.String()), shared)
	m.want(m.get(tagPath("1")), index)
	m.want(m.get(tagPath("gone")), gone)
	m.want(m.get("/v2/a/evil/manifests/1"), index)
	m.settle()
	m.restart(due, registry(t, "docker.io", up.URL)) // a/evil now comes first

	up.Tag("library/app", "gone", "")
	m.wantError(m.get(tagPath("gone")), http.StatusNotFound, "MANIFEST_UNKNOWN")
	m.settleReleases()
	for d, orphaned := range map[digest.Digest]bool{gone.Digest: true, shared.Digest: false, kept.Digest: false, index.Digest: false} {
		if b, err := m.store.Blob(d); err != nil || b.Orphaned != orphaned {
			t.Errorf("%s is orphaned: %v, %v", d, b.Orphaned, err)
		}
	}
}

// TestRelease_Queue: the queue of deleted tags is bounded.
func TestRelease_Queue(t *testing.T) {
	t.Parallel()
	up := ut.New(t, ut.Options{})
	m := newMirror(t, nil, registry(t, "docker.io", up.URL))
	m.proxy.mu.Lock()
	m.proxy.releasing = true // as if a release were running
	m.proxy.mu.Unlock()
	for n := range maxReleased + 100 {
		m.proxy.release(storage.TagKey{Upstream: "docker.io", Repository: "library/app", Name: fmt.Sprint(n)}, digest.FromString("x"))
	}
	if n := len(m.proxy.released); n != maxReleased {
		t.Errorf("%d wait", n)
	}
}
