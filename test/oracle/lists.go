package oracle

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

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// tagsOf returns all tags of a repository.
func tagsOf() []string { return []string{Tag, "v1", "v2", "v3", "v4"} }

// listings are the lists of a repository: its tags, and the referrers of the image whose
// tag does not move.
type listings struct{ tags, referrers string }

// lists compares the lists of a repository, direct and through the mirror.
func (r *pulls) lists(p phase, repo string) error {
	straight, broken := listings{}, errors.New("the registry is out")
	if p != during {
		for range 3 {
			if straight, broken = r.list(r.straight.host(), repo); broken == nil || errors.Is(broken, context.DeadlineExceeded) {
				break
			}
		}
	}
	before := r.keptLists(p, repo)
	truth := listings{strings.Join(tagsOf(), " "), string(r.straight.signature.Digest)}
	for begun := time.Now(); ; r.rest() {
		got, err := r.list(r.mirror, repo)
		switch late := time.Since(begun) > r.pace.healing; {
		case err == nil && late && got != truth && (broken != nil || got != straight) && (before == nil || got != *before):
			return fmt.Errorf("the lists through the mirror are %+v; straight %+v, %w", got, straight, broken)
		case err == nil && (got == truth || broken == nil && got == straight || before != nil && got == *before || broken != nil && before == nil):
			if got.referrers != "" { // an empty list counts as a 404, which is stored only briefly
				r.keepLists(repo, got)
			}
			return nil
		case broken == nil && late:
			return fmt.Errorf("it is listed straight, and not through the mirror: %w", err)
		case before != nil && late:
			return fmt.Errorf("it was listed through the mirror before, and is not now: %w (straight: %v)", err, broken) //nolint:errorlint // one is enough
		case broken != nil && before == nil:
			return nil
		}
	}
}

func (r *pulls) keepLists(repo string, l listings) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.listed[repo] = l
}

// keptLists are the lists that the mirror must have stored; nil: none.
func (r *pulls) keptLists(p phase, repo string) *listings {
	r.mu.Lock()
	defer r.mu.Unlock()
	l, ok := r.listed[repo]
	if !ok || slices.ContainsFunc(r.draw.quirks, func(q quirk) bool { return q.from <= p && (q.noLists == repo || q.no == "all") }) {
		return nil
	}
	return &l
}

// list fetches all pages of the lists, two tags per page.
func (r *pulls) list(host, repo string) (listings, error) {
	ctx, cancel := context.WithTimeout(context.Background(), r.pace.patience)
	defer cancel()
	own := r.transport()
	defer own.CloseIdleConnections()
	to, err := name.NewRepository(host+"/"+repo, name.Insecure)
	if err != nil {
		return listings{}, err
	}
	authorized, err := transport.NewWithContext(ctx, to.Registry, authn.Anonymous, own, []string{to.Scope(transport.PullScope)})
	if err != nil {
		return listings{}, err
	}
	var tags []string
	for next := "http://" + host + "/v2/" + repo + "/tags/list?n=2"; next != ""; {
		var page struct{ Tags []string }
		header, err := getJSON(ctx, authorized, next, &page)
		if err != nil {
			return listings{}, fmt.Errorf("tags: %w", err)
		}
		tags = append(tags, page.Tags...)
		if next, err = nextLink(next, header.Get("Link")); err != nil {
			return listings{}, err
		}
		if len(tags) > 100 {
			return listings{}, errors.New("tags without end")
		}
	}
	var index ocispec.Index
	subject := r.straight.other.root.Digest
	_, err = getJSON(ctx, authorized, "http://"+host+"/v2/"+repo+"/referrers/"+string(subject), &index)
	if errors.Is(err, errGone) { // without the API, the registry has a fallback tag
		index = ocispec.Index{}
		_, err = getJSON(ctx, authorized, "http://"+host+"/v2/"+repo+"/manifests/"+strings.Replace(string(subject), ":", "-", 1), &index)
		if errors.Is(err, errGone) {
			index.Manifests, err = []ocispec.Descriptor{}, nil
		}
	}
	if err != nil {
		return listings{}, fmt.Errorf("referrers: %w", err)
	}
	if err == nil && index.Manifests == nil {
		return listings{}, errors.New("referrers: not an index")
	}
	var referrers []string
	for _, m := range index.Manifests {
		referrers = append(referrers, string(m.Digest))
	}
	return listings{strings.Join(tags, " "), strings.Join(referrers, " ")}, nil
}

var errGone = errors.New("404")

func getJSON(ctx context.Context, by http.RoundTripper, url string, v any) (http.Header, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return nil, err
	}
	resp, err := (&http.Client{Transport: by}).Do(req) //nolint:bodyclose // ReadAll does
	if err != nil {
		return nil, err
	}
	b, err := ReadAll(resp.Body, nil)
	switch {
	case err != nil:
		return nil, err
	case resp.StatusCode == http.StatusNotFound:
		return nil, errGone
	case resp.StatusCode != http.StatusOK:
		return nil, errors.New(resp.Status)
	}
	return resp.Header, json.Unmarshal(b, v)
}

// nextLink is the URL of the next page, or "" if there is none.
func nextLink(from, link string) (string, error) {
	target, _, ok := strings.Cut(strings.TrimPrefix(link, "<"), ">")
	if !ok {
		return "", nil
	}
	base, err := url.Parse(from)
	if err != nil {
		return "", err
	}
	next, err := base.Parse(target)
	if err != nil {
		return "", err
	}
	return next.String(), nil
}
