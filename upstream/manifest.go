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

// errNamed: the digest that a registry names is not that of the bytes that it sent.
var errNamed = errors.New("the answer for a tag does not have the digest that it names")

// readManifest checks the response for a tag: it must be a manifest with the digest that
// the registry names. If the digest differs, the error is errNamed, and the result has
// the digest of the bytes.
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
	case named == d: // the usual case
	case named.Algorithm().FromBytes(b) == named:
		d = named
	case !isSigned(b, named):
		err = errNamed
	}
	return Resolved{Descriptor: ocispec.Descriptor{MediaType: m.mediaType(mediaType(KindManifest, resp)), Digest: d, Size: int64(len(b))}, Content: b}, err
}

// manifestBody has the fields that distinguish manifests from other content and from each
// other, and show whether one is damaged. It is small, whatever was parsed.
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

// isManifest reports whether the body may be a manifest: a JSON object with at least one
// field that a web page, an error or a truncated manifest does not have.
func (m manifestBody) isManifest() bool {
	if !m.parsed || m.Errors.there && m.SchemaVersion == "" || m.Manifests.there && !m.Manifests.list || m.Layers.there && !m.Layers.list {
		return false
	}
	return m.SchemaVersion != "" || m.MediaType != "" || m.Manifests.there || m.Layers.there
}

// isSound reports whether a manifest shows no damage, if there is no digest to verify: it
// is UTF-8 (RFC 8259 section 8.1), and the digests in it are valid.
func (m manifestBody) isSound() bool {
	return m.utf8 && m.parsed && !m.Layers.damaged && !m.Manifests.damaged && !m.Config.damaged
}

// mediaType returns the manifest's media type: said, from the response, or if that is "",
// what the manifest itself says, or what its fields look like.
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

// maxDescriptors is how many descriptors of a list are checked. Images have up to 127 layers.
const maxDescriptors = 10_000

// descriptors is the result of checking a descriptor or a list of them. The descriptors
// are not stored: a list may have a million.
type descriptors struct {
	there   bool // the field exists, and is not null
	list    bool
	damaged bool // a digest in it is invalid
}

// UnmarshalJSON accepts any value.
func (d *descriptors) UnmarshalJSON(text []byte) error {
	*d = descriptors{there: string(text) != "null", list: text[0] == '['}
	all := json.NewDecoder(bytes.NewReader(text))
	if d.list {
		_, _ = all.Token() // the opening bracket
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
