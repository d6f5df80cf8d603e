package proxy

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
	// maxDescriptors of one manifest are read. Images have up to 127 layers, artifacts more.
	maxDescriptors = 10_000
	// maxMediaType is the longest one (RFC 6838 section 4.2), with its slash.
	maxMediaType = 255
	// maxPlatformPart bounds each part of a platform's name.
	maxPlatformPart = 64
)

// manifest is what a manifest, of an image or an index, names.
type manifest struct {
	mediaType    string
	artifactType string
	manifests    []descriptor
	config       descriptor // zero: none
	layers       []descriptor
	fsLayers     []descriptor // of Docker's schema 1

	named     int  // descriptors read, those of a key that comes twice too
	truncated bool // it names more
}

// blobs are what a manifest names besides other manifests.
func (m *manifest) blobs() []descriptor {
	var config []descriptor
	if m.config.Digest != "" {
		config = []descriptor{m.config}
	}
	return slices.Concat(config, m.layers, m.fsLayers)
}

// descriptor is what is read of a descriptor. All its strings are short.
type descriptor struct {
	Digest       digest.Digest
	MediaType    string
	ArtifactType string
	Size         int64 // as claimed; never negative
	Platform     *platform
}

// check is an error where the digest is none: a manifest may say anything.
func (d descriptor) check() error {
	_, err := storage.ParseDigest(string(d.Digest))
	return err
}

// foreign says that a layer is not in the registry, but elsewhere (image-spec,
// layer.md, "Non-Distributable Layers").
func (d descriptor) foreign() bool {
	return strings.Contains(d.MediaType, "nondistributable") || strings.Contains(d.MediaType, ".foreign.")
}

// said is a descriptor, or a layer of Docker's schema 1, as a manifest has it.
type said struct {
	Digest, BlobSum         digest.Digest
	MediaType, ArtifactType string
	Size                    int64
	Platform                *platform
}

// descriptor is what may be kept of it.
func (s said) descriptor() descriptor {
	d := descriptor{
		Digest: cmp.Or(s.Digest, s.BlobSum), MediaType: mediaTypeOf(s.MediaType), ArtifactType: mediaTypeOf(s.ArtifactType),
		Size: max(s.Size, 0), Platform: s.Platform.bounded(),
	}
	if d.check() != nil {
		d.Digest = digest.Digest(bounded(string(d.Digest)))
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
		if length > maxMediaType {
			return ""
		}
	}
	return s
}

// platform is what an index says that a manifest is for, or a config that it is for.
type platform struct{ OS, Architecture, Variant string }

// bounded is a platform with a short name; nil: none.
func (p *platform) bounded() *platform {
	if p == nil {
		return nil
	}
	return &platform{boundedTo(p.OS, maxPlatformPart), boundedTo(p.Architecture, maxPlatformPart), boundedTo(p.Variant, maxPlatformPart)}
}

// String is linux/arm64/v8.
func (p *platform) String() string {
	name := p.OS + "/" + p.Architecture
	if p.Variant != "" {
		name += "/" + p.Variant
	}
	return name
}

// fits says whether a platform is wanted: all, or linux/arm64, which is of any
// variant, or linux/arm/v7. A manifest without a platform fits all only.
func (p *platform) fits(wanted []string) bool {
	return slices.ContainsFunc(wanted, func(w string) bool {
		if w == allPlatforms || p == nil {
			return w == allPlatforms
		}
		return w == p.String() || w == p.OS+"/"+p.Architecture
	})
}

// manifestReader is the one way to read manifests, and configs of images. It decodes a
// few at a time, for one may be a single word of 4 MiB, which the decoder holds three
// times, and keeps of each what is asked for.
type manifestReader struct{ memory *bounds.Memory }

// manifest returns what a manifest of so many bytes names, up to so many descriptors, and
// how many bytes it has read for that; size is -1 where it is not known. It waits for its
// turn as long as ctx. The content is here: to wait for an upstream would be to keep
// others waiting.
func (r manifestReader) manifest(ctx context.Context, content io.Reader, size int64, most int) (m manifest, read int64, err error) {
	read, err = r.decode(ctx, content, size, func(d *json.Decoder) error { return m.decode(d, most) })
	return m, read, err
}

// platform is manifest for the platform in a config.
func (r manifestReader) platform(ctx context.Context, content io.Reader, size int64) (p *platform, read int64, err error) {
	var config platform
	read, err = r.decode(ctx, content, size, func(d *json.Decoder) error { return d.Decode(&config) })
	return config.bounded(), read, err
}

func (r manifestReader) decode(ctx context.Context, content io.Reader, size int64, decode func(*json.Decoder) error) (read int64, err error) {
	limited := &io.LimitedReader{R: content, N: upstream.MaxManifestSize}
	var invalid error
	if err := r.memory.Work(ctx, size, func() { invalid = decode(json.NewDecoder(bufio.NewReader(limited))) }); err != nil {
		return 0, err
	}
	return upstream.MaxManifestSize - limited.N, invalid
}

// decode reads a manifest as encoding/json does, but a descriptor at a time: a
// manifest of 4 MiB may have a million empty ones.
func (m *manifest) decode(d *json.Decoder, most int) error {
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
			err = decodeMediaType(d, &m.mediaType)
		case is("artifactType"):
			err = decodeMediaType(d, &m.artifactType)
		case is("config"):
			m.named++
			m.config, err = decodeDescriptor(d)
		case is("manifests"):
			err = m.decodeList(d, &m.manifests, most)
		case is("layers"):
			err = m.decodeList(d, &m.layers, most)
		case is("fsLayers"):
			err = m.decodeList(d, &m.fsLayers, most)
		default:
			err = d.Decode(&skipped{})
		}
		if err != nil || m.truncated {
			return err
		}
	}
	_, err := d.Token() // the end of the object
	return err
}

// decodeList reads a list of descriptors. Where a key comes twice, the last one
// counts, as for clients.
func (m *manifest) decodeList(d *json.Decoder, list *[]descriptor, most int) error {
	*list = nil
	if err := begins(d, '['); errors.Is(err, errNull) {
		return nil
	} else if err != nil {
		return err
	}
	for d.More() {
		if m.named >= most {
			m.truncated = true
			return nil
		}
		m.named++
		one, err := decodeDescriptor(d)
		if err != nil {
			return err
		}
		*list = append(*list, one)
	}
	_, err := d.Token() // the end of the list
	return err
}

func decodeDescriptor(d *json.Decoder) (descriptor, error) {
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
	errUnknown = errors.New("no manifest: its JSON has something else in the place of an object or a list")
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
