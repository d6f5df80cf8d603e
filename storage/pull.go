package storage

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/cachalot-registry/cachalot/storage/download"
	"github.com/cachalot-registry/cachalot/storage/index"
)

// This file has what the data plane calls: blobs, tags and links.

// Get opens a blob, joins its fill, or starts one with src. With a nil src it starts
// none and fails with [ErrNotFound]. It waits, until ctx ends, for the fill's Source to
// open, and returns the Source's error.
//
// [ErrUnlinked] means that the content came through another scope; src was not
// called. A fill that Get starts links the digest to its scope when it is stored.
//
// The most generous Keep of those that wait for a fill decides whether its blob is
// stored, and for how long. A hit renews the limit, unless its Keep is NoStore.
func (s *Store) Get(ctx context.Context, sc Scope, d digest.Digest, src download.Source) (*Blob, error) {
	for range 10 {
		b, err := s.get(ctx, sc, d, src)
		if !errors.Is(err, errAgain) {
			return b, err
		}
		if ctx.Err() != nil { // otherwise it would start a fill again and again, which ends with ctx
			return nil, fmt.Errorf("open blob: %w", context.Cause(ctx))
		}
	}
	return nil, fmt.Errorf("open blob %s: it was stored and evicted too often during this request", d)
}

// errAgain: the blob changed during the lookup; look again.
var errAgain = errors.New("the blob changed during the lookup")

func (s *Store) get(ctx context.Context, sc Scope, d digest.Digest, src download.Source) (*Blob, error) {
	l, linked := s.link(sc, d)
	if linked {
		if small, ok := s.access.hit(d, sc.Keep); ok {
			return openMemory(d, l.MediaType, small), nil
		}
	}
	f, mediaType, err := s.gate.enter(sc, d, linked) // from now on the file is not evicted
	switch {
	case err != nil:
		return nil, err
	case f != nil:
		return f.joined(ctx, cmp.Or(l.MediaType, mediaType))
	}

	var file *os.File
	if err = fs.ErrNotExist; !s.health.isCondemned(d) {
		file, err = os.Open(s.disk.blob(d))
	}
	switch {
	case err == nil && linked:
		return s.hit(file, sc, d, l)
	case err == nil:
		_ = file.Close()
		s.gate.leave(d)
		// A fill of this scope may have begun since its link was looked up, or ended.
		filling := s.gate.filling(d, sc.Upstream)
		if _, linked = s.link(sc, d); filling || linked {
			return nil, errAgain
		}
		return nil, ErrUnlinked
	case unreadable(err):
		s.gate.leave(d)
		s.health.quarantine(d, s.health.unopenable(d))
		return nil, errAgain
	case !errors.Is(err, fs.ErrNotExist):
		s.gate.leave(d)
		return nil, fmt.Errorf("open blob: %w", err)
	}
	s.gate.leave(d)
	if src == nil {
		return nil, ErrNotFound
	}
	return s.start(ctx, sc, d, src, linked)
}

// hit returns a blob on disk. It leaves the digest, which the caller has entered, when the
// blob is closed. A file of the wrong length is quarantined.
func (s *Store) hit(file *os.File, sc Scope, d digest.Digest, l index.Link) (*Blob, error) {
	info, err := file.Stat()
	if err != nil {
		s.gate.leave(d)
		return nil, errors.Join(fmt.Errorf("stat blob: %w", err), file.Close())
	}
	if !s.fits(sc, d, l, info.Size()) {
		_ = file.Close() // not read
		s.gate.leave(d)
		s.health.quarantine(d, s.health.badSize(d, l.Size))
		return nil, errAgain
	}
	var small []byte
	if info.Size() < smallBlob {
		if small, err = readSmall(file, d); err != nil {
			_ = file.Close() // not served
			s.gate.leave(d)
			s.health.quarantineFile(d, damage{info, err})
			return nil, errAgain
		}
	}
	s.access.touch(d, sc.Keep, 1, small)
	return &Blob{
		Digest: d, Size: info.Size(), MediaType: l.MediaType, Outcome: Hit, Stored: true, Content: file,
		from: onDisk{s, file, d},
	}, nil
}

// fits reports whether a file is as long as its blob. It reads the record only if the
// link has no length, or another one.
func (s *Store) fits(sc Scope, d digest.Digest, l index.Link, size int64) bool {
	if l.Size == size && size > 0 {
		return true
	}
	want := s.ledger.size(d, l.Size)
	if wrongSize(d, size, want) != nil {
		return false
	}
	if want >= 0 && l.Size != want { // the link is older than the record, or of an earlier, damaged file
		if err := s.PutLink(sc, d, l.MediaType); err != nil {
			s.log.Warn("cannot record link", "digest", d, "error", err)
		}
		if l.Size >= 0 {
			s.health.suspect(d)
		}
	}
	return true
}

// readSmall returns the content of a small file, and seeks back to its start. An error
// means that the file is damaged.
func readSmall(file *os.File, d digest.Digest) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(file, smallBlob))
	if err == nil {
		_, err = file.Seek(0, io.SeekStart)
	}
	if err != nil {
		return nil, fmt.Errorf("read blob: %w", pathless(err))
	}
	if sum := d.Algorithm().FromBytes(b); sum != d {
		return nil, fmt.Errorf("%w: content has digest %s", ErrDigest, sum)
	}
	return b, nil
}

// start starts a fill, or joins the one that another caller has just started.
func (s *Store) start(ctx context.Context, sc Scope, d digest.Digest, src download.Source, linked bool) (*Blob, error) {
	own := newFill(s, sc, d, src)
	f, mediaType, err := s.gate.start(sc, own, linked,
		func() bool { return !s.health.isCondemned(d) && s.exists(d) },
		func() { s.life.run("download", func() { own.run(ctx) }) })
	switch {
	case err != nil:
		return nil, err
	case f == own:
		return f.blob(ctx, Miss, "")
	}
	return f.joined(ctx, mediaType)
}

// ended takes a fill out of the table.
func (s *Store) ended(f *fill) {
	s.gate.ended(f, func() {
		if st := f.state(); st.phase == verified && !f.shut {
			s.access.touch(f.digest, st.keep, 0, nil) // a reader with a longer Keep may have joined since the record was written
		}
	})
}

// Tag returns a tag; false: there is none, or it cannot be read.
func (s *Store) Tag(k TagKey) (t Tag, ok bool) {
	t, ok, err := s.index.Tag(k)
	if err != nil {
		s.log.Warn("cannot read tag", "upstream", k.Upstream, "repository", k.Repository, "tag", k.Name, "error", err)
	}
	return t, ok
}

// PutTag records a tag. It expires after keep, unless PutTag is called again before. It may
// be evicted, or not recorded, when the index is full: see [Config].MaxIndex.
func (s *Store) PutTag(k TagKey, t Tag, keep time.Duration) error {
	return s.index.PutTag(k, t, keep)
}

// DeleteTag removes a tag.
func (s *Store) DeleteTag(k TagKey) error {
	return s.index.RemoveTag(k)
}

// Tags calls visit for each pointer, that is each tag and list, until visit returns false.
// It skips pointers that cannot be read.
func (s *Store) Tags(visit func(TagKey, Tag) bool) error {
	return s.index.Tags(visit)
}

// link returns the link of the digest in this scope.
func (s *Store) link(sc Scope, d digest.Digest) (l index.Link, ok bool) {
	l, ok, err := s.index.Link(sc.place(), d)
	if err != nil {
		s.log.Warn("cannot read link", "upstream", sc.Upstream, "repository", sc.Repository, "digest", d, "error", err)
		return index.Link{}, false
	}
	return l, ok
}

// PutLink records that the upstream has the digest in this scope, and its media type (of
// manifests; "" for blobs). It does nothing if the blob is not on disk: see [Store.Admit].
func (s *Store) PutLink(sc Scope, d digest.Digest, mediaType string) error {
	l := index.Link{MediaType: mediaType, Size: s.ledger.size(d, -1)}
	if l.Size < 0 && !s.exists(d) {
		return nil
	}
	return s.index.PutLink(sc.place(), d, l)
}

// maxAdmitted bounds the places that join one download: a registry may confirm any number.
const maxAdmitted = 4096

// Admit lets the scope join a download of the digest from its upstream. The scope gets a
// link once the download has verified. It returns false if there is no download, or too many
// scopes have joined.
func (s *Store) Admit(sc Scope, d digest.Digest, mediaType string) bool {
	return s.gate.admit(sc.place(), d, mediaType)
}

// Origins calls visit for each upstream that the digest was seen at, until visit returns
// false. It may call visit twice for the same upstream.
func (s *Store) Origins(d digest.Digest, visit func(upstream string) bool) error {
	sent := s.gate.sentBy(d) // before the links: the blob can be read before it has one
	for _, upstream := range sent {
		if !visit(upstream) {
			return nil
		}
	}
	var last []byte
	return s.index.Links(d, func(at index.LinkAt) bool {
		if last != nil && bytes.Equal(at.Upstream(), last) {
			return true
		}
		last = append(last[:0], at.Upstream()...)
		return visit(string(last))
	})
}

// IsStored reports whether a blob is stored. If its download has all bytes, IsStored waits until
// that is decided.
func (s *Store) IsStored(d digest.Digest) bool {
	s.gate.settled(d)
	return s.exists(d)
}

// Length returns the length of a blob's file; false: it has none.
func (s *Store) Length(d digest.Digest) (bytes int64, here bool) {
	info, err := os.Stat(s.disk.blob(d))
	if err != nil {
		return 0, false
	}
	return info.Size(), true
}

func (s *Store) exists(d digest.Digest) bool { return s.disk.has(d) }

// MarkOrphaned marks blobs that nothing points to any more: they are evicted first. A
// later hit removes the mark. Digests that are not on disk are skipped.
func (s *Store) MarkOrphaned(digests []digest.Digest) error {
	s.access.flush() // hits before the call must not remove the mark
	return s.ledger.update(slices.Values(digests), func(_ digest.Digest, r *index.Record) { r.Orphaned = true })
}
