package admin

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/cachalot-registry/cachalot/bounds"
	"github.com/cachalot-registry/cachalot/proxy/image"
	"github.com/cachalot-registry/cachalot/storage"
)

// maxPurging bounds the images that are purged at the same time. Others wait for their turn.
const maxPurging = 2

// PurgeRequest is the body of POST purge: one of Image, Repository, Upstream and Digest; or
// UnusedFor, alone or with Repository or Upstream.
type PurgeRequest struct {
	Image      string `json:"image,omitempty"`
	Repository string `json:"repository,omitempty"`
	Upstream   string `json:"upstream,omitempty"`
	Digest     string `json:"digest,omitempty"`
	UnusedFor  string `json:"unused_for,omitempty"`
	Pinned     bool   `json:"pinned,omitempty"` // pinned content too
	DryRun     bool   `json:"dry_run,omitempty"`
}

// PurgeAnswer is the response of POST purge: what was removed, or would be.
type PurgeAnswer struct {
	DryRun    bool         `json:"dry_run"`
	Tags      int          `json:"tags"`
	Blobs     int          `json:"blobs"`
	Bytes     int64        `json:"bytes"`
	Unlinked  int          `json:"unlinked"`
	Pinned    int          `json:"pinned"`
	Busy      int          `json:"busy"`
	Items     []PurgedItem `json:"items"`
	Truncated bool         `json:"truncated"`
}

// PurgedItem is the result for a blob.
type PurgedItem struct {
	Digest digest.Digest `json:"digest"`
	Result string        `json:"result"` // removed, unlinked, pinned, busy
	Bytes  int64         `json:"bytes"`
}

// count adds the result for a digest.
func (a *PurgeAnswer) count(d digest.Digest, became storage.PurgeResult, bytes int64) {
	item := PurgedItem{Digest: d, Bytes: bytes}
	switch became {
	case storage.Gone:
		a.Blobs++
		a.Bytes += bytes
		item.Result = "removed"
	case storage.Unlinked:
		a.Unlinked++
		item.Result = "unlinked"
	case storage.Pinned:
		a.Pinned++
		item.Result = "pinned"
	case storage.Busy:
		a.Busy++
		item.Result = "busy"
	default:
		return
	}
	if len(a.Items) == maxPage {
		a.Truncated = true
		return
	}
	a.Items = append(a.Items, item)
}

func (a *PurgeAnswer) empty() bool {
	return a.Tags == 0 && a.Blobs == 0 && a.Unlinked == 0 && a.Pinned == 0 && a.Busy == 0
}

func (c *call) purge() error {
	var wanted PurgeRequest
	if err := c.body(&wanted); err != nil {
		return err
	}
	given := 0
	for _, s := range []string{wanted.Image, wanted.Repository, wanted.Upstream, wanted.Digest} {
		if s != "" {
			given++
			c.audit.target = s
		}
	}
	switch {
	case given > 1:
		return invalid("image", "give only one of image, repository, upstream and digest; send several requests")
	case given == 0 && wanted.UnusedFor == "":
		return invalid("image", "nothing to remove; give image, repository, upstream, digest or unused_for")
	case wanted.UnusedFor != "" && (wanted.Image != "" || wanted.Digest != ""):
		return invalid("unused_for", "only for repository or upstream, or alone; remove it, because an image or digest is removed whether used or not")
	}
	c.audit.attrs = append(c.audit.attrs, slog.Bool("dry_run", wanted.DryRun))
	if wanted.UnusedFor != "" {
		c.audit.attrs = append(c.audit.attrs, slog.String("unused_for", bounds.Text(wanted.UnusedFor)))
	}
	answer := &PurgeAnswer{DryRun: wanted.DryRun, Items: []PurgedItem{}}
	err := c.purgeWanted(wanted, answer)
	if !wanted.DryRun && !answer.empty() || err == nil {
		c.audit.attrs = append(c.audit.attrs, slog.Int("tags", answer.Tags), slog.Int("blobs", answer.Blobs), slog.Int64("bytes", answer.Bytes),
			slog.Int("unlinked", answer.Unlinked), slog.Int("kept_pinned", answer.Pinned), slog.Int("kept_busy", answer.Busy))
	}
	if err != nil {
		return err
	}
	return c.answer(answer)
}

func (c *call) purgeWanted(wanted PurgeRequest, answer *PurgeAnswer) error {
	p := storage.Purge{Pinned: wanted.Pinned, DryRun: wanted.DryRun}
	if wanted.UnusedFor != "" {
		unused, err := age("unused_for", wanted.UnusedFor)
		if err != nil {
			return err
		}
		p.UnusedSince = time.Now().Add(-unused)
	}
	switch {
	case wanted.Digest != "":
		d, err := storage.ParseDigest(wanted.Digest)
		if err != nil {
			return invalid("digest", "write sha256: or sha512: and lower-case hexadecimal")
		}
		return c.purgeDigest(d, p, answer)
	case wanted.Image != "":
		i, err := c.parseImage("image", wanted.Image)
		switch {
		case err != nil:
			return err
		case i.tag == "" && i.digest == "":
			return invalid("image", "%s has no tag or digest; add one, or purge it as a repository", i)
		}
		c.audit.target = i.String()
		if err := c.purging.Acquire(c.r.Context(), 1); err != nil {
			return err
		}
		defer c.purging.Release(1)
		return c.purgeImage(c.r.Context(), i, p, answer)
	case wanted.Repository != "":
		i, err := c.parseRepository("repository", wanted.Repository)
		if err != nil {
			return err
		}
		p.Upstream, p.Repository = i.upstream, i.repo
	case wanted.Upstream != "":
		p.Upstream = c.p.UpstreamName(strings.ToLower(wanted.Upstream))
	}
	c.audit.target = strings.Trim(p.Upstream+"/"+p.Repository, "/")
	return c.purgeAll(c.r.Context(), p, answer)
}

// purgeDigest removes one blob from all repositories. Tags that point to it stay: the next pull
// of one fetches it from its upstream.
func (c *call) purgeDigest(d digest.Digest, how storage.Purge, answer *PurgeAnswer) error {
	became, bytes, err := c.p.Store().Purge(d, how)
	if err != nil {
		return err
	}
	answer.count(d, became, bytes)
	switch became {
	case storage.Pinned:
		return pinnedProblem(string(d))
	case storage.Busy:
		return problemf(http.StatusConflict, "busy", "%s is being downloaded or removed; try again later", d)
	case storage.Gone, storage.Unlinked:
	default:
		return problemf(http.StatusNotFound, "not_stored", "%s is not stored here", d)
	}
	if !how.DryRun {
		c.p.Forget("", "", string(d))
	}
	return nil
}

func pinnedProblem(what string) error {
	return problemf(http.StatusConflict, "pinned", "%s is pinned; unpin it, or send pinned: true to purge it too", what)
}

// purgeImage removes a tag, or a manifest and the tags that point to it, with the content that
// no other tag of the repository refers to. Other repositories lose nothing.
func (c *call) purgeImage(ctx context.Context, i imageName, how storage.Purge, answer *PurgeAnswer) error {
	if !how.Pinned && c.p.Store().Pinned(i.upstream, i.repo) {
		return pinnedProblem(i.upstream + "/" + i.repo)
	}
	at := i.digest
	if at == "" {
		t, ok := c.p.Store().Tag(storage.TagKey{Upstream: i.upstream, Repository: i.repo, Name: i.tag})
		if !ok {
			return notStored(i)
		}
		at = t.Digest
	}
	goes := func(k storage.TagKey, t storage.Tag) bool {
		return !k.IsList() && t.Digest == at && (i.digest != "" || k.Name == i.tag)
	}
	// The content is found before the tags are removed: if this fails, nothing has changed.
	unreferenced, truncated, err := c.p.Stored().Unreferenced(ctx, []image.Root{{Upstream: i.upstream, Repository: i.repo, Digest: at}}, func(held func(image.Root) bool) error {
		_, err := c.p.Store().DropTags(i.upstream, i.repo, true, func(k storage.TagKey, t storage.Tag) bool {
			if !k.IsList() && !goes(k, t) {
				held(image.Root{Upstream: i.upstream, Repository: i.repo, Digest: t.Digest})
			}
			return false
		})
		return err
	})
	if errors.Is(err, image.ErrManyManifests) {
		return problemf(http.StatusConflict, "too_many", "%s/%s: %v; purge the repository, or digests of the image", i.upstream, i.repo, err)
	}
	answer.Truncated = truncated
	if err == nil {
		answer.Tags, err = c.p.Store().DropTags(i.upstream, i.repo, how.DryRun, goes)
	}
	if err != nil {
		return err
	}
	how.Upstream, how.Repository = i.upstream, i.repo
	for d := range unreferenced {
		became, bytes, err := c.p.Store().Purge(d, how)
		if err != nil {
			return err
		}
		answer.count(d, became, bytes)
	}
	if !how.DryRun {
		c.p.Forget(i.upstream, i.repo, "")
		c.p.Store().InvalidateSummary()
	}
	if answer.empty() {
		return notStored(i)
	}
	return nil
}

// purgeAll removes a repository, an upstream, or unused content of one of these or of all.
func (c *call) purgeAll(ctx context.Context, how storage.Purge, answer *PurgeAnswer) error {
	if how.Repository != "" && !how.Pinned && c.p.Store().Pinned(how.Upstream, how.Repository) {
		return pinnedProblem(how.Upstream + "/" + how.Repository)
	}
	var err error
	whole := how.UnusedSince.IsZero()
	if whole { // otherwise tags stay, and removed content is fetched again at the next pull
		answer.Tags, err = c.p.Store().DropTags(how.Upstream, how.Repository, how.DryRun, func(k storage.TagKey, _ storage.Tag) bool {
			return how.Pinned || !c.p.Store().Pinned(k.Upstream, k.Repository)
		})
	}
	if err == nil {
		err = c.p.Store().PurgeAll(ctx, how, answer.count)
	}
	if !how.DryRun {
		c.p.Forget(how.Upstream, how.Repository, "")
	}
	if err == nil && whole && answer.empty() {
		what := strings.Trim(how.Upstream+"/"+how.Repository, "/")
		return problemf(http.StatusNotFound, "not_stored", "nothing of %s is stored here; GET %srepositories lists what is stored", what, apiRoot)
	}
	return err
}
