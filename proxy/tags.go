package proxy

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"strconv"

	"github.com/distribution/distribution/v3/registry/api/errcode"
	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/cachalot-registry/cachalot/storage"
	"github.com/cachalot-registry/cachalot/upstream"
)

// maxListQuery bounds what a client asks a list with: n and last, or what a registry's
// own Link said.
const maxListQuery = 1024

// wholeList is the name that the first page of a repository's tags is kept under, as
// the registry gives it to who asks for no length. No tag has a slash.
const wholeList = "tags/list"

// tagPages are the pages of tag lists that other pages have led to. Only these are
// kept, and the first ones: a client may ask for a list from anywhere, and each place
// would be kept for itself.
type tagPages struct {
	led *lru.Cache[cacheKey, struct{}]
}

func newTagPages() (*tagPages, error) {
	led, err := lru.New[cacheKey, struct{}](remember)
	return &tagPages{led}, err
}

// lead records that a page leads to another.
func (p *tagPages) lead(t target, next string) { p.led.Add(pageKey(t, next), struct{}{}) }

// worth reports whether the page of a query is worth keeping.
func (p *tagPages) worth(t target, query url.Values) bool {
	return len(query) == 0 || len(query) == 1 && query.Has("n") || p.led.Contains(pageKey(t, query.Encode()))
}

// pageKey is a page of a repository's list, by its query.
func pageKey(t target, query string) cacheKey {
	return cacheKey{t.registry.Name(), t.repo, upstream.KindTags, query}
}

// tags answers with a page of the repository's tags (OCI distribution-spec, "Listing
// tags"), as the upstream has it: n, last and what else is asked are the upstream's
// to answer. A page is kept like a tag.
func (p *Proxy) tags(w *response, r *http.Request, req request, t target) error {
	query := req.query
	if query.Has("n") {
		if n, err := strconv.Atoi(query.Get("n")); err != nil || n < 0 {
			return refuse(errcode.ErrorCodePaginationNumberInvalid, http.StatusBadRequest, "n is a number of tags, 0 or more")
		}
	}
	if len(query.Encode()) > maxListQuery {
		return refuse(errcode.ErrorCodePaginationNumberInvalid, http.StatusBadRequest, "the query has more than %d bytes", maxListQuery)
	}
	page, err := p.tagPage(w, t, query)
	if err != nil {
		return err
	}
	if page.next != "" {
		w.Header().Set("Link", nextLink(req, page.next))
	}
	done, err := p.holds(w.ctx, t, page.size())
	if err != nil {
		return err
	}
	defer done()
	w.Header().Set("Content-Type", "application/json")
	return writeParts(w, r, page.parts(t.name))
}

// nextLink is the Link to the next page (RFC 8288). It is relative, so that it holds
// behind a front that rewrites paths. But containers/image takes all of it but the
// path for the mirror's own: who asks for no length, as it does, gets the path, and
// no length in it.
func nextLink(req request, next string) string {
	path := "list"
	if !req.query.Has("n") {
		path = req.escaped
	}
	if req.namespace != "" {
		next += "&ns=" + url.QueryEscape(req.namespace)
	}
	return "<" + path + "?" + next + `>; rel="next"`
}

// tagPage returns the page that a query asks for.
func (p *Proxy) tagPage(w *response, t target, query url.Values) (tagList, error) {
	if page, ok := p.cutPage(w, t, query); ok {
		return page, nil
	}
	raw := query.Encode()
	fetch := func(ctx context.Context) (upstream.TagPage, error) {
		page, err := t.registry.TagPage(ctx, t.repo, raw)
		if err != nil || page.Next == "" {
			return page, err
		}
		if !query.Has("n") {
			page.Next = withoutLength(page.Next)
		}
		p.pages.lead(t, page.Next)
		return page, nil
	}
	name := wholeList
	if raw != "" {
		name += "?" + raw
	}
	_, kept := p.store.Tag(storage.TagKey{Upstream: t.registry.Name(), Repository: t.repo, Name: name})
	if kept || p.pages.worth(t, query) {
		return list(p, w, t, name, func(ctx context.Context) ([]byte, error) {
			page, err := fetch(ctx)
			if err != nil {
				return nil, err
			}
			return json.Marshal(page)
		}, readTagList)
	}
	page, err := once(w.ctx, p.checks, t.asks("page", pageKey(t, raw)), func(ctx context.Context) (tagList, error) {
		page, err := fetch(ctx)
		return newTagList(page), err
	})
	if err == nil {
		w.result = resultMiss
	}
	return page, err
}

// withoutLength is a next page's query without n, which the registry has put there for
// a client that asked for none: it gives as much to who asks for none again.
func withoutLength(next string) string {
	query, err := url.ParseQuery(next)
	if err != nil || !query.Has("last") {
		return next
	}
	query.Del("n")
	return query.Encode()
}

// cutPage cuts a page from the whole list, where that is kept and has only one page:
// no request is needed for it, and the upstream may be gone.
func (p *Proxy) cutPage(w *response, t target, query url.Values) (tagList, bool) {
	for name := range query {
		if name != "n" && name != "last" {
			return tagList{}, false
		}
	}
	_, kept := p.store.Tag(storage.TagKey{Upstream: t.registry.Name(), Repository: t.repo, Name: wholeList})
	if len(query) == 0 || !kept {
		return tagList{}, false
	}
	page, err := p.tagPage(w, t, nil)
	if err != nil || page.next != "" {
		return tagList{}, false
	}
	n, err := strconv.Atoi(query.Get("n"))
	if err != nil { // there is none: see tags
		n = -1
	}
	return page.page(query.Get("last"), n), true
}
