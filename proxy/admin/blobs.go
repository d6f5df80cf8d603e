package admin

import (
	"errors"
	"net/http"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/cachalot-registry/cachalot/bounds"
	"github.com/cachalot-registry/cachalot/storage"
	"github.com/cachalot-registry/cachalot/upstream"
)

// BlobsAnswer is a page of GET blobs.
type BlobsAnswer struct {
	Blobs []BlobAnswer `json:"blobs"`
	Next  string       `json:"next,omitempty"`
}

// BlobAnswer is a stored blob: the response of GET blob.
type BlobAnswer struct {
	Digest    digest.Digest `json:"digest"`
	Kind      string        `json:"kind"` // manifest or blob
	Size      int64         `json:"size"`
	Bytes     int64         `json:"bytes"`
	Stored    time.Time     `json:"stored,omitzero"`
	LastUsed  time.Time     `json:"last_used"`
	Uses      int64         `json:"uses"`
	UsedAgain bool          `json:"used_again"`
	Expires   time.Time     `json:"expires,omitzero"`
	Unwanted  bool          `json:"unwanted"`
	Pinned    bool          `json:"pinned"`
	PinnedBy  []string      `json:"pinned_by"`
	Links     []LinkAnswer  `json:"links"`
	MoreLinks bool          `json:"more_links"`
	Filling   bool          `json:"filling"`
}

// LinkAnswer is a repository in which a blob was seen.
type LinkAnswer struct {
	Name       string `json:"name"`
	Upstream   string `json:"upstream"`
	Repository string `json:"repository"`
	Kind       string `json:"kind"`
	MediaType  string `json:"media_type,omitempty"`
}

const (
	pageLinks = 10   // of each blob in a list
	mostLinks = 1000 // of a single blob
)

func (c *call) blobs() error {
	n, after, err := c.page()
	if err != nil {
		return err
	}
	q := storage.BlobQuery{Upstream: c.query.Get("upstream")}
	if name := c.query.Get("repository"); name != "" {
		if q.Upstream != "" {
			return invalid("upstream", "given along with repository, which names its upstream; keep one of the two")
		}
		i, err := c.parseRepository("repository", name)
		if err != nil {
			return err
		}
		q.Upstream, q.Repository = i.upstream, i.repo
	}
	if text := c.query.Get("min_size"); text != "" {
		size, err := storage.ParseSize(text)
		if err != nil || size.Percent > 0 {
			return invalid("min_size", "%q is not a size; write one such as 100MiB", bounds.Text(text))
		}
		q.MinSize = size.Bytes
	}
	if text := c.query.Get("unused_for"); text != "" {
		unused, err := age("unused_for", text)
		if err != nil {
			return err
		}
		q.UnusedSince = time.Now().Add(-unused)
	}
	order, known := map[string]storage.Order{
		"": storage.ByDigest, "digest": storage.ByDigest, "size": storage.BySize, "last_used": storage.ByUse, "uses": storage.ByUses,
	}[c.query.Get("sort")]
	switch {
	case !known:
		return invalid("sort", "%q is not known; write digest, size, last_used or uses", bounds.Text(c.query.Get("sort")))
	case order != storage.ByDigest && after != "":
		return invalid("cursor", "only sort=digest has a next page; remove cursor")
	}
	var last digest.Digest
	if after != "" {
		if last, err = storage.ParseDigest(after); err != nil {
			return invalid("cursor", "send the value of next from the previous page, unchanged")
		}
	}
	var page []storage.BlobInfo
	answer := BlobsAnswer{Blobs: []BlobAnswer{}}
	if order == storage.ByDigest {
		var next digest.Digest
		if page, next, err = c.p.Store().Blobs(c.r.Context(), q, last, n); next != "" {
			answer.Next = toCursor(string(next))
		}
	} else {
		page, err = c.p.Store().TopBlobs(c.r.Context(), q, order, n)
	}
	if err != nil {
		return err
	}
	for _, b := range page {
		one, err := c.blobAnswer(b, pageLinks)
		if err != nil {
			return err
		}
		answer.Blobs = append(answer.Blobs, one)
	}
	return c.answer(answer)
}

func (c *call) blob() error {
	d, err := storage.ParseDigest(c.query.Get("digest"))
	if err != nil {
		return invalid("digest", "write sha256: or sha512: and lower-case hexadecimal")
	}
	b, err := c.p.Store().Blob(d)
	if errors.Is(err, storage.ErrNotFound) {
		return problemf(http.StatusNotFound, "not_stored", "%s is not stored here", d)
	}
	if err != nil {
		return err
	}
	answer, err := c.blobAnswer(b, mostLinks)
	if err != nil {
		return err
	}
	return c.answer(answer)
}

func kindOf(manifest bool) string {
	if manifest {
		return string(upstream.KindManifest)
	}
	return string(upstream.KindBlob)
}

func (c *call) blobAnswer(b storage.BlobInfo, links int) (BlobAnswer, error) {
	a := BlobAnswer{
		Digest: b.Digest, Kind: kindOf(b.Manifest), Size: b.Size, Bytes: b.DiskBytes, Stored: b.Stored.UTC(), LastUsed: b.Used.UTC(),
		Uses: int64(b.Uses), UsedAgain: b.Again, Expires: b.Until.UTC(), Unwanted: b.Orphaned,
		PinnedBy: []string{}, Links: []LinkAnswer{}, Filling: c.p.Store().Filling(b.Digest),
	}
	at, err := c.p.Store().Links(b.Digest, links+1)
	if err != nil {
		return a, err
	}
	if len(at) > links {
		at, a.MoreLinks = at[:links], true
	}
	for _, l := range at {
		a.Links = append(a.Links, LinkAnswer{l.Upstream + "/" + l.Repository, l.Upstream, l.Repository, kindOf(l.Manifest), l.MediaType})
		a.PinnedBy = append(a.PinnedBy, c.pinnedBy(l.Upstream, l.Repository)...)
	}
	slices.Sort(a.PinnedBy)
	a.PinnedBy = slices.Compact(a.PinnedBy)
	a.Pinned = len(a.PinnedBy) > 0
	return a, nil
}

// FillsAnswer is the response of GET fills.
type FillsAnswer struct {
	Fills     []FillAnswer `json:"fills"`
	Truncated bool         `json:"truncated"`
}

// FillAnswer is a download in progress.
type FillAnswer struct {
	Digest      digest.Digest `json:"digest"`
	Name        string        `json:"name"`
	Upstream    string        `json:"upstream"`
	Repository  string        `json:"repository"`
	Kind        string        `json:"kind"`
	State       string        `json:"state"`
	Started     time.Time     `json:"started"`
	Done        int64         `json:"done"`
	Size        *int64        `json:"size,omitempty"`
	Readers     int           `json:"readers"`
	Connections int           `json:"connections"`
}

func (c *call) fills() error {
	answer := FillsAnswer{Fills: []FillAnswer{}}
	for i, f := range c.p.Store().Fills() {
		if i == maxPage {
			answer.Truncated = true
			break
		}
		a := FillAnswer{
			Digest: f.Digest, Name: f.Upstream + "/" + f.Repository, Upstream: f.Upstream, Repository: f.Repository, Kind: kindOf(f.Manifest),
			State: f.State, Started: f.Started.UTC(), Done: f.Written, Readers: f.Readers, Connections: f.Connections,
		}
		if f.Size >= 0 {
			a.Size = &f.Size
		}
		answer.Fills = append(answer.Fills, a)
	}
	return c.answer(answer)
}
