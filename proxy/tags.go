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

// maxListQuery bounds the length of a list's query: n and last, or the query of a
// registry's Link.
const maxListQuery = 1024

// wholeList is the name under which the first page of a repository's tags is stored, as the
// registry sends it without n. No tag has a slash.
const wholeList = "tags/list"

// tagPages has the pages of tag lists that other pages link to. Only these and first pages
// are stored: a client can ask for a page after any text, and each would be stored.
type tagPages struct {
	led *lru.Cache[cacheKey, struct{}]
}

func newTagPages() (*tagPages, error) {
	led, err := lru.New[cacheKey, struct{}](remember)
	return &tagPages{led}, err
}

// lead records that a page links to another one.
func (p *tagPages) lead(t target, next string) { p.led.Add(pageKey(t, next), struct{}{}) }

// worth reports whether the page of a query is stored.
func (p *tagPages) worth(t target, query url.Values) bool {
	return len(query) == 0 || len(query) == 1 && query.Has("n") || p.led.Contains(pageKey(t, query.Encode()))
}

// pageKey is the key of a page of a repository's list, by its query.
func pageKey(t target, query string) cacheKey {
	return cacheKey{t.registry.Name(), t.repo, upstream.KindTags, query}
}

// tags answers with a page of the repository's tags (OCI distribution-spec, "Listing
// tags"). The upstream gets the query: n, last and all else. A page is stored like a tag.
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

// nextLink returns the Link to the next page (RFC 8288). It is relative, so that it works
// behind a proxy that rewrites paths. But containers/image needs the path in it: a client
// that sends no n, as containers/image, gets a Link with the path, and without n.
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
	_, stored := p.store.Tag(storage.TagKey{Upstream: t.registry.Name(), Repository: t.repo, Name: name})
	if stored || p.pages.worth(t, query) {
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

// withoutLength removes n from the query of a next page, for a client that sent no n. The
// registry then uses its own page length again.
func withoutLength(next string) string {
	query, err := url.ParseQuery(next)
	if err != nil || !query.Has("last") {
		return next
	}
	query.Del("n")
	return query.Encode()
}

// cutPage cuts a page from the whole list, if that is stored and has only one page. It needs
// no request, so it works while the upstream is down.
func (p *Proxy) cutPage(w *response, t target, query url.Values) (tagList, bool) {
	for name := range query {
		if name != "n" && name != "last" {
			return tagList{}, false
		}
	}
	_, stored := p.store.Tag(storage.TagKey{Upstream: t.registry.Name(), Repository: t.repo, Name: wholeList})
	if len(query) == 0 || !stored {
		return tagList{}, false
	}
	page, err := p.tagPage(w, t, nil)
	if err != nil || page.next != "" {
		return tagList{}, false
	}
	n, err := strconv.Atoi(query.Get("n"))
	if err != nil { // the query has no n: see tags
		n = -1
	}
	return page.page(query.Get("last"), n), true
}
