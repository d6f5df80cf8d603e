package upstream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/cachalot-registry/cachalot/bounds"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A list may have any number of pages, so it is bounded three ways.
const (
	maxPages    = 1000
	maxListSize = 8 << 20
	maxListTime = time.Minute
)

// TagPage is one page of a repository's tags, as the registry has them.
type TagPage struct {
	Tags []string `json:"tags"`
	// Next is the query of the next page; "": this page is the last.
	Next string `json:"next,omitempty"`
}

// TagPage fetches one page of a repository's tags. query is the client's: n and last, or
// the Next of the page before; "" leaves the length of the page to the registry.
func (r *Registry) TagPage(ctx context.Context, repo, query string) (TagPage, error) {
	ctx, cancel := context.WithTimeout(ctx, maxListTime)
	defer cancel()
	q := tagsQuery(repo, query)
	var page TagPage
	err := r.read(ctx, KindTags, q, func(resp *http.Response, b []byte) error {
		var list map[string]json.RawMessage
		page = TagPage{}
		err := bounds.Unmarshal(ctx, b, &list)
		if err == nil && list["tags"] == nil {
			err = errNoList
		}
		if err == nil {
			err = bounds.Unmarshal(ctx, list["tags"], &page.Tags)
		}
		if err != nil {
			return r.failParse(q.op, ErrInvalid, "not a tag list", err)
		}
		link := parseNextLink(resp.Header.Values("Link"))
		if link == "" {
			return nil
		}
		next, err := r.nextPage(q, resp.Request.URL, link)
		switch {
		case err != nil:
			return err
		case next.rawQuery == q.rawQuery:
			return r.fail(q.op, ErrInvalid, "the list's pages form a loop")
		}
		values, err := url.ParseQuery(next.rawQuery)
		if err != nil {
			return r.fail(q.op, ErrInvalid, "the next page is not a URL")
		}
		page.Next = values.Encode() // in the form of a client's query, which is compared with it
		return nil
	})
	return page, err
}

// errNoList: the required list is missing; even an empty list would be one.
var errNoList = errors.New("no list")

// failParse returns the error for a body that cannot be parsed: it is invalid, or there
// is no memory for it.
func (r *Registry) failParse(op string, kind error, what string, err error) error {
	if errors.Is(err, bounds.ErrNoMemory) {
		return err
	}
	return r.fail(op, kind, "%s", what)
}

func tagsQuery(repo, raw string) query {
	return query{op: string(KindTags), method: http.MethodGet, repo: repo, path: repo + "/tags/list", rawQuery: raw}
}

// Referrers returns the image index of the manifests that refer to d: from the referrers
// API with its pages merged, else from the fallback tag, else an empty one
// (distribution-spec, Listing Referrers; Unavailable Referrers API). An empty one is not
// sure if the response may not come from the API: the registry may not have it, or a
// proxy in front of it may have sent a page.
func (r *Registry) Referrers(ctx context.Context, repo string, d digest.Digest) (list []byte, sure bool, err error) {
	q := query{
		op: string(KindReferrers), method: http.MethodGet, repo: repo, path: repo + "/referrers/" + d.String(),
		header: http.Header{"Accept": {ocispec.MediaTypeImageIndex}},
	}
	var pages []index
	var only []byte
	err = r.pages(ctx, KindReferrers, q, func(page []byte, contentType string) error {
		i, err := parseIndex(ctx, page, contentType)
		if err != nil {
			return r.failParse(q.op, errNoAPI, err.Error(), err)
		}
		pages, only = append(pages, i), page
		return nil
	})
	switch {
	case err == nil && len(pages) == 1 && pages[0].isEmpty():
		return NoReferrers(), true, nil
	case err == nil && len(pages) == 1:
		return only, true, nil
	case err == nil:
		list, err = mergeIndexes(pages)
		return list, true, err
	case !errors.Is(err, ErrNotFound) && !errors.Is(err, ErrUnsupported) && (!errors.Is(err, errNoAPI) || len(pages) > 0):
		return nil, false, err
	}
	sure = SaysNo(err)
	m, err := r.Manifest(ctx, repo, d.Algorithm().String()+"-"+d.Encoded())
	if SaysNo(err) { // another server's 404 does not count: the stored list stays
		return NoReferrers(), sure, nil
	}
	if err != nil {
		return nil, false, err
	}
	if _, err := parseIndex(ctx, m.Content, m.MediaType); err != nil {
		return nil, false, r.failParse(q.op, ErrInvalid, "the fallback tag: "+err.Error(), err)
	}
	return m.Content, true, nil
}

// NoReferrers returns an index without manifests: nothing refers to the digest.
func NoReferrers() []byte {
	b, err := json.Marshal(ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageIndex,
		Manifests: []ocispec.Descriptor{},
	})
	if err != nil {
		panic(err) // it always marshals
	}
	return b
}

// errNoAPI: there is a response, but not from a referrers API.
var errNoAPI = errors.New("no referrers API")

// index is an image index. Its descriptors and unknown fields are not changed.
type index struct {
	fields    map[string]json.RawMessage
	manifests []json.RawMessage
}

func parseIndex(ctx context.Context, b []byte, contentType string) (index, error) {
	var i index
	var named string
	if err := bounds.Unmarshal(ctx, b, &i.fields); err != nil {
		return i, fmt.Errorf("not a JSON object: %w", err)
	}
	if m, ok := i.fields["mediaType"]; ok && json.Unmarshal(m, &named) != nil {
		return i, errors.New("mediaType is not a string")
	}
	if contentType != ocispec.MediaTypeImageIndex && named != ocispec.MediaTypeImageIndex {
		return i, errors.New("not an image index")
	}
	m, ok := i.fields["manifests"]
	if !ok { // it is required (image-spec, image-index.md)
		return i, errNoList
	}
	if err := bounds.Unmarshal(ctx, m, &i.manifests); err != nil {
		return i, fmt.Errorf("it has no list of manifests: %w", err)
	}
	return i, nil
}

// isEmpty reports whether an index has no manifests and no optional fields.
func (i index) isEmpty() bool {
	for name := range i.fields {
		if name != "schemaVersion" && name != "mediaType" && name != "manifests" {
			return false
		}
	}
	return len(i.manifests) == 0
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
		var link string
		var from *url.URL
		err := r.read(ctx, kind, q, func(resp *http.Response, b []byte) error {
			if size += len(b); size > maxListSize {
				return r.fail(q.op, ErrInvalid, "a list longer than %d bytes", maxListSize)
			}
			link, from = parseNextLink(resp.Header.Values("Link")), resp.Request.URL
			return page(b, mediaType(kind, resp))
		})
		if err != nil {
			return err
		}
		if link == "" {
			return nil
		}
		q, err = r.nextPage(q, from, link)
		if err != nil {
			return err
		}
		if seen[q.path+"?"+q.rawQuery] {
			return r.fail(q.op, ErrInvalid, "the list's pages form a loop")
		}
	}
	return r.fail(q.op, ErrInvalid, "a list of more than %d pages", maxPages)
}

// nextPage returns the query for the target of a Link. The target must be the same list,
// on the host of the page or of one of the registry's URLs. Only its query is used.
func (r *Registry) nextPage(q query, page *url.URL, link string) (query, error) {
	next, err := page.Parse(link)
	if err != nil {
		return q, r.fail(q.op, ErrInvalid, "the next page is not a URL")
	}
	known := next.Host == page.Host || slices.ContainsFunc(r.endpoints, func(e *endpoint) bool { return next.Host == e.base.Host })
	if !known || next.User != nil || !strings.HasSuffix(next.Path, "/"+q.path) {
		return q, r.fail(q.op, ErrInvalid, "the next page is not the list's own")
	}
	q.rawQuery = next.RawQuery
	return q, nil
}
