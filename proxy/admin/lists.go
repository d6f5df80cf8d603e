package admin

import (
	"cmp"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/cachalot-registry/cachalot/bounds"
	"github.com/cachalot-registry/cachalot/storage"
)

// RepositoriesAnswer is a page of GET repositories.
type RepositoriesAnswer struct {
	Repositories []RepositoryAnswer `json:"repositories"`
	Taken        time.Time          `json:"taken"`
	Truncated    bool               `json:"truncated"`
	Next         string             `json:"next,omitempty"`
}

// RepositoryAnswer is a repository of which something is stored.
type RepositoryAnswer struct {
	Name       string    `json:"name"`
	Upstream   string    `json:"upstream"`
	Repository string    `json:"repository"`
	Tags       int64     `json:"tags"`
	Blobs      int64     `json:"blobs"`
	Bytes      int64     `json:"bytes"`
	Uses       int64     `json:"uses"`
	LastUsed   time.Time `json:"last_used,omitzero"`
	Pinned     bool      `json:"pinned"`
	PinnedBy   []string  `json:"pinned_by"`
}

func (c *call) repositories() error {
	n, after, err := c.page()
	if err != nil {
		return err
	}
	var less func(a, b storage.RepositoryInfo) int
	order := cmp.Or(c.query.Get("sort"), "name")
	switch order {
	case "name":
	case "bytes":
		less = func(a, b storage.RepositoryInfo) int { return cmp.Compare(b.DiskBytes, a.DiskBytes) }
	case "last_used":
		less = func(a, b storage.RepositoryInfo) int { return a.Used.Compare(b.Used) }
	case "uses":
		less = func(a, b storage.RepositoryInfo) int { return cmp.Compare(b.Uses, a.Uses) }
	default:
		return invalid("sort", "%q is not known; write name, bytes, last_used or uses", bounds.Text(order))
	}
	if after != "" && less != nil {
		return invalid("cursor", "only sort=name has a next page; remove cursor")
	}
	sum, err := c.p.Store().Summary(c.r.Context())
	if err != nil {
		return err
	}
	answer := RepositoriesAnswer{Repositories: []RepositoryAnswer{}, Taken: sum.Taken.UTC(), Truncated: sum.Truncated}
	of, prefix := c.query.Get("upstream"), c.query.Get("prefix")
	var fitting []storage.RepositoryInfo
	for _, r := range sum.Repositories {
		if (of == "" || of == r.Upstream) && strings.HasPrefix(r.Upstream+"/"+r.Repository, prefix) && r.Upstream+"\x00"+r.Repository > after {
			fitting = append(fitting, r)
		}
	}
	if less != nil {
		slices.SortStableFunc(fitting, less)
	}
	for i, r := range fitting {
		if i == n {
			if less == nil {
				answer.Next = toCursor(fitting[i-1].Upstream + "\x00" + fitting[i-1].Repository)
			}
			break
		}
		by := c.pinnedBy(r.Upstream, r.Repository)
		answer.Repositories = append(answer.Repositories, RepositoryAnswer{
			Name: r.Upstream + "/" + r.Repository, Upstream: r.Upstream, Repository: r.Repository,
			Tags: r.Tags, Blobs: r.Blobs, Bytes: r.DiskBytes, Uses: r.Uses, LastUsed: r.Used.UTC(), Pinned: len(by) > 0, PinnedBy: by,
		})
	}
	return c.answer(answer)
}

// TagsAnswer is a page of GET tags.
type TagsAnswer struct {
	Name string      `json:"name"`
	Tags []TagAnswer `json:"tags"`
	Next string      `json:"next,omitempty"`
}

// TagAnswer is a cached tag.
type TagAnswer struct {
	Tag      string        `json:"tag"`
	Image    string        `json:"image"`
	Digest   digest.Digest `json:"digest"`
	Checked  time.Time     `json:"checked"`
	State    string        `json:"state"` // fresh, stale, expired
	Stored   bool          `json:"stored"`
	LastUsed time.Time     `json:"last_used,omitzero"`
}

func (c *call) tags() error {
	n, after, err := c.page()
	if err != nil {
		return err
	}
	i, err := c.parseRepository("repository", c.query.Get("repository"))
	if err != nil {
		return err
	}
	answer := TagsAnswer{Name: i.upstream + "/" + i.repo, Tags: []TagAnswer{}}
	for len(answer.Tags) == 0 { // the store's page may have only lists, which are left out
		page, next, err := c.p.Store().TagsAfter(i.upstream, i.repo, after, n)
		if err != nil {
			return err
		}
		for _, t := range page {
			if !t.IsList() {
				answer.Tags = append(answer.Tags, c.tagAnswer(t))
			}
		}
		if after = next; next == "" {
			break
		}
		answer.Next = toCursor(next)
	}
	if after == "" {
		answer.Next = ""
		if len(answer.Tags) == 0 && c.query.Get("cursor") == "" {
			return problemf(http.StatusNotFound, "not_stored", "no tag of %s is known here; GET %srepositories lists what is stored", answer.Name, apiRoot)
		}
	}
	return c.answer(answer)
}

func (c *call) tagAnswer(t storage.NamedTag) TagAnswer {
	a := TagAnswer{
		Tag: t.Name, Image: t.Upstream + "/" + t.Repository + ":" + t.Name, Digest: t.Digest, Checked: t.Checked.UTC(),
		State: c.p.Freshness(t),
	}
	if b, err := c.p.Store().Blob(t.Digest); err == nil {
		a.Stored, a.LastUsed = true, b.Used.UTC()
	}
	return a
}
