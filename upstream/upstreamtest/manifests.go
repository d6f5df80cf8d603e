package upstreamtest

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Index is an index of manifests.
func Index(manifests ...ocispec.Descriptor) Content {
	return marshal(ocispec.MediaTypeImageIndex, ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: manifests})
}

// Manifest is a manifest of layers with the config [Empty]. Each n makes another manifest.
func Manifest(n int, layers ...ocispec.Descriptor) Content {
	return marshal(ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Config: ocispec.DescriptorEmptyJSON,
		Layers: layers, Annotations: map[string]string{"n": fmt.Sprint(n)},
	})
}

func marshal(mediaType string, v any) Content {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // these types always marshal
	}
	return NewContent(mediaType, b)
}

// Padded is a manifest of size bytes that names nothing.
func Padded(n, size int) Content {
	begin := fmt.Sprintf(`{"mediaType":%q,"annotations":{"n":"%d","x":"`, ocispec.MediaTypeImageManifest, n)
	return NewContent(ocispec.MediaTypeImageManifest, []byte(begin+strings.Repeat("x", size-len(begin)-len(`"}}`))+`"}}`))
}

// Layers returns the descriptors of n blobs that no registry has.
func Layers(from, n int) []ocispec.Descriptor {
	list := make([]ocispec.Descriptor, n)
	for i := range list {
		list[i] = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromString(fmt.Sprint(from + i)), Size: 10}
	}
	return list
}

// Empty is the config of [Manifest].
func Empty() Content {
	return NewContent(ocispec.MediaTypeEmptyJSON, ocispec.DescriptorEmptyJSON.Data)
}

// AddManifests adds manifests and their config. A tag points to the last one.
func (r *Registry) AddManifests(repo, tag string, manifests ...Content) {
	r.AddBlob(repo, Empty())
	for i, m := range manifests {
		if i == len(manifests)-1 {
			r.AddManifest(repo, m, tag)
		} else {
			r.AddManifest(repo, m)
		}
	}
}
