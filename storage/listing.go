package storage

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/cachalot-registry/cachalot/storage/index"
)

// BlobInfo is what is known of a blob on disk.
type BlobInfo struct {
	Digest    digest.Digest
	Size      int64 // bytes
	DiskBytes int64 // disk space, in whole blocks
	Manifest  bool  // it was downloaded as a manifest
	Used      time.Time
	Again     bool      // used again, a minute or more after another use
	Uses      uint32    // answers from the stored blob; a kill loses the last minute's, a lost index all
	Until     time.Time // it expires then, unless it is used before; zero: no limit
	Orphaned  bool      // nothing points to it any more
	Stored    time.Time // when it was downloaded; zero if that cannot be read
}

// BlobQuery picks blobs. The zero query is all of them.
type BlobQuery struct {
	Upstream, Repository string    // those seen there; "": anywhere
	MinSize              int64     // bytes
	UnusedSince          time.Time // those last used before; zero: all
}

// Order of blobs.
type Order int

const (
	ByDigest Order = iota
	BySize         // the largest first
	ByUse          // the least recently used first
	ByUses         // the most often used first
)

const (
	// pageLook bounds how many records are scanned for one page, so that a query that
	// few blobs match does not take long.
	pageLook = 100_000
	// MostBlobs is the longest page.
	MostBlobs = 1000
)

// Blobs returns up to n of the blobs that q picks, in the order of digests, after a
// digest. next is the after of the next page; "": this is the last page. A page may be
// short, or empty, before the last one.
func (s *Store) Blobs(ctx context.Context, q BlobQuery, after digest.Digest, n int) (page []BlobInfo, next digest.Digest, err error) {
	n = min(n, MostBlobs)
	looked := 0
	for d, err := range s.digests(q, after) {
		if err != nil {
			return nil, "", err
		}
		if ctx.Err() != nil {
			return nil, "", context.Cause(ctx)
		}
		if len(page) == n || looked == pageLook {
			return page, after, nil
		}
		looked++
		after = d
		if r, ok, err := s.index.Record(d); err == nil && ok && q.fits(s.access.current(d, r)) {
			page = append(page, s.info(d, s.access.current(d, r)))
		}
	}
	return page, "", nil
}

// TopBlobs returns the first n of the blobs that q picks, in the order o. It scans all of
// them.
func (s *Store) TopBlobs(ctx context.Context, q BlobQuery, o Order, n int) ([]BlobInfo, error) {
	top := top{order: o, most: min(n, MostBlobs)}
	offer := func(d digest.Digest, r index.Record) { top.offer(victim{d, s.access.current(d, r)}) }
	var err error
	if q.Upstream == "" {
		err = s.index.Records("", func(d []byte, r index.Record) bool {
			if q.fits(r) && top.wants(r) {
				offer(digest.Digest(d), r)
			}
			return ctx.Err() == nil
		})
	} else {
		for d, failed := range s.digests(q, "") {
			if failed != nil || ctx.Err() != nil {
				err = failed
				break
			}
			if r, ok, err := s.index.Record(d); err == nil && ok && q.fits(r) && top.wants(r) {
				offer(d, r)
			}
		}
	}
	if err = errors.Join(err, ctx.Err()); err != nil {
		return nil, err
	}
	top.sort()
	page := make([]BlobInfo, len(top.picked))
	for i, v := range top.picked {
		page[i] = s.info(v.digest, v.Record)
	}
	return page, nil
}

// Blob returns what is known of one blob; [ErrNotFound] if it is not on disk.
func (s *Store) Blob(d digest.Digest) (BlobInfo, error) {
	r, ok, err := s.index.Record(d)
	switch {
	case err != nil:
		return BlobInfo{}, fmt.Errorf("read record: %w", err)
	case !ok:
		return BlobInfo{}, ErrNotFound
	}
	return s.info(d, s.access.current(d, r)), nil
}

// digests walks the blobs that may match q, each once, in order.
func (s *Store) digests(q BlobQuery, after digest.Digest) iter.Seq2[digest.Digest, error] {
	if q.Upstream == "" {
		return s.index.Digests(after)
	}
	return s.index.LinkedDigests(q.Upstream, q.Repository, after)
}

func (q BlobQuery) fits(r index.Record) bool {
	return r.Size >= q.MinSize && (q.UnusedSince.IsZero() || r.Accessed < q.UnusedSince.Unix())
}

func (s *Store) info(d digest.Digest, r index.Record) BlobInfo {
	info := BlobInfo{
		Digest: d, Size: r.Size, DiskBytes: blocks(r.Size), Manifest: r.Manifest,
		Used: time.Unix(r.Accessed, 0), Again: r.Again, Uses: r.Uses, Orphaned: r.Orphaned,
	}
	if r.Until != 0 {
		info.Until = time.Unix(r.Until, 0)
	}
	if file, err := os.Lstat(s.disk.blob(d)); err == nil {
		info.Stored = file.ModTime()
	}
	return info
}

// Link is a place in which a digest was seen.
type Link struct {
	Upstream, Repository string
	Manifest             bool
	MediaType            string // of a manifest
}

// Links returns up to n of the places in which a digest was seen.
func (s *Store) Links(d digest.Digest, n int) ([]Link, error) {
	var links []Link
	err := s.index.Links(d, func(at index.LinkAt) bool {
		links = append(links, Link{string(at.Upstream()), string(at.Repository()), at.Manifest, at.MediaType()})
		return len(links) < n
	})
	return links, err
}

// top selects the first of many records in an order. It sorts after each most records:
// picked[most-1] is then the last one that a further record has to precede.
type top struct {
	order  Order
	most   int
	picked []victim
}

func (t *top) compare(v, w victim) int {
	var c int
	switch t.order {
	case BySize:
		c = cmp.Compare(w.Size, v.Size)
	case ByUse:
		c = cmp.Compare(v.Accessed, w.Accessed)
	case ByUses:
		c = cmp.Compare(w.Uses, v.Uses)
	}
	return cmp.Or(c, cmp.Compare(v.digest, w.digest))
}

// wants reports whether offer may take r. Without its digest r compares as the first of equals.
func (t *top) wants(r index.Record) bool {
	return len(t.picked) < t.most || t.most > 0 && t.compare(victim{Record: r}, t.picked[t.most-1]) < 0
}

// offer takes a victim that top wants.
func (t *top) offer(v victim) {
	if t.picked = append(t.picked, v); len(t.picked)%t.most == 0 {
		t.sort()
	}
}

// sort sorts the picked records, and drops all after the first most.
func (t *top) sort() {
	slices.SortFunc(t.picked, t.compare)
	t.picked = t.picked[:min(len(t.picked), t.most)]
}

// TagsAfter returns up to n pointers of a repository, in the order of their names, after a
// name. next is the after of the next page; "": this is the last page.
func (s *Store) TagsAfter(upstream, repository, after string, n int) (page []NamedTag, next string, err error) {
	return s.index.TagsAfter(upstream, repository, after, n)
}

// DropTags removes the pointers of an upstream, or of one of its repositories, for which
// drop returns true. It returns how many of them are tags.
func (s *Store) DropTags(upstream, repository string, dryRun bool, drop func(TagKey, Tag) bool) (tags int, err error) {
	return s.index.DropTags(upstream, repository, dryRun, drop)
}
