package proxy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"

	"github.com/distribution/distribution/v3/registry/api/errcode"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cachalot-registry/cachalot/storage"
)

// tags answers with the repository's tags, a page of n after last (OCI
// distribution-spec, "Listing tags"). The whole list is kept, like a tag.
func (p *Proxy) tags(w *response, r *http.Request, t target) error {
	query := r.URL.Query()
	n := -1
	if query.Has("n") {
		var err error
		if n, err = strconv.Atoi(query.Get("n")); err != nil || n < 0 {
			return refuse(errcode.ErrorCodePaginationNumberInvalid, http.StatusBadRequest, "n is a number of tags, 0 or more")
		}
	}
	body, err := p.list(w, r, t, "tags/list", func(ctx context.Context) ([]byte, error) {
		tags, err := t.registry.Tags(ctx, t.repo)
		if err != nil {
			return nil, err
		}
		return json.Marshal(tags)
	})
	if err != nil {
		return err
	}
	var tags []string
	if err := json.Unmarshal(body, &tags); err != nil {
		return fmt.Errorf("read kept tag list: %w", err)
	}
	if last := query.Get("last"); last != "" {
		i, found := slices.BinarySearch(tags, last)
		if found {
			i++
		}
		tags = tags[i:]
	}
	if n >= 0 && n < len(tags) {
		tags = tags[:n]
		if n > 0 {
			next := url.Values{"n": {strconv.Itoa(n)}, "last": {tags[n-1]}}
			if ns := namespace(r); ns != "" {
				next.Set("ns", ns)
			}
			w.Header().Set("Link", "<"+r.URL.EscapedPath()+"?"+next.Encode()+`>; rel="next"`)
		}
	}
	if tags == nil {
		tags = []string{} // an empty list, not null
	}
	return writeJSON(w, r, "application/json", struct {
		Name string   `json:"name"`
		Tags []string `json:"tags"`
	}{t.name, tags})
}

// referrers answers with the manifests that refer to a digest (OCI
// distribution-spec, "Listing referrers"). The list is kept, like a tag;
// the filter is ours.
func (p *Proxy) referrers(w *response, r *http.Request, t target) error {
	body, err := p.list(w, r, t, "referrers/"+string(t.digest), func(ctx context.Context) ([]byte, error) {
		return t.registry.Referrers(ctx, t.repo, t.digest)
	})
	if err != nil {
		return err
	}
	artifactType := r.URL.Query().Get("artifactType")
	if artifactType == "" {
		w.Header().Set("Content-Type", ocispec.MediaTypeImageIndex)
		return writeBody(w, r, body)
	}
	var index map[string]json.RawMessage
	var manifests []json.RawMessage
	if err := json.Unmarshal(body, &index); err != nil {
		return fmt.Errorf("read kept referrers: %w", err)
	}
	if err := json.Unmarshal(index["manifests"], &manifests); err != nil {
		return fmt.Errorf("read kept referrers: %w", err)
	}
	kept := slices.DeleteFunc(manifests, func(raw json.RawMessage) bool {
		var m struct {
			ArtifactType string `json:"artifactType"`
		}
		return json.Unmarshal(raw, &m) != nil || m.ArtifactType != artifactType
	})
	if index["manifests"], err = json.Marshal(kept); err != nil {
		return err
	}
	w.Header().Set("OCI-Filters-Applied", "artifactType")
	return writeJSON(w, r, ocispec.MediaTypeImageIndex, index)
}

// list returns a list that is kept like a tag: under name, checked by fetching
// all of it. No tag can have that name, for its slash.
func (p *Proxy) list(w *response, r *http.Request, t target, name string, fetch func(context.Context) ([]byte, error)) ([]byte, error) {
	sc := t.scope()
	sc.Keep.NoStore = false // it is no content of an image, and read twice
	key := storage.TagKey{Upstream: sc.Upstream, Repository: sc.Repository, Name: name}
	ptr := pointer{key: key, freshFor: t.rules.freshFor, check: func(ctx context.Context, _ storage.Tag, _ bool) (digest.Digest, error) {
		body, err := fetch(ctx)
		if err != nil {
			return "", err
		}
		return p.keep(ctx, sc, "", body)
	}}
	// What was evicted, or could not be kept, is fetched again.
	again := func(ctx context.Context, s storage.Span) (*storage.Part, error) {
		body, err := fetch(ctx)
		if err != nil {
			return nil, err
		}
		return storage.Bytes("", body)(ctx, s)
	}
	for try := 0; ; try++ {
		res, err := p.resolve(w.ctx, ptr)
		if err != nil {
			return nil, err
		}
		body, err := p.readAll(w.ctx, sc, res.digest, again)
		switch {
		case err == nil:
			w.result = res.result
			return body, nil
		case !errors.Is(err, storage.ErrDigest) || try > 0:
			return nil, fmt.Errorf("read kept list: %w", err)
		}
		// It has changed since it was kept.
		if err := p.store.DeleteTag(key); err != nil {
			return nil, err
		}
	}
}

// readAll returns small content whole.
func (p *Proxy) readAll(ctx context.Context, sc storage.Scope, d digest.Digest, src storage.Source) ([]byte, error) {
	b, err := p.store.Get(ctx, sc, d, src)
	if err != nil {
		return nil, err
	}
	defer b.Close()
	body, err := io.ReadAll(b.Content)
	if err != nil {
		b.Broken()
	}
	return body, err
}

func writeJSON(w *response, r *http.Request, mediaType string, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", mediaType)
	return writeBody(w, r, body)
}

func writeBody(w *response, r *http.Request, body []byte) error {
	w.kept = true
	w.setCacheStatus()
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(http.StatusOK)
	if r.Method != http.MethodHead {
		_, _ = w.Write(body) // a client that has left is no news
	}
	return nil
}
