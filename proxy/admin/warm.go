package admin

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/cachalot-registry/cachalot/proxy"
	"github.com/cachalot-registry/cachalot/proxy/image"
	"github.com/cachalot-registry/cachalot/storage"
	"github.com/cachalot-registry/cachalot/task"
	"github.com/cachalot-registry/cachalot/upstream"
)

const (
	maxWarming    = 4 // downloads at once, of all who warm
	maxWarmImages = 8 // whose blobs are known, of all who warm: up to 4 MiB each
)

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
		return invalid("images", "%d images; name 1 to %d", len(wanted.Images), MaxImages)
	}
	c.audit.target = strings.Join(wanted.Images, " ")
	platforms, err := parsePlatforms(wanted.Platforms, "linux/"+runtime.GOARCH)
	if err != nil {
		return err
	}
	pulls := make([]*proxy.Pull, len(wanted.Images))
	for n, name := range wanted.Images {
		if pulls[n], err = c.pull(fmt.Sprintf("images[%d]", n), name); err != nil {
			return err
		}
	}
	out, done, err := c.stream()
	if err != nil {
		return err
	}
	defer done()
	all := &warmth{store: c.p.Store(), active: map[digest.Digest]int64{}, sum: WarmEvent{Images: len(pulls)}}
	out.send(all.now("progress"))
	err = during(c.r.Context(), func() error {
		var images errgroup.Group
		images.SetLimit(maxWarming)
		for n, pull := range pulls {
			images.Go(func() error {
				one := &warmth{parent: all, store: c.p.Store(), active: map[digest.Digest]int64{}, sum: WarmEvent{Images: 1}}
				var d digest.Digest
				var found []string
				err := task.Try("warm", func() (err error) { d, found, err = c.warmImage(c.r.Context(), pull, platforms, one); return err })
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
	c.p.Store().InvalidateSummary()
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

// pull is what a client would do for an image.
func (c *call) pull(parameter, name string) (*proxy.Pull, error) {
	i, err := c.parseImage(parameter, name)
	if err != nil {
		return nil, err
	}
	pull, err := c.p.NewPull(i.upstream, i.repo, i.tag, i.digest)
	if err != nil {
		return nil, invalid(parameter, "%v", err)
	}
	return pull, nil
}

// warmImage fetches what of an image is for the platforms, and returns which there were.
func (c *call) warmImage(ctx context.Context, pull *proxy.Pull, platforms []string, w *warmth) (d digest.Digest, found []string, err error) {
	if err := c.images.Acquire(ctx, 1); err != nil {
		return "", nil, context.Cause(ctx)
	}
	defer c.images.Release(1)
	if d, err = pull.Resolve(ctx); err != nil {
		return "", nil, err
	}
	blobs, found, err := c.warmManifests(ctx, pull, d, platforms, w)
	if err != nil {
		return d, found, err
	}
	return d, found, c.warmBlobs(ctx, pull, blobs, w)
}

// warmBlob is a blob that is to be fetched.
type warmBlob struct {
	digest digest.Digest
	size   int64 // as claimed
}

// warmList has the blobs of an image, each once.
type warmList struct {
	blobs []warmBlob
	known map[digest.Digest]struct{}
	err   error // of the first blob that has no digest, which ends the list
}

// add takes what a manifest names.
func (l *warmList) add(blobs []image.Descriptor) {
	for _, b := range blobs {
		if _, known := l.known[b.Digest]; known || b.Foreign() {
			continue
		}
		if err := b.Check(); err != nil {
			l.err = fmt.Errorf("the manifest names %q: %w", b.Digest, err)
		}
		if l.err != nil {
			return
		}
		l.known[b.Digest] = struct{}{}
		l.blobs = append(l.blobs, warmBlob{b.Digest, b.Size})
	}
}

// mostPlatforms of an image that has others are told of, and of one manifest.
const mostPlatforms = 16

// warmManifests fetches an image's manifest, and those of an index that are for the
// platforms. It returns the blobs that they name, and which platforms there were.
func (c *call) warmManifests(ctx context.Context, pull *proxy.Pull, d digest.Digest, platforms []string, w *warmth) (blobs *warmList, found []string, err error) {
	blobs = &warmList{known: map[digest.Digest]struct{}{}}
	names := map[digest.Digest][]string{} // what indexes say that a manifest is for
	var there []string
	images := 0
	note := func(list []string, name string) []string {
		if len(list) == mostPlatforms || slices.Contains(list, name) {
			return list
		}
		return append(list, name)
	}
	manifests := &image.Walk{
		Reader: c.p.Kept().Reader,
		Open: func(ctx context.Context, d image.Descriptor) (*storage.Blob, error) {
			if err := d.Check(); err != nil {
				return nil, fmt.Errorf("the index names %q: %w", d.Digest, err)
			}
			w.add(func(e *WarmEvent) { e.Blobs++ })
			return c.fetch(ctx, pull, upstream.KindManifest, d.Digest, -1, w)
		},
		Follow: func(child image.Descriptor) bool {
			if child.Platform == nil { // an index in an index has none
				return strings.Contains(child.MediaType, "index") || child.Platform.Matches(platforms)
			}
			name := child.Platform.String()
			there = note(there, name)
			if !child.Platform.Matches(platforms) {
				return false
			}
			names[child.Digest] = note(names[child.Digest], name)
			return true
		},
		Exceeds: func(bound string) error {
			return fmt.Errorf("the image has %s: name fewer platforms, or name the manifests by their digests", bound)
		},
	}
	err = manifests.Run(ctx, image.Descriptor{Digest: d}, func(n *image.Node) error {
		if n.Err == nil && !n.IsIndex() {
			images++
			found = append(found, names[n.Named.Digest]...)
			blobs.add(n.Blobs())
		}
		return n.Err
	})
	if err == nil && images == 0 {
		err = fmt.Errorf("no manifest for %s; the image has %s", strings.Join(platforms, ", "), strings.Join(there, ", "))
	}
	if err != nil {
		return nil, nil, err
	}
	return blobs, found, nil
}

// warmBlobs fetches blobs, a few at a time.
func (c *call) warmBlobs(ctx context.Context, pull *proxy.Pull, list *warmList, w *warmth) error {
	w.add(func(e *WarmEvent) {
		e.Blobs += int64(len(list.blobs))
		for _, b := range list.blobs {
			e.Size = image.Plus(e.Size, b.size)
		}
	})
	work, working := errgroup.WithContext(ctx)
	work.SetLimit(maxWarming)
	for _, b := range list.blobs {
		if working.Err() != nil {
			break
		}
		work.Go(func() error {
			return task.Try("warm", func() error {
				content, err := c.fetch(working, pull, upstream.KindBlob, b.digest, b.size, w)
				if err == nil {
					content.Close()
				}
				return err
			})
		})
	}
	return cmp.Or(work.Wait(), context.Cause(ctx), list.err) // what has begun comes to its end
}

// fetch makes content be kept here, and opens it. size is -1 where it is not known.
func (c *call) fetch(ctx context.Context, pull *proxy.Pull, kind upstream.Kind, d digest.Digest, size int64, w *warmth) (*storage.Blob, error) {
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
	b, err := pull.Fetch(ctx, kind, d)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", d, err)
	}
	known := size
	if known < 0 {
		if known, err = image.Length(b); err != nil {
			b.Close()
			return nil, fmt.Errorf("read manifest %s: %w", d, err)
		}
	}
	fetched := b.Outcome == storage.Miss
	done() // it counts below now
	w.add(func(e *WarmEvent) {
		if size < 0 {
			e.Size = image.Plus(e.Size, known)
		}
		e.BlobsDone++
		e.Done = image.Plus(e.Done, known)
		if fetched {
			e.BlobsFetched++
			e.Fetched = image.Plus(e.Fetched, known)
		}
	})
	return b, nil
}

// verified adds what a verification found.
func (a *audit) verified(v storage.Verification, err error) {
	a.attrs = append(a.attrs, slog.Int("blobs", v.Blobs), slog.Int("damaged", len(v.Damaged)))
	if err != nil {
		a.attrs = append(a.attrs, slog.String("ended", err.Error()))
	}
}
