package upstream

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A list may have any number of pages, so it is bounded three ways.
const (
	maxPages    = 1000
	maxListSize = 16 << 20
	maxListTime = time.Minute
)

// Tags lists a repository's tags, all pages of it, sorted and each once.
// ErrInvalid: the list has no end, or leads to another origin.
func (r *Registry) Tags(ctx context.Context, repo string) ([]string, error) {
	q := query{op: string(KindTags), method: http.MethodGet, repo: repo, path: repo + "/tags/list"}
	var tags []string
	err := r.pages(ctx, KindTags, q, func(page []byte, _ string) error {
		var list struct {
			Tags []string `json:"tags"`
		}
		if json.Unmarshal(page, &list) != nil {
			return r.fail(q.op, ErrInvalid, "not a tag list")
		}
		tags = append(tags, list.Tags...)
		return nil
	})
	if err != nil {
		return nil, err
	}
	slices.Sort(tags)
	return slices.Compact(tags), nil
}

// Referrers returns the image index of what refers to d: from the referrers
// API with its pages merged, else from the fallback tag, else an empty one
// (distribution-spec, Listing Referrers; Unavailable Referrers API).
func (r *Registry) Referrers(ctx context.Context, repo string, d digest.Digest) ([]byte, error) {
	q := query{
		op: string(KindReferrers), method: http.MethodGet, repo: repo, path: repo + "/referrers/" + d.String(),
		header: http.Header{"Accept": {ocispec.MediaTypeImageIndex}},
	}
	var pages []index
	var only []byte
	err := r.pages(ctx, KindReferrers, q, func(page []byte, contentType string) error {
		i, err := parseIndex(page, contentType)
		if err != nil {
			return r.fail(q.op, errNoAPI, "%v", err)
		}
		pages, only = append(pages, i), page
		return nil
	})
	switch {
	case err == nil && len(pages) == 1:
		return only, nil
	case err == nil:
		return mergeIndexes(pages)
	case !errors.Is(err, ErrNotFound) && !errors.Is(err, ErrUnsupported) && (!errors.Is(err, errNoAPI) || len(pages) > 0):
		return nil, err
	}
	contentType, b, err := r.Manifest(ctx, repo, d.Algorithm().String()+"-"+d.Encoded())
	if errors.Is(err, ErrNotFound) {
		return json.Marshal(ocispec.Index{
			Versioned: specs.Versioned{SchemaVersion: 2},
			MediaType: ocispec.MediaTypeImageIndex,
			Manifests: []ocispec.Descriptor{},
		})
	}
	if err != nil {
		return nil, err
	}
	if _, err := parseIndex(b, contentType); err != nil {
		return nil, r.fail(q.op, ErrInvalid, "the fallback tag: %v", err)
	}
	return b, nil
}

// errNoAPI: something answered, but not a referrers API.
var errNoAPI = errors.New("no referrers API")

// index is an image index whose descriptors and unknown fields stay as they are.
type index struct {
	fields    map[string]json.RawMessage
	manifests []json.RawMessage
}

func parseIndex(b []byte, contentType string) (index, error) {
	var i index
	var named string
	if json.Unmarshal(b, &i.fields) != nil {
		return i, errors.New("not a JSON object")
	}
	if m, ok := i.fields["mediaType"]; ok && json.Unmarshal(m, &named) != nil {
		return i, errors.New("mediaType is no string")
	}
	if contentType != ocispec.MediaTypeImageIndex && named != ocispec.MediaTypeImageIndex {
		return i, errors.New("not an image index")
	}
	if m, ok := i.fields["manifests"]; ok && json.Unmarshal(m, &i.manifests) != nil {
		return i, errors.New("manifests is no list")
	}
	return i, nil
}

func mergeIndexes(pages []index) ([]byte, error) {
	all := []json.RawMessage{}
	for _, p := range pages {
		all = append(all, p.manifests...)
	}
	b, err := json.Marshal(all)
	if err != nil {
		return nil, err
	}
	pages[0].fields["manifests"] = b
	return json.Marshal(pages[0].fields)
}

// pages calls page with each page of a list.
func (r *Registry) pages(ctx context.Context, kind Kind, q query, page func(body []byte, contentType string) error) error {
	ctx, cancel := context.WithTimeout(ctx, maxListTime)
	defer cancel()
	seen := map[string]bool{}
	size := 0
	for range maxPages {
		seen[q.path+"?"+q.rawQuery] = true
		var resp *http.Response
		b, err := r.retryBody(ctx, func() (io.ReadCloser, error) {
			var err error
			resp, err = r.ask(ctx, q) //nolint:bodyclose // retryBody closes it
			if err != nil {
				return nil, err
			}
			_, b, err := r.accept(q, kind, resp, 0, resp.ContentLength, resp.ContentLength)
			return b, err
		})
		if err != nil {
			return err
		}
		if size += len(b); size > maxListSize {
			return r.fail(q.op, ErrInvalid, "a list longer than %d bytes", maxListSize)
		}
		if err := page(b, mediaType(resp)); err != nil {
			return err
		}
		link := parseNextLink(resp.Header.Values("Link"))
		if link == "" {
			return nil
		}
		q, err = r.nextPage(q, resp.Request.URL, link)
		if err != nil {
			return err
		}
		if seen[q.path+"?"+q.rawQuery] {
			return r.fail(q.op, ErrInvalid, "the list's pages form a loop")
		}
	}
	return r.fail(q.op, ErrInvalid, "a list of more than %d pages", maxPages)
}

// nextPage is the question a Link leads to. It must stay at the origin and the
// path of the page it came with: only the query may differ.
func (r *Registry) nextPage(q query, page *url.URL, link string) (query, error) {
	next, err := page.Parse(link)
	if err != nil {
		return q, r.fail(q.op, ErrInvalid, "a next page that is no URL")
	}
	for _, e := range r.endpoints {
		if origin(next) == e.origin && origin(page) == e.origin && next.User == nil && strings.HasSuffix(next.Path, "/"+q.path) {
			q.rawQuery = next.RawQuery
			return q, nil
		}
	}
	return q, r.fail(q.op, ErrInvalid, "the next page is not the list's own")
}

// retryBody reads a short body whole, and starts over once if it breaks: unlike
// a blob there is no resuming it.
func (r *Registry) retryBody(ctx context.Context, open func() (io.ReadCloser, error)) ([]byte, error) {
	for again := false; ; again = true {
		rc, err := open()
		if err != nil {
			return nil, err
		}
		b, err := io.ReadAll(rc)
		rc.Close()
		if err == nil || again || ctx.Err() != nil || !errors.Is(err, ErrUnavailable) || errors.Is(err, ErrTimeout) {
			return b, err
		}
	}
}
