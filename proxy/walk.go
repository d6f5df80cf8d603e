package proxy

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"math"

	"github.com/opencontainers/go-digest"

	"github.com/cachalot-registry/cachalot/storage"
)

// Bounds of a walk. To name a manifest a million times, or indexes in indexes, costs
// its publisher nothing.
const (
	maxWalkDepth       = 4     // of what an image names: indexes in indexes
	maxWalkManifests   = 1000  // indexes and those that are not here too
	maxWalkDescriptors = 20000 // that all manifests have
	maxWalkBytes       = 64 << 20
)

// walk looks at the manifests of an image: what the image names, and what that names,
// each once. It is the one way to do so. It belongs to one goroutine.
type walk struct {
	reader manifestReader
	// open opens a manifest whose content is here, and which the walk closes. nil: it
	// is not here.
	open func(context.Context, descriptor) (*storage.Blob, error)
	// follow reports whether a manifest that an index names is looked at. nil: all are.
	follow func(descriptor) bool
	// exceeds is told of a bound that leaves something out. Its error ends the walk.
	exceeds func(bound string) error

	manifests, descriptors int   // so far
	bytes                  int64 // read so far
}

// node is a manifest that a walk looks at.
type node struct {
	descriptor // what names it
	manifest   // what it names

	depth int   // 0 for the image itself
	here  bool  // or else it names nothing that is known
	size  int64 // its own; as claimed, where it is not here
	err   error // it is no manifest, and names nothing
}

// isIndex says whether a manifest names others.
func (n *node) isIndex() bool { return len(n.manifests) > 0 }

// run visits the image and then what it names, those in an index before those in its
// indexes: so each is reached by the shortest way. What visit is given is its own
// until it returns. A walk ends with ctx.
func (w *walk) run(ctx context.Context, image descriptor, visit func(*node) error) error {
	type found struct {
		descriptor
		depth int
	}
	next := []found{{image, 0}}
	seen := map[digest.Digest]struct{}{image.Digest: {}}
	for len(next) > 0 {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if bound := w.bound(); bound != "" {
			return w.exceeds(bound)
		}
		n := &node{descriptor: next[0].descriptor, depth: next[0].depth}
		next = next[1:]
		w.manifests++
		if err := w.read(ctx, n); err != nil {
			return err
		}
		if n.truncated {
			bound := cmp.Or(w.bound(), fmt.Sprintf("more than %d descriptors in a manifest", maxDescriptors))
			if err := w.exceeds(bound); err != nil {
				return err
			}
		}
		if err := visit(n); err != nil {
			return err
		}
		if n.isIndex() && n.depth == maxWalkDepth {
			if err := w.exceeds(fmt.Sprintf("indexes in indexes, more than %d deep", maxWalkDepth)); err != nil {
				return err
			}
			continue
		}
		for _, child := range n.manifests {
			if w.follow != nil && !w.follow(child) {
				continue
			}
			if _, known := seen[child.Digest]; known {
				continue
			}
			seen[child.Digest] = struct{}{}
			next = append(next, found{child, n.depth + 1})
		}
	}
	return nil
}

// each visits an image's manifests and blobs, as far as they are known here, some more
// than once.
func (w *walk) each(ctx context.Context, image digest.Digest, visit func(digest.Digest)) error {
	return w.run(ctx, descriptor{Digest: image}, func(n *node) error {
		for _, d := range append([]descriptor{n.descriptor}, n.blobs()...) {
			if d.check() == nil {
				visit(d.Digest)
			}
		}
		return nil
	})
}

// bound names the bound that keeps the walk from a further manifest, if there is one.
func (w *walk) bound() string {
	switch {
	case w.manifests >= maxWalkManifests:
		return fmt.Sprintf("more than %d manifests", maxWalkManifests)
	case w.descriptors >= maxWalkDescriptors:
		return fmt.Sprintf("more than %d descriptors in its manifests", maxWalkDescriptors)
	case w.bytes >= maxWalkBytes:
		return fmt.Sprintf("more than %d MiB of manifests", maxWalkBytes>>20)
	}
	return ""
}

// read looks at a manifest.
func (w *walk) read(ctx context.Context, n *node) error {
	n.size = n.Size // as claimed
	b, err := w.open(ctx, n.descriptor)
	if err != nil || b == nil {
		return err
	}
	defer b.Close()
	size, err := length(b)
	if err != nil {
		return fmt.Errorf("read manifest %s: %w", n.Digest, err)
	}
	var read int64
	n.here, n.size = true, size
	n.manifest, read, n.err = w.reader.manifest(ctx, b.Content, size, min(maxDescriptors, maxWalkDescriptors-w.descriptors))
	w.descriptors += n.named
	w.bytes += read
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if n.err != nil {
		n.manifest, n.err = manifest{}, fmt.Errorf("read manifest %s: %w", n.Digest, n.err)
	}
	return nil
}

// length is how long a blob is that is here.
func length(b *storage.Blob) (int64, error) {
	if b.Size >= 0 {
		return b.Size, nil
	}
	size, err := b.Content.Seek(0, io.SeekEnd)
	if err == nil {
		_, err = b.Content.Seek(0, io.SeekStart)
	}
	return size, err
}

// plus adds sizes, which are claims: their sum may be too large for a number.
func plus(a, b int64) int64 { return a + min(b, math.MaxInt64-a) }

// keptWalk is a walk of what is here of a repository's images, which is no use of it.
// What it leaves out is in no way different from what is not here.
func (p *Proxy) keptWalk(upstream, repository string) *walk {
	return &walk{
		reader:  p.reader,
		exceeds: func(string) error { return nil },
		open: func(ctx context.Context, d descriptor) (*storage.Blob, error) {
			return p.openKept(ctx, storage.Scope{Upstream: upstream, Repository: repository, Manifest: true}, d.Digest)
		},
	}
}

// openKept opens a blob that is here and whole; nil: it is not. That is no use of it,
// and waits for no download.
func (p *Proxy) openKept(ctx context.Context, sc storage.Scope, d digest.Digest) (*storage.Blob, error) {
	if named := (descriptor{Digest: d}); named.check() != nil || !p.store.Kept(d) {
		return nil, nil //nolint:nilerr // what cannot be is not here
	}
	sc.Keep = storage.Retention{NoStore: true}
	b, err := p.store.Get(ctx, sc, d, nil)
	switch {
	case ctx.Err() != nil && err != nil:
		return nil, context.Cause(ctx)
	case err != nil:
		return nil, nil //nolint:nilerr // what cannot be opened, or came through another repository only, is not here
	case b.Outcome != storage.Hit: // it went, and comes again
		b.Close()
		return nil, nil
	}
	return b, nil
}
