package upstreamtest

import (
	"encoding/json"
	"math/rand/v2"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Content is a manifest or blob and what names it.
type Content struct {
	ocispec.Descriptor
	Bytes []byte
}

// NewContent describes b by its sha256.
func NewContent(mediaType string, b []byte) Content {
	return NewContentBy(digest.SHA256, mediaType, b)
}

// NewContentBy describes b by a digest of the given algorithm.
func NewContentBy(algorithm digest.Algorithm, mediaType string, b []byte) Content {
	return Content{
		Descriptor: ocispec.Descriptor{MediaType: mediaType, Digest: algorithm.FromBytes(b), Size: int64(len(b))},
		Bytes:      b,
	}
}

// Random returns size bytes that depend only on seed and do not compress.
func Random(seed uint64, size int) []byte {
	b := make([]byte, size)
	var key [32]byte
	for i := range 8 {
		key[i] = byte(seed >> (8 * i))
	}
	_, _ = rand.NewChaCha8(key).Read(b) // never fails
	return b
}

// Image is an index of one manifest with a config and layers. Its layers are
// random bytes and cannot be unpacked.
type Image struct {
	Index, Manifest, Config Content
	Layers                  []Content
}

// NewImage makes an image with layers of the given sizes in bytes, always the
// same one for the same arguments.
func NewImage(seed uint64, layerSizes ...int) Image {
	return NewImageBy(digest.SHA256, seed, layerSizes...)
}

// NewImageBy is NewImage with another digest algorithm throughout.
func NewImageBy(algorithm digest.Algorithm, seed uint64, layerSizes ...int) Image {
	var img Image
	manifest := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	var diffs []digest.Digest
	for i, size := range layerSizes {
		layer := NewContentBy(algorithm, ocispec.MediaTypeImageLayer, Random(seed<<16+uint64(i), size))
		img.Layers = append(img.Layers, layer)
		manifest.Layers = append(manifest.Layers, layer.Descriptor)
		diffs = append(diffs, layer.Digest)
	}
	platform := ocispec.Platform{OS: "linux", Architecture: "amd64"}
	img.Config = NewContentBy(algorithm, ocispec.MediaTypeImageConfig, encode(ocispec.Image{
		Author: "seed " + digest.FromBytes(Random(seed, 8)).Encoded()[:16], Platform: platform,
		RootFS: ocispec.RootFS{Type: "layers", DiffIDs: diffs},
	}))
	manifest.Config = img.Config.Descriptor
	img.Manifest = NewContentBy(algorithm, manifest.MediaType, encode(manifest))
	entry := img.Manifest.Descriptor
	entry.Platform = &platform
	img.Index = NewContentBy(algorithm, ocispec.MediaTypeImageIndex, encode(ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex,
		Manifests: []ocispec.Descriptor{entry},
	}))
	return img
}

// Blobs are the config and the layers.
func (i Image) Blobs() []Content { return append([]Content{i.Config}, i.Layers...) }

// Size is the sum of everything in the image, in bytes.
func (i Image) Size() int64 {
	n := i.Index.Size + i.Manifest.Size
	for _, b := range i.Blobs() {
		n += b.Size
	}
	return n
}

// Subject makes an artifact manifest that refers to target, as the referrers
// API lists it.
func Subject(target ocispec.Descriptor, artifactType string) Content {
	return NewContent(ocispec.MediaTypeImageManifest, encode(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		ArtifactType: artifactType, Config: ocispec.DescriptorEmptyJSON,
		Layers: []ocispec.Descriptor{ocispec.DescriptorEmptyJSON}, Subject: &target,
	}))
}

// encode is json.Marshal of the types above, which cannot fail.
func encode(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}
