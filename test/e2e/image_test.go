//go:build e2e

package e2e

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"os"
	"path"
	"runtime"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cachalot-registry/cachalot/upstream/distributiontest"
	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// payloadSize is the size of the big layer, which does not compress.
const payloadSize = 20 << 20

const passwd = "root:x:0:0:root:/:/bin/busybox"

// mediaTypes are the media types of OCI or Docker.
type mediaTypes struct{ index, manifest, config, layer string }

func ociTypes() mediaTypes {
	return mediaTypes{
		ocispec.MediaTypeImageIndex, ocispec.MediaTypeImageManifest,
		ocispec.MediaTypeImageConfig, ocispec.MediaTypeImageLayerGzip,
	}
}

func dockerTypes() mediaTypes {
	const v2 = "application/vnd.docker.distribution."
	return mediaTypes{
		v2 + "manifest.list.v2+json", v2 + "manifest.v2+json",
		"application/vnd.docker.container.image.v1+json", "application/vnd.docker.image.rootfs.diff.tar.gzip",
	}
}

// layer is a compressed layer and its uncompressed digest.
type layer struct {
	upstreamtest.Content
	diffID digest.Digest
}

// file is a file of a layer.
type file struct {
	name string
	mode int64
	data []byte
}

func newLayer(t *testing.T, mediaType string, files ...file) layer {
	t.Helper()
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	made := map[string]bool{".": true}
	for _, f := range files {
		if dir := path.Dir(f.name); !made[dir] {
			made[dir] = true
			check(t, w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o755}))
		}
		check(t, w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: f.name, Mode: f.mode, Size: int64(len(f.data))}))
		_, err := w.Write(f.data)
		check(t, err)
	}
	check(t, w.Close())
	return compress(t, mediaType, archive.Bytes())
}

func compress(t *testing.T, mediaType string, archive []byte) layer {
	t.Helper()
	var b bytes.Buffer
	w, err := gzip.NewWriterLevel(&b, gzip.BestSpeed)
	check(t, err)
	_, err = w.Write(archive)
	check(t, err)
	check(t, w.Close())
	return layer{upstreamtest.NewContent(mediaType, b.Bytes()), digest.FromBytes(archive)}
}

// release is an image as buildx pushes it to Docker Hub: an index of two platforms, one of
// them this machine's, and an attestation.
type release struct {
	upstreamtest.Image                    // for this machine
	other              upstreamtest.Image // for another platform; clients here do not pull it
	attestation        upstreamtest.Image // of Image; dockerd 29 pulls it too
	version            string             // the content of /version
	payload            digest.Digest      // of the file /payload
}

// newRelease is an image of four layers. The last one has the file /version; all versions
// share the others.
func newRelease(t *testing.T, types mediaTypes, version string) release {
	t.Helper()
	payload := upstreamtest.Random(1, payloadSize)
	r := assemble(t, types,
		newLayer(t, types.layer, busybox(t)),
		newLayer(t, types.layer, file{"payload", 0o644, payload}),
		newLayer(t, types.layer, file{"etc/passwd", 0o644, []byte(passwd + "\n")}, file{"etc/empty", 0o644, nil}),
		newLayer(t, types.layer, file{"version", 0o644, []byte(version + "\n")}),
	)
	r.version, r.payload = version, digest.FromBytes(payload)
	return r
}

// otherRelease is an image of two layers. It shares none with newRelease, because content
// that one registry sent would not be fetched from another.
func otherRelease(t *testing.T, types mediaTypes, version string) release {
	t.Helper()
	payload := upstreamtest.Random(2, payloadSize/4)
	r := assemble(t, types,
		newLayer(t, types.layer, busybox(t), file{"payload", 0o644, payload}),
		newLayer(t, types.layer, file{"version", 0o644, []byte(version + "\n")}),
	)
	r.version, r.payload = version, digest.FromBytes(payload)
	return r
}

func busybox(t *testing.T) file {
	t.Helper()
	b, err := os.ReadFile("/bin/busybox")
	check(t, err)
	return file{"bin/busybox", 0o755, b}
}

// assemble makes a release from layers.
func assemble(t *testing.T, types mediaTypes, layers ...layer) release {
	t.Helper()
	here, there := ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}, ocispec.Platform{OS: "linux", Architecture: "s390x"}
	r := release{
		Image: newImage(t, types, here, nil, layers...),
		other: newImage(t, types, there, nil, layers...),
	}
	subject := r.Manifest.Digest
	statement := document(t, "application/vnd.in-toto+json", map[string]any{"subject": []any{subject}})
	nowhere := ocispec.Platform{OS: "unknown", Architecture: "unknown"}
	r.attestation = newImage(t, ociTypes(), nowhere,
		map[string]string{"in-toto.io/predicate-type": "https://slsa.dev/provenance/v1"}, layer{statement, statement.Digest})

	r.Index = document(t, types.index, ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: types.index,
		Manifests: []ocispec.Descriptor{
			listed(r.other, there, nil),
			listed(r.Image, here, nil),
			listed(r.attestation, nowhere, map[string]string{
				"vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": subject.String(),
			}),
		},
	})
	return r
}

// listed is an image's descriptor in an index.
func listed(img upstreamtest.Image, p ocispec.Platform, annotations map[string]string) ocispec.Descriptor {
	d := img.Manifest.Descriptor
	d.Platform, d.Annotations = &p, annotations
	return d
}

// newImage makes an image without an index.
func newImage(t *testing.T, types mediaTypes, p ocispec.Platform, annotations map[string]string, layers ...layer) upstreamtest.Image {
	t.Helper()
	config := ocispec.Image{Platform: p, RootFS: ocispec.RootFS{Type: "layers"}}
	manifest := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: types.manifest}
	var img upstreamtest.Image
	for _, l := range layers {
		img.Layers = append(img.Layers, l.Content)
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, l.diffID)
		d := l.Descriptor
		d.Annotations = annotations
		manifest.Layers = append(manifest.Layers, d)
	}
	img.Config = document(t, types.config, config)
	manifest.Config = img.Config.Descriptor
	img.Manifest = document(t, types.manifest, manifest)
	return img
}

func document(t *testing.T, mediaType string, v any) upstreamtest.Content {
	t.Helper()
	b, err := json.Marshal(v)
	check(t, err)
	return upstreamtest.NewContent(mediaType, b)
}

// publish pushes the release and sets the tag to its index.
func (r release) publish(up *distributiontest.Registry, repo, tag string) {
	for _, img := range []upstreamtest.Image{r.other, r.attestation} {
		up.PushBlob(repo, img.Blobs()...)
		up.PushManifest(repo, "", img.Manifest)
	}
	up.PushImage(repo, tag, r.Image)
}

// add adds the release to the scriptable registry.
func (r release) add(up *upstreamtest.Registry, repo, tag string) {
	for _, img := range []upstreamtest.Image{r.other, r.attestation} {
		up.AddBlob(repo, img.Blobs()...)
		up.AddManifest(repo, img.Manifest)
	}
	up.AddImage(repo, tag, r.Image)
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
