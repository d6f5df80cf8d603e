//go:build e2e

package e2e

import (
	"os"
	"strings"
	"sync"
	"testing"
)

// TestFleet: all clients pull a new Debian image at the same time. The upstream sends it once.
func TestFleet(t *testing.T) {
	t.Parallel()
	up := hub(t)
	archive, err := os.ReadFile(installed(t, "debian.tar"))
	check(t, err)
	r := assemble(t, ociTypes(), compress(t, ociTypes().layer, archive))
	r.publish(up, repository, "latest")
	up.Forget()

	m := newMirror(t, forEver, asHub(up.URL))
	fleet := []client{docker20(t, m), docker29(t, m), newPodman(t, m), newBuildah(t, m), newSkopeo(t, m), newCrane(t, m), newContainerd(t, m), newTransport(t, m)}
	errs := make([]error, len(fleet))
	var all sync.WaitGroup
	for i, c := range fleet {
		all.Go(func() { errs[i] = c.pull(t, image) })
	}
	all.Wait()
	got, requests := crossed(&up.Recorder)
	for _, err := range errs {
		check(t, err)
	}

	want := wire{Tokens: 1, Refused: 1, Heads: 1, Manifests: 2, Blobs: len(r.Blobs()), Bytes: r.Size()}
	want = want.plus(attested(r))                                                                      // by dockerd 29
	want = want.plus(wire{Manifests: 1, Blobs: 1, Bytes: r.other.Manifest.Size + r.other.Config.Size}) // by containerd
	want.Blobs = max(want.Blobs, got.Blobs)                                                            // a long layer comes in several requests; the bytes show that none is sent twice
	if got != want {
		t.Errorf("the upstream's wire: %+v, want %+v", got, want)
		report(t, requests)
	}
	for _, c := range fleet {
		c.holds(t, image, r.Image)
		if c, ok := c.(runner); ok {
			if out := c.run(t, image, "cat", "/etc/os-release"); !strings.Contains(out, "ID=debian") {
				t.Errorf("the container says %q", out)
			}
		}
	}
}
