package image

import (
	"context"

	"github.com/opencontainers/go-digest"

	"github.com/cachalot-registry/cachalot/storage"
)

// Stored reads the stored parts of images. This does not count as a use, and waits for no
// download.
type Stored struct {
	Store  *storage.Store
	Reader Reader
}

// Walk returns a walk of what is stored of a repository's images. It treats what it leaves out
// as not stored.
func (k Stored) Walk(upstream, repository string) *Walk {
	return &Walk{
		Reader:  k.Reader,
		Exceeds: func(string) error { return nil },
		Open: func(ctx context.Context, d Descriptor) (*storage.Blob, error) {
			return k.Open(ctx, storage.Scope{Upstream: upstream, Repository: repository, Manifest: true}, d.Digest)
		},
	}
}

// Open opens a blob that is completely stored; nil: it is not.
func (k Stored) Open(ctx context.Context, sc storage.Scope, d digest.Digest) (*storage.Blob, error) {
	if named := (Descriptor{Digest: d}); named.Check() != nil || !k.Store.IsStored(d) {
		return nil, nil //nolint:nilerr // an invalid digest is not stored
	}
	sc.Keep = storage.Retention{NoStore: true}
	b, err := k.Store.Get(ctx, sc, d, nil)
	switch {
	case ctx.Err() != nil && err != nil:
		return nil, context.Cause(ctx)
	case err != nil:
		return nil, nil //nolint:nilerr // not readable, or only linked in another repository
	case b.Outcome != storage.Hit: // it was removed, and is downloaded again
		b.Close()
		return nil, nil
	}
	return b, nil
}
