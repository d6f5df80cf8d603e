//go:build e2e

package e2e

import (
	"fmt"
	"testing"

	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// half of the big layer
const half = payloadSize / 2

// fragile is a scriptable upstream with an image, and the match of its big layer.
func fragile(t *testing.T) (up *upstreamtest.Registry, r release, bigLayer upstreamtest.Match) {
	t.Helper()
	up = upstreamtest.New(t, upstreamtest.Options{Auth: upstreamtest.Bearer, CDN: true})
	r = newRelease(t, ociTypes(), "one")
	r.add(up, repository, "latest")
	return up, r, upstreamtest.Match{Op: upstreamtest.CDN, Reference: r.Layers[1].Digest.String(), Times: 1}
}

// TestDocker_UpstreamCut: the upstream connection breaks in the middle of the big layer. The mirror
// resumes there, and dockerd does not notice: it requests each blob once.
func TestDocker_UpstreamCut(t *testing.T) {
	t.Parallel()
	for name, start := range engines() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			up, r, bigLayer := fragile(t)
			m := newMirror(t, forEver, asHub(up.URL))
			e := start(t, m)
			cut := up.Fault(bigLayer, upstreamtest.CutAfter(half))

			check(t, e.pull(t, image))
			e.holds(t, image, r.Image)
			runs(t, e, image, r)
			if cut.Applied() != 1 {
				t.Error("the layer was not cut")
			}
			if n := resumed(t, up, r); n != half {
				t.Errorf("the layer was cut at %d, and resumed at %d", half, n)
			}
			blobs := map[string]bool{}
			for _, q := range up.Select(upstreamtest.Match{Op: upstreamtest.GetBlob}) {
				blobs[q.Reference] = true
			}
			if n := m.metrics(t).sum("cachalot_requests_total", "kind")["blob"]; n != int64(len(blobs)) {
				t.Errorf("dockerd asked %d times for %d blobs", n, len(blobs))
			}
		})
	}
}

// TestDocker_MirrorKilled: the mirror is killed in the middle of the big layer and started again. The
// pull or the next one succeeds, and the part on disk is not downloaded again.
func TestDocker_MirrorKilled(t *testing.T) {
	t.Parallel()
	for name, start := range engines() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			up, r, bigLayer := fragile(t)
			m := newMirror(t, forEver, asHub(up.URL))
			e := start(t, m)
			up.Fault(bigLayer, upstreamtest.StallAfter(half, nil))

			pulled := make(chan error, 1)
			go func() { pulled <- e.pull(t, image) }()
			m.until(t, "in the middle of the layer", func() error {
				if n := m.metrics(t).sum("cachalot_fetched_bytes_total", "kind")["blob"]; n < half {
					return fmt.Errorf("%d bytes of blobs fetched", n)
				}
				return nil
			})
			m.kill()
			m.start(t)
			if err := <-pulled; err != nil {
				t.Logf("the pull whose mirror was killed: %v", err)
				check(t, e.pull(t, image))
			}
			e.holds(t, image, r.Image)
			runs(t, e, image, r)
			resumed(t, up, r)
		})
	}
}

// resumed returns the offset of the second request for the big layer. There must be no
// third one, and few bytes may be sent twice.
func resumed(t *testing.T, up *upstreamtest.Registry, r release) (offset int64) {
	t.Helper()
	big := r.Layers[1]
	requests := up.Select(upstreamtest.Match{Op: upstreamtest.CDN, Reference: big.Digest.String()})
	if len(requests) != 2 {
		t.Fatalf("the layer was asked for %d times, want 2", len(requests))
	}
	if _, err := fmt.Sscanf(requests[1].Header.Get("Range"), "bytes=%d-", &offset); err != nil {
		t.Errorf("the layer was asked for again from its beginning: %v", err)
	}
	sent := up.Sent(big.Digest)
	t.Logf("the layer of %d bytes was resumed at %d and cost the upstream %d", big.Size, offset, sent)
	if sent > big.Size+big.Size/4 {
		t.Errorf("the layer of %d bytes cost the upstream %d", big.Size, sent)
	}
	return offset
}
