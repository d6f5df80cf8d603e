package image

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/cachalot-registry/cachalot/bounds"
	"github.com/cachalot-registry/cachalot/storage"
	"github.com/cachalot-registry/cachalot/upstream"
)

const (
	// MaxDescriptors bounds the descriptors of one manifest that are read. Images have up to
	// 127 layers, artifacts more.
	MaxDescriptors = 10_000
	// MaxMediaType is the length of the longest one (RFC 6838 section 4.2), with its slash.
	MaxMediaType = 255
	// maxPlatformPart bounds each part of a platform's name.
	maxPlatformPart = 64
)

// Manifest is the content of a manifest, of an image or an index.
type Manifest struct {
	MediaType    string
	ArtifactType string
	Manifests    []Descriptor
	Config       Descriptor // zero: none
	Layers       []Descriptor
	FSLayers     []Descriptor // of Docker's schema 1

	Read      int  // how many descriptors, also those of a repeated key
	Truncated bool // it has more
}

// Blobs returns what a manifest names besides other manifests.
func (m *Manifest) Blobs() []Descriptor {
	var config []Descriptor
	if m.Config.Digest != "" {
		config = []Descriptor{m.Config}
	}
	return slices.Concat(config, m.Layers, m.FSLayers)
}

// IsIndex reports whether a manifest names other manifests.
func (m *Manifest) IsIndex() bool { return len(m.Manifests) > 0 }

// Descriptor is the part of a descriptor that is read. All its strings are short.
type Descriptor struct {
	Digest       digest.Digest
	MediaType    string
	ArtifactType string
	Size         int64 // as claimed; never negative
	Platform     *Platform
}

// Check returns an error if the digest is invalid: manifests are untrusted.
func (d Descriptor) Check() error {
	_, err := storage.ParseDigest(string(d.Digest))
	return err
}

// Foreign reports whether a layer is not in the registry, but elsewhere (image-spec, layer.md,
// "Non-Distributable Layers").
func (d Descriptor) Foreign() bool {
	return strings.Contains(d.MediaType, "nondistributable") || strings.Contains(d.MediaType, ".foreign.")
}

// said is a descriptor, or a layer of Docker's schema 1, as a manifest has it.
type said struct {
	Digest, BlobSum         digest.Digest
	MediaType, ArtifactType string
	Size                    int64
	Platform                *Platform
}

// descriptor returns it with its values checked and its strings bounded.
func (s said) descriptor() Descriptor {
	d := Descriptor{
		Digest: cmp.Or(s.Digest, s.BlobSum), MediaType: mediaTypeOf(s.MediaType), ArtifactType: mediaTypeOf(s.ArtifactType),
		Size: max(s.Size, 0), Platform: s.Platform.bounded(),
	}
	if d.Check() != nil {
		d.Digest = digest.Digest(bounds.Text(string(d.Digest)))
	}
	return d
}

// mediaTypeOf returns s, or "" if that is too long for a media type. Characters that JSON
// escapes count with their escaped length.
func mediaTypeOf(s string) string {
	length := len(s)
	for _, c := range []byte(s) {
		switch {
		case c < ' ', c > '~', c == '"', c == '<', c == '>', c == '&', c == '\\':
			length += len(`\u0000`) - 1
		}
		if length > MaxMediaType {
			return ""
		}
	}
	return s
}

// Platform is the platform of a manifest, as an index or the config says.
type Platform struct{ OS, Architecture, Variant string }

// AllPlatforms as a wanted platform matches each manifest of an index.
const AllPlatforms = "all"

// bounded returns a platform with short strings; nil: none.
func (p *Platform) bounded() *Platform {
	if p == nil {
		return nil
	}
	return &Platform{bounds.TextTo(p.OS, maxPlatformPart), bounds.TextTo(p.Architecture, maxPlatformPart), bounds.TextTo(p.Variant, maxPlatformPart)}
}

// String returns a name such as linux/arm64/v8.
func (p *Platform) String() string {
	name := p.OS + "/" + p.Architecture
	if p.Variant != "" {
		name += "/" + p.Variant
	}
	return name
}

// Matches reports whether a platform is wanted: all; linux/arm64, for any variant; or
// linux/arm/v7. A manifest without a platform matches all only.
func (p *Platform) Matches(wanted []string) bool {
	return slices.ContainsFunc(wanted, func(w string) bool {
		if w == AllPlatforms || p == nil {
			return w == AllPlatforms
		}
		return w == p.String() || w == p.OS+"/"+p.Architecture
	})
}

// Reader is the only type that decodes manifests, and configs of images. It decodes a few at a
// time, because one may be a single string of 4 MiB, which the decoder holds three times, and
// keeps only the fields that are needed. The zero value has no memory budget.
type Reader struct{ Memory *bounds.Memory }

// Manifest decodes a manifest of size bytes (-1: not known), up to most descriptors, and
// returns how many bytes it has read. It waits for its turn as long as ctx. The content must be
// stored: a wait for an upstream would delay others.
func (r Reader) Manifest(ctx context.Context, content io.Reader, size int64, most int) (m Manifest, read int64, err error) {
	read, err = r.decode(ctx, content, size, func(d *json.Decoder) error { return m.decode(d, most) })
	return m, read, err
}

// Platform decodes the platform in a config, as Manifest decodes a manifest.
func (r Reader) Platform(ctx context.Context, content io.Reader, size int64) (p *Platform, read int64, err error) {
	var config Platform
	read, err = r.decode(ctx, content, size, func(d *json.Decoder) error { return d.Decode(&config) })
	return config.bounded(), read, err
}

func (r Reader) decode(ctx context.Context, content io.Reader, size int64, decode func(*json.Decoder) error) (read int64, err error) {
	limited := &io.LimitedReader{R: content, N: upstream.MaxManifestSize}
	var invalid error
	if err := r.Memory.Work(ctx, size, func() { invalid = decode(json.NewDecoder(bufio.NewReader(limited))) }); err != nil {
		return 0, err
	}
	return upstream.MaxManifestSize - limited.N, invalid
}

// decode reads a manifest as encoding/json does, but one descriptor at a time: a manifest of 4
// MiB may have a million empty ones.
func (m *Manifest) decode(d *json.Decoder, most int) error {
	if err := begins(d, '{'); err != nil {
		return err
	}
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return err
		}
		name, _ := key.(string)
		is := func(known string) bool { return strings.EqualFold(name, known) }
		switch {
		case is("mediaType"):
			err = decodeMediaType(d, &m.MediaType)
		case is("artifactType"):
			err = decodeMediaType(d, &m.ArtifactType)
		case is("config"):
			m.Read++
			m.Config, err = decodeDescriptor(d)
		case is("manifests"):
			err = m.decodeList(d, &m.Manifests, most)
		case is("layers"):
			err = m.decodeList(d, &m.Layers, most)
		case is("fsLayers"):
			err = m.decodeList(d, &m.FSLayers, most)
		default:
			err = d.Decode(&skipped{})
		}
		if err != nil || m.Truncated {
			return err
		}
	}
	_, err := d.Token() // the end of the object
	return err
}

// decodeList reads a list of descriptors. If a key is repeated, the last one counts, as for
// clients.
func (m *Manifest) decodeList(d *json.Decoder, list *[]Descriptor, most int) error {
	*list = nil
	if err := begins(d, '['); errors.Is(err, errNull) {
		return nil
	} else if err != nil {
		return err
	}
	for d.More() {
		if m.Read >= most {
			m.Truncated = true
			return nil
		}
		m.Read++
		one, err := decodeDescriptor(d)
		if err != nil {
			return err
		}
		*list = append(*list, one)
	}
	_, err := d.Token() // the end of the list
	return err
}

func decodeDescriptor(d *json.Decoder) (Descriptor, error) {
	var one said
	err := d.Decode(&one)
	return one.descriptor(), err
}

func decodeMediaType(d *json.Decoder, into *string) error {
	var s string
	err := d.Decode(&s)
	*into = mediaTypeOf(s)
	return err
}

var (
	errNull    = errors.New("null")
	errUnknown = errors.New("not a manifest: its JSON has another type instead of an object or a list")
)

// begins reads the beginning of an object or a list.
func begins(d *json.Decoder, with json.Delim) error {
	token, err := d.Token()
	switch {
	case err != nil:
		return err
	case token == nil:
		return errNull
	case token != with:
		return errUnknown
	}
	return nil
}

// skipped is a value that is skipped, without a copy of it.
type skipped struct{}

// UnmarshalJSON accepts any value.
func (*skipped) UnmarshalJSON([]byte) error { return nil }
