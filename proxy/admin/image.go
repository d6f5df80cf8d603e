package admin

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"

	"github.com/cachalot-registry/cachalot/bounds"
	"github.com/cachalot-registry/cachalot/proxy/image"
	"github.com/cachalot-registry/cachalot/storage"
)

// imageName is the parsed name of an image.
type imageName struct {
	upstream, repo string
	tag            string
	digest         digest.Digest // takes precedence over tag
}

// String returns the name in full.
func (i imageName) String() string {
	name := i.upstream + "/" + i.repo
	if i.tag != "" {
		name += ":" + i.tag
	}
	if i.digest != "" {
		name += "@" + string(i.digest)
	}
	return name
}

// parseImage parses a name as docker does, and also with the names and aliases of upstreams:
// alpine is docker.io/library/alpine. The upstream need not be configured, because stored
// content may be of a former one.
func (c *call) parseImage(parameter, name string) (imageName, error) {
	if name == "" {
		return imageName{}, invalid(parameter, "missing; write an image such as docker.io/library/alpine:3.22")
	}
	name = c.p.FullName(name)
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil || len(name) > maxImageName {
		return imageName{}, invalid(parameter, "%q is not the name of an image; write one such as docker.io/library/alpine:3.22", bounds.Text(name))
	}
	i := imageName{upstream: strings.ToLower(reference.Domain(named)), repo: reference.Path(named)}
	if t, ok := named.(reference.Tagged); ok {
		i.tag = t.Tag()
	}
	if d, ok := named.(reference.Digested); ok {
		if i.digest, err = storage.ParseDigest(string(d.Digest())); err != nil {
			return imageName{}, invalid(parameter, "%v; digests are sha256: or sha512: and lower-case hexadecimal", err)
		}
	}
	return i, nil
}

// parseRepository is parseImage for a name without tag and digest.
func (c *call) parseRepository(parameter, name string) (imageName, error) {
	i, err := c.parseImage(parameter, name)
	if err == nil && (i.tag != "" || i.digest != "") {
		err = invalid(parameter, "%q has a tag or digest; write the repository alone: %s/%s", bounds.Text(name), i.upstream, i.repo)
	}
	return i, err
}

// ImageAnswer is the response of GET image: what is stored of an image.
type ImageAnswer struct {
	Image      string           `json:"image"`
	Name       string           `json:"name"`
	Tag        string           `json:"tag,omitempty"`
	Digest     digest.Digest    `json:"digest"`
	MediaType  string           `json:"media_type,omitempty"`
	Checked    time.Time        `json:"checked,omitzero"`
	State      string           `json:"state,omitempty"`
	Pinned     bool             `json:"pinned"`
	PinnedBy   []string         `json:"pinned_by"`
	Complete   bool             `json:"complete"`
	Size       int64            `json:"size"`
	StoredSize int64            `json:"stored_size"`
	Manifests  []ManifestAnswer `json:"manifests"`
	Truncated  bool             `json:"truncated"`
}

// ManifestAnswer is a manifest of an image that is not an index.
type ManifestAnswer struct {
	Digest       digest.Digest `json:"digest"`
	MediaType    string        `json:"media_type,omitempty"`
	ArtifactType string        `json:"artifact_type,omitempty"`
	Platform     string        `json:"platform,omitempty"`
	Stored       bool          `json:"stored"`
	Complete     bool          `json:"complete"`
	Size         int64         `json:"size"`
	StoredSize   int64         `json:"stored_size"`
	Config       *LayerAnswer  `json:"config,omitempty"`
	Layers       []LayerAnswer `json:"layers"`
}

// LayerAnswer is a layer, or a config.
type LayerAnswer struct {
	Digest    digest.Digest `json:"digest"`
	MediaType string        `json:"media_type,omitempty"`
	Size      int64         `json:"size"`
	Stored    bool          `json:"stored"`
}

// maxImageName is above the longest host, path, tag and digest: 260, 255, 129 and 136 bytes.
const maxImageName = 1024

// maxLooking bounds the concurrent GET image requests: each response may take 30 MiB. Others
// wait for their turn.
const maxLooking = 4

func (c *call) image() error {
	i, err := c.parseImage("name", c.query.Get("name"))
	if err != nil {
		return err
	}
	answer := ImageAnswer{Name: i.upstream + "/" + i.repo, Digest: i.digest, Manifests: []ManifestAnswer{}}
	if i.digest == "" {
		i.tag = cmp.Or(i.tag, "latest")
		key := storage.TagKey{Upstream: i.upstream, Repository: i.repo, Name: i.tag}
		t, ok := c.p.Store().Tag(key)
		if !ok {
			return notStored(i)
		}
		answer.Digest, answer.Tag, answer.Checked = t.Digest, i.tag, t.Checked.UTC()
		answer.State = c.p.Freshness(storage.NamedTag{TagKey: key, Tag: t})
	}
	answer.Image = i.String()
	answer.PinnedBy = c.pinnedBy(i.upstream, i.repo)
	answer.Pinned = len(answer.PinnedBy) > 0
	ctx := c.r.Context()
	if err := c.looking.Acquire(ctx, 1); err != nil {
		return err
	}
	defer c.looking.Release(1) // after the client has the response
	w := c.p.Stored().Walk(i.upstream, i.repo)
	w.Exceeds = func(string) error { answer.Truncated = true; return nil }
	sum := &imageSum{call: c, name: i, walk: w, answer: &answer, blobs: map[digest.Digest]imageBlob{}}
	answer.Complete = true
	err = w.Run(ctx, image.Descriptor{Digest: answer.Digest}, func(n *image.Node) error {
		if n.Depth == 0 {
			if !n.Here && i.digest != "" {
				return notStored(i)
			}
			answer.MediaType = c.mediaType(i, n.Named.Digest, n.MediaType)
			n.Named.MediaType = answer.MediaType
		}
		sum.add(ctx, n)
		return nil
	})
	if err != nil {
		return err
	}
	answer.Complete = answer.Complete && !answer.Truncated
	return c.answer(answer)
}

func notStored(i imageName) error {
	return problemf(http.StatusNotFound, "not_stored", "%s is not stored here, or under another name; GET %srepositories lists what is stored", i, apiRoot)
}

// imageSum fills the response with what a walk finds.
type imageSum struct {
	*call

	name   imageName
	walk   *image.Walk
	answer *ImageAnswer
	blobs  map[digest.Digest]imageBlob // the counted ones
}

type imageBlob struct {
	size     int64
	stored   bool
	manifest int // the last one in which it was counted
}

// add counts a manifest and its blobs. A blob counts once in each manifest that has it, and
// once in the image.
func (s *imageSum) add(ctx context.Context, n *image.Node) {
	a := s.answer
	if n.Named.Check() != nil { // its digest is invalid
		a.Complete = false
		return
	}
	one := ManifestAnswer{
		Digest: n.Named.Digest, MediaType: cmp.Or(n.Named.MediaType, n.MediaType), ArtifactType: cmp.Or(n.Named.ArtifactType, n.ArtifactType),
		Stored: n.Here, Complete: n.Here && !n.Truncated, Size: n.Size, Layers: []LayerAnswer{},
	}
	if n.Here {
		one.StoredSize = n.Size
	}
	a.Size, a.StoredSize = image.Plus(a.Size, one.Size), image.Plus(a.StoredSize, one.StoredSize)
	if n.IsIndex() {
		return // the walk visits its manifests too
	}
	platform := n.Named.Platform
	for _, b := range n.Blobs() {
		if b.Check() != nil {
			one.Complete = false
			continue
		}
		known := s.count(b)
		if known.manifest <= len(a.Manifests) {
			known.manifest = len(a.Manifests) + 1
			s.blobs[b.Digest] = known
			one.Size = image.Plus(one.Size, known.size)
			if known.stored {
				one.StoredSize = image.Plus(one.StoredSize, known.size)
			}
		}
		l := LayerAnswer{Digest: b.Digest, MediaType: b.MediaType, Size: known.size, Stored: known.stored}
		one.Complete = one.Complete && (l.Stored || b.Foreign())
		if b.Digest == n.Config.Digest && one.Config == nil {
			one.Config = &l
			if l.Stored && platform == nil && strings.HasSuffix(l.MediaType, "+json") {
				platform = s.platform(ctx, b.Digest)
			}
			continue
		}
		one.Layers = append(one.Layers, l)
	}
	if platform != nil {
		one.Platform = platform.String()
	}
	a.Complete = a.Complete && one.Complete
	a.Manifests = append(a.Manifests, one)
}

// count returns a blob, and counts it in the image the first time.
func (s *imageSum) count(b image.Descriptor) imageBlob {
	known, ok := s.blobs[b.Digest]
	if ok {
		return known
	}
	known.size = b.Size
	if info, err := s.p.Store().Blob(b.Digest); err == nil {
		known.size, known.stored = info.Size, true
		s.answer.StoredSize = image.Plus(s.answer.StoredSize, known.size)
	}
	s.answer.Size = image.Plus(s.answer.Size, known.size)
	s.blobs[b.Digest] = known
	return known
}

// platform reads the platform in a stored config.
func (s *imageSum) platform(ctx context.Context, config digest.Digest) *image.Platform {
	b, err := s.p.Stored().Open(ctx, storage.Scope{Upstream: s.name.upstream, Repository: s.name.repo}, config)
	if err != nil || b == nil {
		return nil
	}
	defer b.Close()
	found, err := s.walk.Platform(ctx, b)
	if err != nil || found.OS == "" {
		return nil
	}
	return found
}

// mediaType returns the media type of a manifest: what came with it, or what it says itself.
func (c *call) mediaType(i imageName, d digest.Digest, said string) string {
	links, err := c.p.Store().Links(d, mostLinks)
	if err == nil {
		for _, l := range links {
			if l.Upstream == i.upstream && l.Repository == i.repo && l.Manifest {
				return cmp.Or(l.MediaType, said)
			}
		}
	}
	return said
}

// parsePlatforms checks the wanted platforms; without any it returns own, that of the mirror.
func parsePlatforms(wanted []string, own string) ([]string, error) {
	if len(wanted) == 0 {
		return []string{own}, nil
	}
	for n, w := range wanted {
		parts := strings.Split(w, "/")
		if w != image.AllPlatforms && (len(parts) < 2 || len(parts) > 3 || slices.Contains(parts, "")) {
			return nil, invalid(fmt.Sprintf("platforms[%d]", n), "%q is not a platform; write one such as linux/arm64, or all", bounds.Text(w))
		}
	}
	return wanted, nil
}
