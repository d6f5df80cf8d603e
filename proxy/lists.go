package proxy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"maps"
	"net/http"
	"slices"
	"strconv"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cachalot-registry/cachalot/bounds"
	"github.com/cachalot-registry/cachalot/storage"
	"github.com/cachalot-registry/cachalot/storage/download"
	"github.com/cachalot-registry/cachalot/upstream"
)

// referrers answers with the manifests that refer to a digest (OCI distribution-spec,
// "Listing referrers"). The list is stored, like a tag; the mirror filters it itself.
func (p *Proxy) referrers(w *response, r *http.Request, req request, t target) error {
	name := "referrers/" + string(t.digest)
	stored, known := p.store.Tag(storage.TagKey{Upstream: t.registry.Name(), Repository: t.repo, Name: name})
	none := stored.Digest == digest.FromBytes(upstream.NoReferrers())
	if known && none {
		// A signature follows its image within seconds, so an empty list is fresh only as
		// long as a 404.
		t.policy.freshFor = min(t.policy.freshFor, p.cfg.NegativeFor)
	}
	list, err := list(p, w, t, name, func(ctx context.Context) ([]byte, error) {
		list, sure, err := t.registry.Referrers(ctx, t.repo, t.digest)
		if err == nil && !sure && known && !none {
			err = &told{is: upstream.ErrUnavailable, words: "the answer is not a referrers list"}
		}
		return list, err
	}, readReferrers)
	if err != nil {
		return err
	}
	done, err := p.holds(w.ctx, t, list.size())
	if err != nil {
		return err
	}
	defer done()
	w.Header().Set("Content-Type", ocispec.MediaTypeImageIndex)
	artifactType := req.query.Get("artifactType")
	if artifactType == "" {
		return writeBody(w, r, list.body)
	}
	w.Header().Set("OCI-Filters-Applied", "artifactType")
	return writeParts(w, r, list.filtered(artifactType))
}

// referrersList is an image index of what refers to a digest.
type referrersList struct {
	body      []byte
	fields    map[string]json.RawMessage // less the manifests
	manifests []referrer
}

type referrer struct {
	artifactType string
	raw          json.RawMessage
}

// size returns the memory of the list, about.
func (l referrersList) size() int {
	const each = 64 // a referrer, and the beginning of its text
	return 2*len(l.body) + each*len(l.manifests)
}

func readReferrers(ctx context.Context, body []byte) (referrersList, error) {
	l := referrersList{body: body}
	var manifests []json.RawMessage
	err := bounds.Unmarshal(ctx, body, &l.fields)
	if list := l.fields["manifests"]; err == nil && list != nil { // an older cachalot stored null
		err = bounds.Unmarshal(ctx, list, &manifests)
	}
	if err != nil {
		return l, fmt.Errorf("read stored referrers: %w", err)
	}
	delete(l.fields, "manifests")
	for _, raw := range manifests {
		var m struct {
			ArtifactType string `json:"artifactType"`
		}
		_ = json.Unmarshal(raw, &m) // an invalid descriptor has no type
		l.manifests = append(l.manifests, referrer{m.ArtifactType, raw})
	}
	return l, nil
}

// filtered returns the list of the manifests with a type, in parts.
func (l referrersList) filtered(artifactType string) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		parts := [][]byte{[]byte("{")}
		for _, name := range slices.Sorted(maps.Keys(l.fields)) {
			parts = append(parts, quoted(name), []byte(":"), l.fields[name], []byte(","))
		}
		parts = append(parts, []byte(`"manifests":[`))
		for _, p := range parts {
			if !yield(p) {
				return
			}
		}
		first := true
		for _, m := range l.manifests {
			if m.artifactType != artifactType || m.artifactType == "" {
				continue
			}
			if !first && !yield([]byte(",")) || !yield(m.raw) {
				return
			}
			first = false
		}
		yield([]byte("]}"))
	}
}

// list returns a list that is stored like a tag, under a name with a slash, which no tag
// has. A check downloads the whole list. Callers that want it at about the same time share
// one read; they must not change it.
func list[T interface{ size() int }](p *Proxy, w *response, t target, name string, fetch func(context.Context) ([]byte, error), read func(context.Context, []byte) (T, error)) (T, error) {
	var none T
	sc := t.scope()
	sc.Keep.NoStore = false // a list is no content of an image, and it is read again below
	key := storage.TagKey{Upstream: sc.Upstream, Repository: sc.Repository, Name: name}
	ptr := pointer{key: key, client: t.client, freshFor: t.policy.freshFor, check: func(ctx context.Context, _ storage.Tag, _ bool) (digest.Digest, error) {
		body, err := fetch(ctx)
		if err != nil {
			return "", err
		}
		return p.keep(ctx, sc, upstream.Resolved{Content: body})
	}}
	// A list that was evicted, or could not be stored, is downloaded again.
	again := func(ctx context.Context, s download.Span) (*download.Part, error) {
		ctx, closed := p.cfg.Memory.Account(ctx, t.holder())
		body, err := fetch(ctx)
		if err != nil {
			closed()
			return nil, err
		}
		part, err := download.Bytes("", body)(ctx, s)
		return accounted(part, closed), err
	}
	for try := 0; ; try++ {
		res, err := p.resolve(w.ctx, ptr)
		if err != nil {
			return none, err
		}
		l, err := readOnce(w.ctx, p, t, listKey{string(t.kind), res.digest}, func(ctx context.Context) (T, int, error) {
			body, err := p.readAll(ctx, sc, res.digest, again)
			if err != nil {
				return none, 0, err
			}
			l, err := read(ctx, body)
			return l, l.size(), err
		})
		switch {
		case err == nil:
			w.result, w.stored = res.result, true
			return l, nil
		case !errors.Is(err, storage.ErrDigest) || try > 0:
			return none, fmt.Errorf("read stored list: %w", err)
		}
		// The downloaded list is not the stored one any more.
		if err := p.store.DeleteTag(key); err != nil {
			return none, err
		}
	}
}

// readAll returns the whole of small content.
func (p *Proxy) readAll(ctx context.Context, sc storage.Scope, d digest.Digest, src download.Source) ([]byte, error) {
	b, err := p.store.Get(ctx, sc, d, src)
	if err != nil {
		return nil, err
	}
	defer b.Close()
	body, err := bounds.ReadAll(ctx, b.Content, b.Size)
	if err != nil && !errors.Is(err, bounds.ErrNoMemory) {
		b.Broken()
	}
	return body, err
}

func writeBody(w *response, r *http.Request, body []byte) error {
	return writeParts(w, r, func(yield func([]byte) bool) { yield(body) })
}

// writeParts writes an answer in parts, so that no client needs all of it in memory.
func writeParts(w *response, r *http.Request, parts iter.Seq[[]byte]) error {
	length := 0
	for p := range parts {
		length += len(p)
	}
	w.setCacheStatus()
	w.Header().Set("Content-Length", strconv.Itoa(length))
	w.WriteHeader(http.StatusOK)
	if r.Method == http.MethodHead {
		return nil
	}
	for p := range parts {
		if _, err := w.Write(p); err != nil {
			return nil // a client that has left is no news
		}
	}
	return nil
}
