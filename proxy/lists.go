package proxy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cachalot-registry/cachalot/storage"
	"github.com/cachalot-registry/cachalot/upstream"
)

// referrers answers with the manifests that refer to a digest (OCI
// distribution-spec, "Listing referrers"). The list is kept, like a tag;
// the filter is ours.
func (p *Proxy) referrers(w *response, r *http.Request, t target) error {
	name := "referrers/" + string(t.digest)
	kept, known := p.store.Tag(storage.TagKey{Upstream: t.registry.Name(), Repository: t.repo, Name: name})
	none := kept.Digest == digest.FromBytes(upstream.NoReferrers())
	if known && none {
		// A signature follows its image within seconds: that there is none is worth as
		// little as that there is no tag.
		t.rules.freshFor = min(t.rules.freshFor, p.cfg.NegativeFor)
	}
	body, err := p.list(w, t, name, func(ctx context.Context) ([]byte, error) {
		list, sure, err := t.registry.Referrers(ctx, t.repo, t.digest)
		if err == nil && !sure && known && !none {
			err = fmt.Errorf("%w: what answers for the referrers API is none", upstream.ErrUnavailable)
		}
		return list, err
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
	if index == nil { // null, which an older cachalot has kept
		index = map[string]json.RawMessage{}
	}
	if list := index["manifests"]; list != nil {
		if err := json.Unmarshal(list, &manifests); err != nil {
			return fmt.Errorf("read kept referrers: %w", err)
		}
	}
	fitting := []json.RawMessage{} // an empty list, not null
	for _, raw := range manifests {
		var m struct {
			ArtifactType string `json:"artifactType"`
		}
		if json.Unmarshal(raw, &m) == nil && m.ArtifactType == artifactType {
			fitting = append(fitting, raw)
		}
	}
	if index["manifests"], err = json.Marshal(fitting); err != nil {
		return err
	}
	w.Header().Set("OCI-Filters-Applied", "artifactType")
	return writeJSON(w, r, ocispec.MediaTypeImageIndex, index)
}

// list returns a list that is kept like a tag: under name, checked by fetching
// all of it. No tag can have that name, for its slash.
func (p *Proxy) list(w *response, t target, name string, fetch func(context.Context) ([]byte, error)) ([]byte, error) {
	sc := t.scope()
	sc.Keep.NoStore = false // it is no content of an image, and read twice
	key := storage.TagKey{Upstream: sc.Upstream, Repository: sc.Repository, Name: name}
	ptr := pointer{key: key, client: t.client, freshFor: t.rules.freshFor, check: func(ctx context.Context, _ storage.Tag, _ bool) (digest.Digest, error) {
		body, err := fetch(ctx)
		if err != nil {
			return "", err
		}
		return p.keep(ctx, sc, upstream.Resolved{Content: body})
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
			w.result, w.kept = res.result, true
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
	w.setCacheStatus()
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(http.StatusOK)
	if r.Method != http.MethodHead {
		_, _ = w.Write(body) // a client that has left is no news
	}
	return nil
}
