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
	// MaxDescriptors of one manifest are read. Images have up to 127 layers, artifacts more.
	MaxDescriptors = 10_000
	// MaxMediaType is the longest one (RFC 6838 section 4.2), with its slash.
	MaxMediaType = 255
	// maxPlatformPart bounds each part of a platform's name.
	maxPlatformPart = 64
)

// Manifest is what a manifest, of an image or an index, names.
type Manifest struct {
	MediaType    string
	ArtifactType string
	Manifests    []Descriptor
	Config       Descriptor // zero: none
	Layers       []Descriptor
	FSLayers     []Descriptor // of Docker's schema 1

	Read      int  // descriptors, those of a key that comes twice too
	Truncated bool // it names more
}

// Blobs are what a manifest names besides other manifests.
func (m *Manifest) Blobs() []Descriptor {
	var config []Descriptor
	if m.Config.Digest != "" {
		config = []Descriptor{m.Config}
	}
	return slices.Concat(config, m.Layers, m.FSLayers)
}

// IsIndex says whether a manifest names others.
func (m *Manifest) IsIndex() bool { return len(m.Manifests) > 0 }

// Descriptor is what is read of a descriptor. All its strings are short.
type Descriptor struct {
	Digest       digest.Digest
	MediaType    string
	ArtifactType string
	Size         int64 // as claimed; never negative
	Platform     *Platform
}

// Check is an error where the digest is none: a manifest may say anything.
func (d Descriptor) Check() error {
	_, err := storage.ParseDigest(string(d.Digest))
	return err
}

// Foreign says that a layer is not in the registry, but elsewhere (image-spec,
// layer.md, "Non-Distributable Layers").
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

// descriptor is what may be kept of it.
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

// mediaTypeOf is s, or "" where that is too long for a media type. What JSON has to
// escape counts for what comes of it.
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

// Platform is what an index says that a manifest is for, or a config that it is for.
type Platform struct{ OS, Architecture, Variant string }

// AllPlatforms is wanted by those who want each manifest of an index.
const AllPlatforms = "all"

// bounded is a platform with a short name; nil: none.
func (p *Platform) bounded() *Platform {
	if p == nil {
		return nil
	}
	return &Platform{bounds.TextTo(p.OS, maxPlatformPart), bounds.TextTo(p.Architecture, maxPlatformPart), bounds.TextTo(p.Variant, maxPlatformPart)}
}

// String is linux/arm64/v8.
func (p *Platform) String() string {
	name := p.OS + "/" + p.Architecture
	if p.Variant != "" {
		name += "/" + p.Variant
	}
	return name
}

// Matches says whether a platform is wanted: all, or linux/arm64, which is of any
// variant, or linux/arm/v7. A manifest without a platform matches all only.
func (p *Platform) Matches(wanted []string) bool {
	return slices.ContainsFunc(wanted, func(w string) bool {
		if w == AllPlatforms || p == nil {
			return w == AllPlatforms
		}
		return w == p.String() || w == p.OS+"/"+p.Architecture
	})
}

// Reader is the one way to read manifests, and configs of images. It decodes a few at a
// time, for one may be a single word of 4 MiB, which the decoder holds three times, and
// keeps of each what is asked for. The zero value has no budget of memory.
type Reader struct{ Memory *bounds.Memory }

// Manifest returns what a manifest of so many bytes names, up to so many descriptors, and
// how many bytes it has read for that; size is -1 where it is not known. It waits for its
// turn as long as ctx. The content is here: to wait for an upstream would be to keep
// others waiting.
func (r Reader) Manifest(ctx context.Context, content io.Reader, size int64, most int) (m Manifest, read int64, err error) {
	read, err = r.decode(ctx, content, size, func(d *json.Decoder) error { return m.decode(d, most) })
	return m, read, err
}

// Platform is Manifest for the platform in a config.
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

// decode reads a manifest as encoding/json does, but a descriptor at a time: a
// manifest of 4 MiB may have a million empty ones.
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

// decodeList reads a list of descriptors. Where a key comes twice, the last one
// counts, as for clients.
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

// skipped is a value that is passed over, without a copy of it.
type skipped struct{}

// UnmarshalJSON takes whatever there is.
func (*skipped) UnmarshalJSON([]byte) error { return nil }
