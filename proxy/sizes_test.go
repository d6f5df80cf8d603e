package proxy

import (
	"slices"
	"testing"

	"github.com/cachalot-registry/cachalot/proxy/image"
	ut "github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// TestLongBlob: if a manifest has told the size of a long blob, the blob is fetched in
// parts, over several connections if they are slow. No byte is fetched twice.
func TestLongBlob(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		size   int
		pulled bool // the manifest is pulled first
		faults []ut.Fault
		parts  bool // the mirror requests parts
	}{
		"slow connections":     {size: 48 << 20, pulled: true, faults: []ut.Fault{ut.Throttle(48 << 20)}, parts: true},
		"quick connections":    {size: 33 << 20, pulled: true, parts: true},
		"no manifest before":   {size: 33 << 20},
		"a short blob":         {size: 31 << 20, pulled: true},
		"no ranges":            {size: 33 << 20, pulled: true, faults: []ut.Fault{ut.IgnoreRange()}},
		"no ranges, no length": {size: 33 << 20, pulled: true, faults: []ut.Fault{ut.IgnoreRange(), ut.NoLength()}},
	} {
		t.Run(name, func(t *testing.T) { // not parallel: each one takes much memory
			up := ut.New(t, ut.Options{CDN: true})
			img := up.AddImage("library/app", "1", ut.NewImage(uint64(len(name)), tc.size, 1000))
			layer := img.Layers[0]
			up.Fault(ut.Match{Op: ut.CDN}, tc.faults...)
			m := newMirror(t, nil, registry(t, "docker.io", up.URL))
			manifest := "/v2/library/app/manifests/" + img.Manifest.Digest.String()
			if tc.pulled {
				m.want(m.get(manifest), img.Manifest)
			}
			m.want(m.get("/v2/library/app/blobs/"+layer.Digest.String()), layer)
			if sent := up.Sent(layer.Digest); sent != layer.Size {
				t.Errorf("%d bytes left the upstream for a blob of %d", sent, layer.Size)
			}
			var ranges []string
			for _, q := range up.Requests() {
				if q.Op == ut.CDN {
					ranges = append(ranges, q.Header.Get("Range"))
				}
			}
			switch asked := slices.Contains(ranges, "bytes=0-16777215"); {
			case tc.parts && (!asked || len(ranges) < 2):
				t.Errorf("asked for %q; want it in parts", ranges)
			case !tc.parts && len(ranges) != 1:
				t.Errorf("asked for %q; want one request", ranges)
			}
			m.want(m.get(manifest), img.Manifest) // also after it was read for sizes
		})
	}
}

// TestLongBlob_ManifestAlreadyStored: an earlier process may have stored the manifest.
func TestLongBlob_ManifestAlreadyStored(t *testing.T) {
	t.Parallel()
	up := ut.New(t, ut.Options{})
	img := up.AddImage("library/app", "1", ut.NewImage(1, 40<<20))
	r := registry(t, "docker.io", up.URL)
	m := newMirror(t, nil, r)
	manifest := "/v2/library/app/manifests/" + img.Manifest.Digest.String()
	m.want(m.get(manifest), img.Manifest)
	m.restart(nil, r)
	m.want(m.get(manifest), img.Manifest)
	m.want(m.get("/v2/library/app/blobs/"+img.Layers[0].Digest.String()), img.Layers[0])
	if got := up.Counts()[ut.GetBlob]; got < 2 {
		t.Errorf("%d requests for a long blob; want it in parts", got)
	}
}

// TestLongBlob_Many: one manifest does not use all room for sizes.
func TestLongBlob_Many(t *testing.T) {
	t.Parallel()
	up := ut.New(t, ut.Options{})
	img := ut.NewImage(1, 1000)
	list := ut.Layers(0, image.MaxDescriptors-1)
	for n := range list {
		list[n].Size = longBlob
	}
	list[0].Digest, list[1].Digest = "sha256:short", img.Layers[0].Digest
	many := ut.Manifest(0, list...)
	up.AddManifests("library/app", "1", img.Manifest, many)
	m := newMirror(t, nil, registry(t, "docker.io", up.URL))
	m.keep("library/app", img.Manifest, many)
	if n := m.proxy.sizes.Len(); n != maxNoted+2 || !m.proxy.sizes.Contains(content{"docker.io", img.Manifest.Digest}) || m.proxy.sizes.Contains(content{"docker.io", "sha256:short"}) {
		t.Errorf("%d sizes are known, want %d of one manifest", n, maxNoted)
	}
	if size, _ := m.proxy.sizes.Peek(content{"docker.io", img.Layers[0].Digest}); size != longBlob {
		t.Errorf("a layer is %d bytes long", size)
	}
}
