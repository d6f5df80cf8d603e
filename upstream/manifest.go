package upstream

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/http"
	"unicode/utf8"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// errNamed: a registry names another digest than that of what it sent.
var errNamed = errors.New("the answer for a tag does not have the digest that it names")

// readManifest checks what a registry sent for a tag: a manifest, and the one whose
// digest it names. If not, the error is errNamed, and the digest is that of the bytes.
func readManifest(resp *http.Response, b []byte) (Resolved, error) {
	m := parseManifest(b)
	if !m.isManifest() {
		return Resolved{}, errors.New("the answer for a tag is not a manifest")
	}
	d := digest.FromBytes(b)
	var err error
	switch named := namedDigest(resp); {
	case named == "" || !named.Algorithm().Available():
		if !m.isSound() {
			return Resolved{}, errors.New("the answer for a tag is a damaged manifest")
		}
	case named == d: // as of most
	case named.Algorithm().FromBytes(b) == named:
		d = named
	case !isSigned(b, named):
		err = errNamed
	}
	return Resolved{Descriptor: ocispec.Descriptor{MediaType: m.mediaType(mediaType(KindManifest, resp)), Digest: d, Size: int64(len(b))}, Content: b}, err
}

// manifestBody is what tells manifests from other things, and from each other, and whether
// one is damaged. It is small, whatever was parsed.
type manifestBody struct {
	SchemaVersion json.Number `json:"schemaVersion"`
	MediaType     string      `json:"mediaType"`
	Manifests     descriptors `json:"manifests"`
	Layers        descriptors `json:"layers"`
	Config        descriptors `json:"config"`
	Errors        descriptors `json:"errors"`

	parsed bool
	utf8   bool
}

func parseManifest(b []byte) manifestBody {
	m := manifestBody{utf8: utf8.Valid(b)}
	m.parsed = json.Unmarshal(b, &m) == nil
	return m
}

// isManifest reports whether it may be a manifest: an object of JSON that has what all
// kinds of manifests have one of, and a page, an error or the half of one have not.
func (m manifestBody) isManifest() bool {
	if !m.parsed || m.Errors.there && m.SchemaVersion == "" || m.Manifests.there && !m.Manifests.list || m.Layers.there && !m.Layers.list {
		return false
	}
	return m.SchemaVersion != "" || m.MediaType != "" || m.Manifests.there || m.Layers.there
}

// isSound reports whether a manifest shows no damage, where no digest tells: it is UTF-8
// (RFC 8259 section 8.1), and the digests in it are some.
func (m manifestBody) isSound() bool {
	return m.utf8 && m.parsed && !m.Layers.damaged && !m.Manifests.damaged && !m.Config.damaged
}

// mediaType is the manifest's: what its answer said, or where that is none that a
// manifest can have, what the manifest itself says, or looks like.
func (m manifestBody) mediaType(said string) string {
	switch {
	case said != "" || !m.parsed:
		return said
	case isManifestType(m.MediaType):
		return m.MediaType
	case m.Manifests.there:
		return ocispec.MediaTypeImageIndex
	case m.Layers.there:
		return ocispec.MediaTypeImageManifest
	case m.SchemaVersion == "1":
		return "application/vnd.docker.distribution.manifest.v1+json"
	}
	return ""
}

// maxDescriptors of a list are looked at. Images have up to 127 layers.
const maxDescriptors = 10_000

// descriptors is what is looked at of a descriptor or a list of them. Nothing of it is
// kept: a list may have a million.
type descriptors struct {
	there   bool // and not null
	list    bool
	damaged bool // a digest in it is none
}

// UnmarshalJSON takes whatever there is.
func (d *descriptors) UnmarshalJSON(text []byte) error {
	*d = descriptors{there: string(text) != "null", list: text[0] == '['}
	all := json.NewDecoder(bytes.NewReader(text))
	if d.list {
		_, _ = all.Token() // its beginning
	}
	for i := 0; i < maxDescriptors && all.More() && !d.damaged; i++ {
		var one struct{ Digest digest.Digest }
		err := all.Decode(&one)
		if err == nil && one.Digest != "" {
			err = one.Digest.Validate()
		}
		d.damaged = err != nil && !errors.Is(err, digest.ErrDigestUnsupported)
	}
	return nil
}
