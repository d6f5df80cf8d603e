package proxy

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cachalot-registry/cachalot/storage"
	"github.com/cachalot-registry/cachalot/upstream"
)

// image is an image's name, as people write it, read.
type image struct {
	upstream, repo string
	tag            string
	digest         digest.Digest // it counts where there are both
}

// String is the name in full.
func (i image) String() string {
	name := i.upstream + "/" + i.repo
	if i.tag != "" {
		name += ":" + i.tag
	}
	if i.digest != "" {
		name += "@" + string(i.digest)
	}
	return name
}

// parseImage reads a name as docker does, by the names and aliases of upstreams
// too: alpine is docker.io/library/alpine. It need not be of a configured one,
// for what is kept may be of an earlier one.
func (p *Proxy) parseImage(parameter, name string) (image, error) {
	if name == "" {
		return image{}, invalid(parameter, "missing; write an image such as docker.io/library/alpine:3.22")
	}
	if first, rest, more := strings.Cut(name, "/"); more && isRegistry(first, rest, "") {
		name = p.registries.name(first) + "/" + rest
	}
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil || len(name) > maxName+200 {
		return image{}, invalid(parameter, "%q is not the name of an image; write one such as docker.io/library/alpine:3.22", bounded(name))
	}
	i := image{upstream: strings.ToLower(reference.Domain(named)), repo: reference.Path(named)}
	if t, ok := named.(reference.Tagged); ok {
		i.tag = t.Tag()
	}
	if d, ok := named.(reference.Digested); ok {
		if i.digest, err = storage.ParseDigest(string(d.Digest())); err != nil {
			return image{}, invalid(parameter, "%v; digests are sha256: or sha512: and lower-case hexadecimal", err)
		}
	}
	return i, nil
}

// parseRepository is parseImage of a name without a tag.
func (p *Proxy) parseRepository(parameter, name string) (image, error) {
	i, err := p.parseImage(parameter, name)
	if err == nil && (i.tag != "" || i.digest != "") {
		err = invalid(parameter, "%q has a tag or digest; write the repository alone: %s/%s", bounded(name), i.upstream, i.repo)
	}
	return i, err
}

// ImageAnswer is what GET image says: what is kept of an image.
type ImageAnswer struct {
	Image     string           `json:"image"`
	Name      string           `json:"name"`
	Tag       string           `json:"tag,omitempty"`
	Digest    digest.Digest    `json:"digest"`
	MediaType string           `json:"media_type,omitempty"`
	Checked   time.Time        `json:"checked,omitzero"`
	State     string           `json:"state,omitempty"`
	Pinned    bool             `json:"pinned"`
	PinnedBy  []string         `json:"pinned_by"`
	Complete  bool             `json:"complete"`
	Size      int64            `json:"size"`
	KeptSize  int64            `json:"kept_size"`
	Manifests []ManifestAnswer `json:"manifests"`
	Truncated bool             `json:"truncated"`
}

// ManifestAnswer is a manifest of an image, which is no index.
type ManifestAnswer struct {
	Digest       digest.Digest `json:"digest"`
	MediaType    string        `json:"media_type,omitempty"`
	ArtifactType string        `json:"artifact_type,omitempty"`
	Platform     string        `json:"platform,omitempty"`
	Kept         bool          `json:"kept"`
	Complete     bool          `json:"complete"`
	Size         int64         `json:"size"`
	KeptSize     int64         `json:"kept_size"`
	Config       *LayerAnswer  `json:"config,omitempty"`
	Layers       []LayerAnswer `json:"layers"`
}

// LayerAnswer is a layer, or a config.
type LayerAnswer struct {
	Digest    digest.Digest `json:"digest"`
	MediaType string        `json:"media_type,omitempty"`
	Size      int64         `json:"size"`
	Kept      bool          `json:"kept"`
}

// manifestBody is what is read of any manifest.
type manifestBody struct {
	MediaType    string               `json:"mediaType"`
	ArtifactType string               `json:"artifactType"`
	Manifests    []ocispec.Descriptor `json:"manifests"`
	Config       ocispec.Descriptor   `json:"config"`
	Layers       []ocispec.Descriptor `json:"layers"`
	FSLayers     []struct {
		BlobSum digest.Digest `json:"blobSum"`
	} `json:"fsLayers"` // Docker's schema 1
}

// blobs are what a manifest names besides other manifests.
func (m manifestBody) blobs() []ocispec.Descriptor {
	var all []ocispec.Descriptor
	if m.Config.Digest != "" {
		all = append(all, m.Config)
	}
	all = append(all, m.Layers...)
	for _, l := range m.FSLayers {
		all = append(all, ocispec.Descriptor{Digest: l.BlobSum})
	}
	return all
}

const (
	// mostManifests of an image are looked at, in indexes this deep.
	mostManifests = 500
	mostNested    = 4
)

func (c *call) image() error {
	i, err := c.p.parseImage("name", c.query.Get("name"))
	if err != nil {
		return err
	}
	answer := ImageAnswer{Name: i.upstream + "/" + i.repo, Digest: i.digest, Manifests: []ManifestAnswer{}}
	if i.digest == "" {
		i.tag = cmp.Or(i.tag, "latest")
		key := storage.TagKey{Upstream: i.upstream, Repository: i.repo, Name: i.tag}
		t, ok := c.p.store.Tag(key)
		if !ok {
			return notKept(i)
		}
		answer.Digest, answer.Tag, answer.Checked = t.Digest, i.tag, t.Checked.UTC()
		answer.State = c.p.freshness(storage.NamedTag{TagKey: key, Tag: t})
	}
	answer.Image = i.String()
	answer.PinnedBy = c.p.pinnedBy(i.upstream, i.repo)
	answer.Pinned = len(answer.PinnedBy) > 0
	body := c.p.look(root{i.upstream, i.repo, answer.Digest})
	if body == nil && i.digest != "" {
		return notKept(i)
	}
	var m manifestBody
	_ = json.Unmarshal(body, &m) // what is no manifest names nothing
	answer.MediaType = c.p.mediaType(i, answer.Digest, m.MediaType)
	left := mostManifests
	if len(m.Manifests) > 0 {
		answer.Size, answer.KeptSize = int64(len(body)), int64(len(body))
	}
	answer.add(c.p, i, ocispec.Descriptor{Digest: answer.Digest, MediaType: answer.MediaType, Size: int64(len(body))}, mostNested, &left)
	answer.Truncated = left == 0
	answer.Complete = body != nil && !slices.ContainsFunc(answer.Manifests, func(m ManifestAnswer) bool { return !m.Complete })
	return c.answer(answer)
}

func notKept(i image) error {
	return problemf(http.StatusNotFound, "not_kept", "%s is not kept here, or under another name; GET %srepositories lists what is", i, apiRoot)
}

// add looks at a manifest, and at those that it names. A blob that several of them
// have counts in each.
func (a *ImageAnswer) add(p *Proxy, i image, d ocispec.Descriptor, deeper int, left *int) {
	body := p.look(root{i.upstream, i.repo, d.Digest})
	var m manifestBody
	_ = json.Unmarshal(body, &m) // what is no manifest names nothing
	if len(m.Manifests) > 0 && deeper > 0 {
		for _, child := range m.Manifests {
			a.add(p, i, child, deeper-1, left)
		}
		return
	}
	if *left == 0 {
		return
	}
	*left--
	one := ManifestAnswer{
		Digest: d.Digest, MediaType: cmp.Or(d.MediaType, m.MediaType), ArtifactType: cmp.Or(d.ArtifactType, m.ArtifactType),
		Kept: body != nil, Complete: body != nil, Size: max(d.Size, 0), Layers: []LayerAnswer{},
	}
	if body != nil {
		one.Size = int64(len(body))
		one.KeptSize = one.Size
	}
	for _, b := range m.blobs() {
		l := LayerAnswer{Digest: b.Digest, MediaType: b.MediaType, Size: max(b.Size, 0)}
		if info, err := p.store.Blob(b.Digest); err == nil {
			l.Kept, l.Size = true, info.Size
			one.KeptSize += info.Size
		}
		one.Size += l.Size
		one.Complete = one.Complete && (l.Kept || foreign(b))
		if b.Digest == m.Config.Digest && one.Config == nil {
			one.Config = &l
			if l.Kept && d.Platform == nil && strings.HasSuffix(l.MediaType, "+json") {
				d.Platform = p.platform(i, b.Digest)
			}
			continue
		}
		one.Layers = append(one.Layers, l)
	}
	if d.Platform != nil {
		one.Platform = platformName(*d.Platform)
	}
	a.Size += one.Size
	a.KeptSize += one.KeptSize
	a.Manifests = append(a.Manifests, one)
}

// mediaType is that of a manifest: what came with it, or what it says.
func (p *Proxy) mediaType(i image, d digest.Digest, said string) string {
	links, err := p.store.Links(d, mostLinks)
	if err == nil {
		for _, l := range links {
			if l.Upstream == i.upstream && l.Repository == i.repo && l.Manifest {
				return cmp.Or(l.MediaType, said)
			}
		}
	}
	return said
}

// platform reads a kept config.
func (p *Proxy) platform(i image, d digest.Digest) *ocispec.Platform {
	b, err := p.store.Get(p.ctx, storage.Scope{Upstream: i.upstream, Repository: i.repo, Keep: storage.Retention{NoStore: true}}, d, nil)
	if err != nil {
		return nil
	}
	defer b.Close()
	body, err := io.ReadAll(io.LimitReader(b.Content, upstream.MaxManifestSize))
	var config ocispec.Platform
	if err = errors.Join(err, json.Unmarshal(body, &config)); err != nil || config.OS == "" {
		return nil
	}
	return &config
}

// foreign says that a layer is not in the registry, but elsewhere (image-spec,
// layer.md, "Non-Distributable Layers").
func foreign(d ocispec.Descriptor) bool {
	return strings.Contains(d.MediaType, "nondistributable") || strings.Contains(d.MediaType, ".foreign.")
}

// platformName is linux/arm64/v8.
func platformName(p ocispec.Platform) string {
	name := p.OS + "/" + p.Architecture
	if p.Variant != "" {
		name += "/" + p.Variant
	}
	return name
}

// fitsPlatform says whether a platform is wanted: all, or linux/arm64, which is of any
// variant, or linux/arm/v7.
func fitsPlatform(p *ocispec.Platform, wanted []string) bool {
	return slices.ContainsFunc(wanted, func(w string) bool {
		if w == allPlatforms || p == nil {
			return w == allPlatforms
		}
		return w == platformName(*p) || w == p.OS+"/"+p.Architecture
	})
}

const allPlatforms = "all"

// parsePlatforms checks what is wanted; none means that which the mirror runs on.
func parsePlatforms(wanted []string, own string) ([]string, error) {
	if len(wanted) == 0 {
		return []string{own}, nil
	}
	for n, w := range wanted {
		parts := strings.Split(w, "/")
		if w != allPlatforms && (len(parts) < 2 || len(parts) > 3 || slices.Contains(parts, "")) {
			return nil, invalid(fmt.Sprintf("platforms[%d]", n), "%q is not a platform; write one such as linux/arm64, or all", bounded(w))
		}
	}
	return wanted, nil
}
