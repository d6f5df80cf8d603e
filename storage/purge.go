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

// Purge says what is to go.
type Purge struct {
	// Upstream and Repository are where; "": everywhere. A blob that was seen
	// elsewhere too stays, and is asked for anew here only.
	Upstream, Repository string
	// UnusedSince: what was used after it stays. Zero: whatever its use.
	UnusedSince time.Time
	Pinned      bool // what is pinned goes too
	DryRun      bool // nothing goes; the same is counted
}

// PurgeResult is what became of a digest.
type PurgeResult int

// What [Store.Purge] makes of a digest.
const (
	Absent   PurgeResult = iota // it is not here, or not in these places
	Gone                        // from the disk
	Unlinked                    // from these places; others have it
	Pinned                      // it stays, for a pin
	Busy                        // it is being downloaded, or removed by another caller
	InUse                       // it stays, for it was used since
)

// Purge removes a digest from the places that p names, and from the disk where
// there is no other. room is what that frees. Who is reading the blob reads on to
// its end; what is being downloaded stays.
func (s *Store) Purge(d digest.Digest, p Purge) (became PurgeResult, room int64, err error) {
	if p.DryRun {
		s.gate.settled(d)
		became, room, err = s.purge(d, p)
	} else {
		for !s.gate.exclusive(d, func() { became, room, err = s.purge(d, p) }) {
			s.gate.settled(d)
		}
	}
	if became == Absent && err == nil && s.gate.filling(d, p.Upstream) {
		became = Busy
	}
	return became, room, err
}

// Kept says whether a blob that has verified is on the disk. It waits until that is
// decided.
func (s *Store) Kept(d digest.Digest) bool {
	s.gate.settled(d)
	return s.exists(d)
}

// purge is Purge, while nobody else can have the digest.
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
		return Absent, 0, nil // a link of what was not here, or what a broken download left
	}
	return Gone, blocks(r.Size), nil
}

// sweepBatch is how many digests are looked for at a time: none is held while they go.
const sweepBatch = 1000

// PurgeAll purges all that p names, until ctx ends, and tells what became of each.
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
				continue // Purge would say so too, after a look at its links
			}
			became, room, err := s.Purge(d, p)
			if err != nil {
				return err
			}
			each(d, became, room)
		}
		if len(batch) < sweepBatch {
			return ctx.Err()
		}
	}
}
