package proxy

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/cachalot-registry/cachalot/storage"
	"github.com/cachalot-registry/cachalot/task"
	"github.com/cachalot-registry/cachalot/upstream"
)

const maxWarming = 4 // downloads at once, of all who warm

// MaxImages is how many images a [WarmRequest] names at most.
const MaxImages = 1000

// WarmRequest is what POST warm takes. Without Platforms it is linux and the
// mirror's own architecture.
type WarmRequest struct {
	Images    []string `json:"images"`
	Platforms []string `json:"platforms,omitempty"`
}

// WarmEvent is a line of what POST warm answers.
type WarmEvent struct {
	Event string `json:"event"` // progress, image or end

	// Of an image, once it is here or has failed:
	Image     string        `json:"image,omitempty"`
	Digest    digest.Digest `json:"digest,omitempty"`
	Platforms []string      `json:"platforms,omitempty"`
	Error     string        `json:"error,omitempty"`

	// Of the image, or of all so far. Total sizes grow as manifests are read.
	Images       int   `json:"images"`
	ImagesDone   int   `json:"images_done"`
	ImagesFailed int   `json:"images_failed"`
	Blobs        int64 `json:"blobs"`
	BlobsDone    int64 `json:"blobs_done"`
	BlobsFetched int64 `json:"blobs_fetched"` // the others were here, or on their way
	Size         int64 `json:"size"`
	Done         int64 `json:"done"`    // of size
	Fetched      int64 `json:"fetched"` // of done, in blobs that are whole
}

// warmth is what came of warming. One image's is part of that of all.
type warmth struct {
	parent *warmth
	store  *storage.Store

	mu     sync.Mutex // guards the fields below
	sum    WarmEvent
	active map[digest.Digest]int64 // being fetched, and their sizes
}

// add counts a change, for the images together too.
func (w *warmth) add(change func(*WarmEvent)) {
	for ; w != nil; w = w.parent {
		w.mu.Lock()
		change(&w.sum)
		w.mu.Unlock()
	}
}

// now is what came of it so far, with what of running downloads is here.
func (w *warmth) now(event string) WarmEvent {
	w.mu.Lock()
	defer w.mu.Unlock()
	e := w.sum
	e.Event = event
	for d, size := range w.active {
		if f, ok := w.store.Fill(d); ok {
			e.Done += min(f.Written, size)
		}
	}
	return e
}

// fetching takes note of a download until done.
func (w *warmth) fetching(d digest.Digest, size int64) (done func()) {
	for at := w; at != nil; at = at.parent {
		at.mu.Lock()
		at.active[d] = size
		at.mu.Unlock()
	}
	return func() {
		for at := w; at != nil; at = at.parent {
			at.mu.Lock()
			delete(at.active, d)
			at.mu.Unlock()
		}
	}
}

// warm fetches images as a client's pull would: by the same rules and fills, so
// that what is here, or on its way, is not fetched again. It ends when the client
// leaves; what is being downloaded then comes to its end.
func (c *call) warm() error {
	var wanted WarmRequest
	if err := c.body(&wanted); err != nil {
		return err
	}
	if len(wanted.Images) == 0 || len(wanted.Images) > MaxImages {
		return invalid("images", "%d of them; name 1 to %d", len(wanted.Images), MaxImages)
	}
	c.audit.target = strings.Join(wanted.Images, " ")
	platforms, err := parsePlatforms(wanted.Platforms, "linux/"+runtime.GOARCH)
	if err != nil {
		return err
	}
	targets := make([]target, len(wanted.Images))
	for n, name := range wanted.Images {
		if targets[n], err = c.p.warmTarget(fmt.Sprintf("images[%d]", n), name); err != nil {
			return err
		}
	}
	out, done, err := c.stream()
	if err != nil {
		return err
	}
	defer done()
	all := &warmth{store: c.p.store, active: map[digest.Digest]int64{}, sum: WarmEvent{Images: len(targets)}}
	out.send(all.now("progress"))
	err = during(c.r.Context(), func() error {
		var images errgroup.Group
		images.SetLimit(maxWarming)
		for n, t := range targets {
			images.Go(func() error {
				one := &warmth{parent: all, store: c.p.store, active: map[digest.Digest]int64{}, sum: WarmEvent{Images: 1}}
				var d digest.Digest
				var found []string
				err := task.Try("warm", func() (err error) { d, found, err = c.warmImage(c.r.Context(), t, platforms, one); return err })
				one.add(func(e *WarmEvent) {
					e.ImagesDone++
					if err != nil {
						e.ImagesFailed++
					}
				})
				event := one.now("image")
				event.Image, event.Digest, event.Platforms = wanted.Images[n], d, found
				if err != nil {
					event.Error = err.Error()
				}
				out.send(event)
				return nil // the others go on
			})
		}
		return images.Wait() // what fails is in the events
	}, func() { out.send(all.now("progress")) })
	c.p.store.SumAnew()
	end := all.now("end")
	if err = cmp.Or(context.Cause(c.r.Context()), err); err != nil {
		end.Error = err.Error()
	}
	out.send(end)
	c.audit.attrs = append(c.audit.attrs, slog.Int("images", end.Images), slog.Int("failed", end.ImagesFailed),
		slog.Int64("blobs_fetched", end.BlobsFetched), slog.Int64("fetched", end.Fetched))
	if end.Error != "" {
		c.audit.attrs = append(c.audit.attrs, slog.String("ended", end.Error))
	}
	return nil
}

// warmTarget is the request that a client would make for an image.
func (p *Proxy) warmTarget(parameter, name string) (target, error) {
	i, err := p.parseImage(parameter, name)
	if err != nil {
		return target{}, err
	}
	t := target{kind: upstream.KindManifest, name: i.repo, repo: i.repo, digest: i.digest}
	if t.registry, err = p.registries.find("", i.upstream); err != nil {
		return target{}, invalid(parameter, "%v", err)
	}
	if len(t.repo) > maxName || !isName(t.repo) {
		return target{}, invalid(parameter, "%q is not the name of a repository", bounded(t.repo))
	}
	if t.digest == "" {
		if t.tag = i.tag; t.tag == "" {
			t.tag = "latest"
		}
	}
	return t, nil
}

// warmImage fetches what of an image is for the platforms, and returns which there were.
func (c *call) warmImage(ctx context.Context, t target, platforms []string, w *warmth) (d digest.Digest, found []string, err error) {
	p := c.p
	if t.rules, err = p.cfg.rulesFor(t); err != nil {
		return "", nil, err
	}
	if t.rules.noStore {
		return "", nil, errors.New("a rule of the configuration says no_store for this repository")
	}
	if d = t.digest; d == "" {
		res, err := p.resolve(ctx, p.tagPointer(t))
		if err != nil {
			return "", nil, err
		}
		d = res.digest
	}
	manifests, found, err := c.warmManifest(ctx, t, d, nil, platforms, mostNested, w)
	if err != nil {
		return d, found, err
	}
	blobs := t
	blobs.kind, blobs.tag = upstream.KindBlob, ""
	work, ctx := errgroup.WithContext(ctx)
	known := map[digest.Digest]bool{}
	for _, m := range manifests {
		for _, b := range m.blobs() {
			if known[b.Digest] || foreign(b) {
				continue
			}
			known[b.Digest] = true
			if _, err := storage.ParseDigest(string(b.Digest)); err != nil {
				_ = work.Wait() // what has begun comes to its end
				return d, found, fmt.Errorf("the manifest names %q: %w", bounded(string(b.Digest)), err)
			}
			w.add(func(e *WarmEvent) { e.Blobs, e.Size = e.Blobs+1, e.Size+max(b.Size, 0) })
			work.Go(func() error {
				return task.Try("warm", func() error {
					_, err := c.fetch(ctx, blobs, b.Digest, b.Size, w)
					return err
				})
			})
		}
	}
	return d, found, work.Wait()
}

// warmManifest fetches a manifest, and those of an index that are for the platforms.
func (c *call) warmManifest(ctx context.Context, t target, d digest.Digest, of *ocispec.Platform, platforms []string, deeper int, w *warmth) (all []manifestBody, found []string, err error) {
	if _, err := storage.ParseDigest(string(d)); err != nil {
		return nil, nil, fmt.Errorf("the index names %q: %w", bounded(string(d)), err)
	}
	w.add(func(e *WarmEvent) { e.Blobs++ })
	body, err := c.fetch(ctx, t, d, -1, w)
	if err != nil {
		return nil, nil, err
	}
	var m manifestBody
	if err := json.Unmarshal(body, &m); err != nil {
		return nil, nil, fmt.Errorf("read manifest %s: %w", d, err)
	}
	if len(m.Manifests) == 0 || deeper == 0 {
		if of != nil {
			found = []string{platformName(*of)}
		}
		return []manifestBody{m}, found, nil
	}
	there := []string{}
	for n, child := range m.Manifests {
		if child.Platform != nil {
			there = append(there, platformName(*child.Platform))
		}
		// An index in an index names no platform.
		nested := child.Platform == nil && strings.Contains(child.MediaType, "index")
		if n >= mostManifests || !nested && !fitsPlatform(child.Platform, platforms) {
			continue
		}
		more, names, err := c.warmManifest(ctx, t, child.Digest, child.Platform, platforms, deeper-1, w)
		if err != nil {
			return nil, nil, err
		}
		all, found = append(all, more...), append(found, names...)
	}
	if len(all) == 0 {
		return nil, nil, fmt.Errorf("not for %s; there is %s", strings.Join(platforms, ", "), strings.Join(there, ", "))
	}
	return all, found, nil
}

// fetch makes content be kept here, and returns a manifest's. size is -1 where it
// is not known.
func (c *call) fetch(ctx context.Context, t target, d digest.Digest, size int64, w *warmth) (body []byte, err error) {
	select {
	case c.warming <- struct{}{}:
		defer func() { <-c.warming }()
	case <-ctx.Done():
	}
	if err := context.Cause(ctx); err != nil { // a slot is free as well where others have left theirs for that
		return nil, err
	}
	done := w.fetching(d, max(size, 0))
	defer done()
	b, err := c.p.open(ctx, t, d)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", d, err)
	}
	defer b.Close()
	fetched := b.Outcome == storage.Miss
	switch err := b.Wait(ctx); {
	case errors.Is(err, storage.ErrNotKept):
		return nil, fmt.Errorf("%s: there is no room to keep it", d)
	case err != nil:
		return nil, fmt.Errorf("%s: %w", d, c.p.broke(ctx, t, d, err))
	case !c.p.store.Kept(d):
		return nil, fmt.Errorf("%s: it could not be kept; cachalot's log says why", d)
	}
	if t.kind == upstream.KindManifest {
		if body, err = io.ReadAll(io.LimitReader(b.Content, upstream.MaxManifestSize)); err != nil {
			return nil, fmt.Errorf("read manifest %s: %w", d, err)
		}
	}
	length := size
	if size < 0 {
		length = int64(len(body))
	}
	done() // it counts below now
	w.add(func(e *WarmEvent) {
		if size < 0 {
			e.Size += length
		}
		e.BlobsDone++
		e.Done += length
		if fetched {
			e.BlobsFetched++
			e.Fetched += length
		}
	})
	return body, nil
}

// verified adds what a verification found.
func (a *audit) verified(v storage.Verification, err error) {
	a.attrs = append(a.attrs, slog.Int("blobs", v.Blobs), slog.Int("damaged", len(v.Damaged)))
	if err != nil {
		a.attrs = append(a.attrs, slog.String("ended", err.Error()))
	}
}
