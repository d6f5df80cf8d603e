package image

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"math"

	"github.com/opencontainers/go-digest"

	"github.com/cachalot-registry/cachalot/storage"
)

// Bounds of a walk. It costs a publisher nothing to name a manifest a million times, or indexes
// in indexes.
const (
	maxDepth          = 4     // of what an image names: indexes in indexes
	maxManifests      = 1000  // including indexes, and manifests that are not stored
	maxAllDescriptors = 20000 // of all manifests together
	maxBytes          = 64 << 20
)

// Walk visits the manifests of an image: the image itself, what it names, and so on, each once.
// No other code does this. A Walk belongs to one goroutine.
type Walk struct {
	Reader Reader
	// Open opens a manifest whose content is stored; the walk closes it. nil: it is not stored.
	Open func(context.Context, Descriptor) (*storage.Blob, error)
	// Follow reports whether a manifest that an index names is visited. nil: all are.
	Follow func(Descriptor) bool
	// Exceeds is called with a bound that leaves something out. Its error ends the walk.
	Exceeds func(bound string) error

	manifests, descriptors int   // so far
	bytes                  int64 // read so far
}

// Node is a manifest that a walk visits.
type Node struct {
	Named    Descriptor // what names it
	Manifest            // what it names

	Depth int   // 0 for the image itself
	Here  bool  // it is stored; otherwise nothing that it names is known
	Size  int64 // its own; as claimed, if it is not stored
	Err   error // not nil: it is no manifest, and names nothing
}

// Run visits the image and then what it names, breadth first: so each manifest is reached by
// the shortest way. The node belongs to visit until visit returns. The walk ends when ctx ends.
func (w *Walk) Run(ctx context.Context, image Descriptor, visit func(*Node) error) error {
	type found struct {
		Descriptor

		depth int
	}
	next := []found{{image, 0}}
	seen := map[digest.Digest]struct{}{image.Digest: {}}
	for len(next) > 0 {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if bound := w.bound(); bound != "" {
			return w.Exceeds(bound)
		}
		n := &Node{Named: next[0].Descriptor, Depth: next[0].depth}
		next = next[1:]
		w.manifests++
		if err := w.read(ctx, n); err != nil {
			return err
		}
		if n.Truncated {
			bound := cmp.Or(w.bound(), fmt.Sprintf("more than %d descriptors in a manifest", MaxDescriptors))
			if err := w.Exceeds(bound); err != nil {
				return err
			}
		}
		if err := visit(n); err != nil {
			return err
		}
		if n.IsIndex() && n.Depth == maxDepth {
			if err := w.Exceeds(fmt.Sprintf("indexes in indexes, more than %d deep", maxDepth)); err != nil {
				return err
			}
			continue
		}
		for _, child := range n.Manifests {
			if w.Follow != nil && !w.Follow(child) {
				continue
			}
			if _, known := seen[child.Digest]; known {
				continue
			}
			seen[child.Digest] = struct{}{}
			next = append(next, found{child, n.Depth + 1})
		}
	}
	return nil
}

// Each visits an image's manifests and blobs, as far as stored manifests name them, some more
// than once.
func (w *Walk) Each(ctx context.Context, image digest.Digest, visit func(digest.Digest)) error {
	return w.Run(ctx, Descriptor{Digest: image}, func(n *Node) error {
		for _, d := range append([]Descriptor{n.Named}, n.Blobs()...) {
			if d.Check() == nil {
				visit(d.Digest)
			}
		}
		return nil
	})
}

// bound returns the bound that the walk has reached, or "".
func (w *Walk) bound() string {
	switch {
	case w.manifests >= maxManifests:
		return fmt.Sprintf("more than %d manifests", maxManifests)
	case w.descriptors >= maxAllDescriptors:
		return fmt.Sprintf("more than %d descriptors in its manifests", maxAllDescriptors)
	case w.bytes >= maxBytes:
		return fmt.Sprintf("more than %d MiB of manifests", maxBytes>>20)
	}
	return ""
}

// read opens and decodes a manifest.
func (w *Walk) read(ctx context.Context, n *Node) error {
	n.Size = n.Named.Size // as claimed
	b, err := w.Open(ctx, n.Named)
	if err != nil || b == nil {
		return err
	}
	defer b.Close()
	size, err := Length(b)
	if err != nil {
		return fmt.Errorf("read manifest %s: %w", n.Named.Digest, err)
	}
	var read int64
	n.Here, n.Size = true, size
	n.Manifest, read, n.Err = w.Reader.Manifest(ctx, b.Content, size, min(MaxDescriptors, maxAllDescriptors-w.descriptors))
	w.descriptors += n.Read
	w.bytes += read
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if n.Err != nil {
		n.Manifest, n.Err = Manifest{}, fmt.Errorf("read manifest %s: %w", n.Named.Digest, n.Err)
	}
	return nil
}

// Platform reads the platform of a config, whose bytes count for the walk.
func (w *Walk) Platform(ctx context.Context, b *storage.Blob) (*Platform, error) {
	p, read, err := w.Reader.Platform(ctx, b.Content, b.Size)
	w.bytes += read
	return p, err
}

// Length returns the length of a stored blob.
func Length(b *storage.Blob) (int64, error) {
	if b.Size >= 0 {
		return b.Size, nil
	}
	size, err := b.Content.Seek(0, io.SeekEnd)
	if err == nil {
		_, err = b.Content.Seek(0, io.SeekStart)
	}
	return size, err
}

// Plus adds sizes, which are claims: their sum may overflow.
func Plus(a, b int64) int64 { return a + min(b, math.MaxInt64-a) }
