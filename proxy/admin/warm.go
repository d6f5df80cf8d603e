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
	maxWarming    = 4 // concurrent downloads of all warm requests
	maxWarmImages = 8 // concurrent images of all warm requests; the list of an image's blobs takes up to 4 MiB
)

// MaxImages is how many images a [WarmRequest] names at most.
const MaxImages = 1000

// WarmRequest is the body of POST warm. Without Platforms it is for linux and the mirror's own
// architecture.
type WarmRequest struct {
	Images    []string `json:"images"`
	Platforms []string `json:"platforms,omitempty"`
}

// WarmEvent is a line of the response of POST warm.
type WarmEvent struct {
	Event string `json:"event"` // progress, image or end

	// Of an image, when it is stored or has failed:
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
	BlobsFetched int64 `json:"blobs_fetched"` // the others were stored, or being downloaded
	Size         int64 `json:"size"`
	Done         int64 `json:"done"`    // of size
	Fetched      int64 `json:"fetched"` // of done, in complete blobs
}

// warmth is the progress of a request, or of one of its images. The parent of an image's is the
// request's.
type warmth struct {
	parent *warmth
	store  *storage.Store

	mu     sync.Mutex // guards the fields below
	sum    WarmEvent
	active map[digest.Digest]int64 // downloads in progress, with their sizes
}

// add applies a change to the progress, and to that of its parent.
func (w *warmth) add(change func(*WarmEvent)) {
	for ; w != nil; w = w.parent {
		w.mu.Lock()
		change(&w.sum)
		w.mu.Unlock()
	}
}

// now returns the progress so far, with the bytes of running downloads.
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

// fetching records a download until done is called.
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

// warm fetches images as a client's pull would: by the same rules and fills, so that content
// that is stored, or being downloaded, is not fetched again. It ends when the client
// disconnects; running downloads then finish.
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
				return nil // the other images continue
			})
		}
		return images.Wait() // errors are in the events
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

// pull returns the pull that a client would do for an image.
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

// warmImage fetches the content of an image for the platforms, and returns the platforms that
// it found.
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
	err   error // of the first blob without a valid digest, which ends the list
}

// add adds the blobs that a manifest names.
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

// mostPlatforms bounds the platforms that are reported of a manifest, or of an image that has
// none of the wanted ones.
const mostPlatforms = 16

// warmManifests fetches an image's manifest, and those of an index that are for the
// platforms. It returns the blobs that they name, and which platforms there were.
func (c *call) warmManifests(ctx context.Context, pull *proxy.Pull, d digest.Digest, platforms []string, w *warmth) (blobs *warmList, found []string, err error) {
	blobs = &warmList{known: map[digest.Digest]struct{}{}}
	names := map[digest.Digest][]string{} // the platforms of a manifest, as indexes say
	var there []string
	images := 0
	note := func(list []string, name string) []string {
		if len(list) == mostPlatforms || slices.Contains(list, name) {
			return list
		}
		return append(list, name)
	}
	manifests := &image.Walk{
		Reader: c.p.Stored().Reader,
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
	return cmp.Or(work.Wait(), context.Cause(ctx), list.err) // downloads that have begun finish
}

// fetch makes sure that content is stored, and opens it. size is -1 if it is not known.
func (c *call) fetch(ctx context.Context, pull *proxy.Pull, kind upstream.Kind, d digest.Digest, size int64, w *warmth) (*storage.Blob, error) {
	select {
	case c.warming <- struct{}{}:
		defer func() { <-c.warming }()
	case <-ctx.Done():
	}
	if err := context.Cause(ctx); err != nil { // a slot may be free because others saw the same
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
	done() // from here on it counts in Done
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
