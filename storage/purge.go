package storage

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/cachalot-registry/cachalot/storage/index"
)

// Purge says what to remove.
type Purge struct {
	// Upstream and Repository are the places; "": all. A blob that was seen in other
	// places too stays for them. In these places the upstream is asked again.
	Upstream, Repository string
	// UnusedSince: blobs that were used at this time or later stay. Zero: use does not matter.
	UnusedSince time.Time
	Pinned      bool // pinned blobs are removed too
	DryRun      bool // nothing is removed; the results are the same
}

// PurgeResult is what became of a digest.
type PurgeResult int

// What [Store.Purge] makes of a digest.
const (
	Absent   PurgeResult = iota // it is not on disk, or was not seen in these places
	Gone                        // removed from the disk
	Unlinked                    // removed from these places; it was seen in others, so the file stays
	Pinned                      // it stays, because it is pinned
	Busy                        // it is being downloaded, or removed by another caller
	InUse                       // it stays, because it was used since UnusedSince
)

// Purge removes a digest from the places that p names, and from the disk if no other
// place has it. diskBytes is the space that this frees. Readers that have the blob open
// read to its end. A download in progress is not stopped.
func (s *Store) Purge(d digest.Digest, p Purge) (became PurgeResult, diskBytes int64, err error) {
	if p.DryRun {
		s.gate.settled(d)
		became, diskBytes, err = s.purge(d, p)
	} else {
		for !s.gate.exclusive(d, func() { became, diskBytes, err = s.purge(d, p) }) {
			s.gate.settled(d)
		}
	}
	if became == Absent && err == nil && s.gate.filling(d, p.Upstream) {
		became = Busy
	}
	return became, diskBytes, err
}

// purge is Purge, while no other caller can have the digest.
func (s *Store) purge(d digest.Digest, p Purge) (PurgeResult, int64, error) {
	everywhere := p.Upstream == ""
	var here []index.Place // whose links go
	elsewhere, pinned := false, false
	err := s.index.Links(d, func(at index.LinkAt) bool {
		if !at.In(p.Upstream, p.Repository) {
			elsewhere = true
			return true
		}
		place := at.Place()
		here = append(here, place)
		pinned = pinned || s.Pinned(place.Upstream, place.Repository)
		return true
	})
	if err != nil {
		return Busy, 0, fmt.Errorf("read links of %s: %w", d, err)
	}
	r, recorded, err := s.index.Record(d)
	switch {
	case err != nil:
		return Busy, 0, fmt.Errorf("read record of %s: %w", d, err)
	case len(here) == 0 && !everywhere, len(here) == 0 && !recorded && !s.exists(d) && len(s.idlePartialsOf(d)) == 0:
		return Absent, 0, nil
	case pinned && !p.Pinned:
		return Pinned, 0, nil
	case !p.UnusedSince.IsZero() && s.access.current(d, r).Accessed >= p.UnusedSince.Unix():
		return InUse, 0, nil
	}
	if elsewhere {
		if !p.DryRun {
			if err := s.index.RemoveLinks(d, here); err != nil {
				return Busy, 0, err
			}
		}
		return Unlinked, 0, nil
	}
	if !p.DryRun {
		if err := os.Remove(s.disk.blob(d)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return Busy, 0, fmt.Errorf("remove blob: %w", err)
		}
		s.health.clear(d)
		for _, partial := range s.idlePartialsOf(d) {
			s.removePartial(partial)
		}
		s.forget(d)
		if recorded {
			s.metrics.evictedBytes.WithLabelValues(reasonPurge).Add(float64(blocks(r.Size)))
		}
	}
	if !recorded {
		return Absent, 0, nil // it removed only a link, or a partial
	}
	return Gone, blocks(r.Size), nil
}

// sweepBatch is how many digests are read from the index before they are purged.
const sweepBatch = 1000

// PurgeAll purges all digests that p names, until ctx ends, and calls each with the result.
func (s *Store) PurgeAll(ctx context.Context, p Purge, each func(digest.Digest, PurgeResult, int64)) error {
	defer s.InvalidateSummary()
	q := BlobQuery{Upstream: p.Upstream, Repository: p.Repository, UnusedSince: p.UnusedSince}
	for last := digest.Digest(""); ; {
		batch := make([]digest.Digest, 0, sweepBatch)
		for d, err := range s.digests(q, last) {
			if err != nil {
				return err
			}
			if len(batch) == sweepBatch || ctx.Err() != nil {
				break
			}
			batch = append(batch, d)
		}
		for _, d := range batch {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			last = d
			if r, ok, err := s.index.Record(d); err == nil && ok && !q.fits(s.access.current(d, r)) {
				continue // Purge would return InUse, after reading the links
			}
			became, diskBytes, err := s.Purge(d, p)
			if err != nil {
				return err
			}
			each(d, became, diskBytes)
		}
		if len(batch) < sweepBatch {
			return ctx.Err()
		}
	}
}
