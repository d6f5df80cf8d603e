package image

import (
	"context"

	"github.com/opencontainers/go-digest"

	"github.com/cachalot-registry/cachalot/storage"
)

// Kept reads what is here of images. That is no use of it, and waits for no download.
type Kept struct {
	Store  *storage.Store
	Reader Reader
}

// Walk is a walk of what is here of a repository's images. What it leaves out is in no
// way different from what is not here.
func (k Kept) Walk(upstream, repository string) *Walk {
	return &Walk{
		Reader:  k.Reader,
		Exceeds: func(string) error { return nil },
		Open: func(ctx context.Context, d Descriptor) (*storage.Blob, error) {
			return k.Open(ctx, storage.Scope{Upstream: upstream, Repository: repository, Manifest: true}, d.Digest)
		},
	}
}

// Open opens a blob that is here and whole; nil: it is not.
func (k Kept) Open(ctx context.Context, sc storage.Scope, d digest.Digest) (*storage.Blob, error) {
	if named := (Descriptor{Digest: d}); named.Check() != nil || !k.Store.Kept(d) {
		return nil, nil //nolint:nilerr // what cannot be is not here
	}
	sc.Keep = storage.Retention{NoStore: true}
	b, err := k.Store.Get(ctx, sc, d, nil)
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
