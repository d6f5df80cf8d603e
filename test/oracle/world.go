package oracle

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	ut "github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// The repositories of each registry. Quirks of objects affect the sick one.
const (
	sick    = "library/sick"
	healthy = "library/healthy"
)

// Tag is the tag that clients pull.
const Tag = "latest"

// root is the manifest of a tag.
type root struct{ ut.Content }

// is reports whether d is the root's digest, with any algorithm. The algorithm may be the
// registry's or the client's choice.
func (r root) is(d digest.Digest) bool {
	return d.Validate() == nil && d.Algorithm().FromBytes(r.Bytes) == d
}

// image is all content of a pull by tag.
type image struct {
	root      root
	manifests []ut.Content // the root and its children
	blobs     []ut.Content
}

func (i image) contents() []ut.Content {
	return append(slices.Clip(i.manifests), i.blobs...)
}

// world is a registry drawn from a seed, with its quirks. One draw builds two of them: for
// direct pulls, and for the mirror.
type world struct {
	up            *ut.Registry
	vanity        *ut.Registry // redirects every request to up; nil: none
	first, second image        // of the sick repository, before and after its tag moves
	other         image        // of the healthy one
	signature     ut.Content   // referrer of the healthy image, in both repositories
}

// draw is the description of a registry, from a seed.
type draw struct {
	seed   uint64
	client Client
	both   bool // two clients at once
	single bool // the tag names a manifest, not an index
	docker bool // Docker's media types
	sha512 bool
	vanity bool // its domain redirects to another registry
	spare  bool // the mirror has a second URL, of a registry without quirks
	sizes  []int
	quirks []quirk
	outage outage
}

// newDraw draws a registry.
func newDraw(seed uint64, clients []Client) *draw {
	r := rand.New(rand.NewPCG(seed, 0)) //nolint:gosec // repeatable
	d := &draw{
		seed: seed, client: clients[r.IntN(len(clients))],
		both: r.IntN(4) == 0, single: r.IntN(3) == 0, docker: r.IntN(3) == 0, sha512: r.IntN(16) == 0,
		vanity: r.IntN(12) == 0, spare: r.IntN(12) == 0,
	}
	for range 1 + r.IntN(3) {
		d.sizes = append(d.sizes, []int{16, 100, 20_000, 200_000}[r.IntN(4)])
	}
	for range 1 + r.IntN(3) {
		kinds := kinds()
		d.quirks = append(d.quirks, kinds[r.IntN(len(kinds))](r))
	}
	for _, q := range d.quirks {
		d.sha512 = d.sha512 && !q.misnamed
	}
	outages := outages()
	d.outage = outages[r.IntN(len(outages))]
	return d
}

func (d *draw) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "seed %d: %s", d.seed, d.client.Name)
	for name, is := range map[string]bool{"twice at once": d.both, "no index": d.single, "Docker's media types": d.docker, "sha512": d.sha512, "a vanity domain": d.vanity, "a second URL": d.spare} {
		if is {
			b.WriteString(", " + name)
		}
	}
	fmt.Fprintf(&b, ", layers of %v", d.sizes)
	for _, q := range d.quirks {
		b.WriteString("\n    " + q.name)
	}
	fmt.Fprintf(&b, "\n    outage: %s", d.outage.name)
	return b.String()
}

// build builds the registry of a draw.
func (d *draw) build(tb ut.TB, network *ut.Memory) *world {
	tb.Helper()
	options := ut.Options{Memory: network}
	for _, q := range d.quirks {
		if q.option != nil {
			q.option(&options)
		}
	}
	w := &world{
		up:    ut.New(tb, options),
		first: d.image(d.seed<<8 + 1), second: d.image(d.seed<<8 + 2), other: d.image(d.seed<<8 + 3),
	}
	if d.vanity {
		w.vanity = ut.New(tb, ut.Options{Memory: network})
		w.vanity.Fault(ut.Match{}, ut.RedirectTo(w.up.URL))
	}
	w.signature = ut.Subject(w.other.root.Descriptor, "application/vnd.example.signature")
	for repo, images := range map[string][]image{sick: {w.first, w.second}, healthy: {w.other}} {
		for _, i := range images {
			for _, m := range i.manifests {
				w.up.AddManifest(repo, m)
			}
			for _, b := range i.blobs {
				w.up.AddBlob(repo, b)
			}
		}
		for _, tag := range tagsOf() {
			w.up.Tag(repo, tag, images[0].root.Digest)
		}
		w.up.AddManifest(repo, w.signature)
	}
	return w
}

// has reports whether b is content of the images.
func (w *world) has(b []byte) bool {
	for _, i := range []image{w.first, w.second, w.other} {
		if slices.ContainsFunc(i.contents(), func(c ut.Content) bool { return bytes.Equal(c.Bytes, b) }) {
			return true
		}
	}
	return false
}

// url is the URL for clients.
func (w *world) url() string {
	if w.vanity != nil {
		return w.vanity.URL
	}
	return w.up.URL
}

// host is the host:port of url.
func (w *world) host() string { return strings.TrimPrefix(w.url(), "http://") }

// count is the number of requests so far.
func (w *world) count() int {
	n := w.up.Count()
	if w.vanity != nil {
		n += w.vanity.Count()
	}
	return n
}

// moves moves the sick repository's tag to its second image.
func (w *world) moves() { w.up.Tag(sick, Tag, w.second.root.Digest) }

// begin starts the quirks of a phase. Brief ones end with it.
func (w *world) begin(d *draw, at phase) (end func()) {
	var brief []*ut.Scripted
	for _, q := range d.quirks {
		if q.faults == nil || q.from != at {
			continue
		}
		faults := q.faults(w)
		if q.brief {
			brief = append(brief, faults...)
		}
	}
	return func() {
		for _, f := range brief {
			f.Remove()
		}
	}
}

// image makes an image. The same number gives the same image.
func (d *draw) image(number uint64) image {
	algorithm := digest.SHA256
	if d.sha512 {
		algorithm = digest.SHA512
	}
	types := [4]string{ocispec.MediaTypeImageIndex, ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageConfig, ocispec.MediaTypeImageLayer}
	if d.docker {
		types = [4]string{
			"application/vnd.docker.distribution.manifest.list.v2+json", "application/vnd.docker.distribution.manifest.v2+json",
			"application/vnd.docker.container.image.v1+json", "application/vnd.docker.image.rootfs.diff.tar",
		}
	}
	var img image
	manifest := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: types[1]}
	var diffs []digest.Digest
	for n, size := range d.sizes {
		layer := ut.NewContentBy(algorithm, types[3], ut.Random(number<<8+uint64(n), size))
		img.blobs = append(img.blobs, layer)
		manifest.Layers = append(manifest.Layers, layer.Descriptor)
		diffs = append(diffs, layer.Digest)
	}
	platform := ocispec.Platform{OS: "linux", Architecture: "amd64"}
	config := ut.NewContentBy(algorithm, types[2], encode(ocispec.Image{
		Author: fmt.Sprint(number), Platform: platform, RootFS: ocispec.RootFS{Type: "layers", DiffIDs: diffs},
	}))
	manifest.Config = config.Descriptor
	img.blobs = append(img.blobs, config)
	img.root = root{ut.NewContentBy(algorithm, types[1], encode(manifest))}
	img.manifests = []ut.Content{img.root.Content}
	if d.single {
		return img
	}
	entry := img.root.Descriptor
	entry.Platform = &platform
	img.root = root{ut.NewContentBy(algorithm, types[0], encode(ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: types[0], Manifests: []ocispec.Descriptor{entry},
	}))}
	img.manifests = append(img.manifests, img.root.Content)
	return img
}

func encode(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // these always marshal
	}
	return b
}
