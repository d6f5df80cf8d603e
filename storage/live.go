package storage

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/cachalot-registry/cachalot/storage/index"
)

// Stats is what the store holds, and its limits. All sizes are bytes of the disk.
type Stats struct {
	Counted         bool  // false after a start, until the blobs are added up
	Bytes, Blobs    int64 // of blobs
	Partial         int64 // of downloads in progress or broken off
	Reserved        int64 // reserved by running downloads, and not yet written
	Quarantine      int64 // of damaged blobs
	MaxSize         int64 // 0: no limit but MinFree
	LowMark         int64 // evictions in the background end at it; 0 without a MaxSize
	MinFree         int64
	Free, Total     int64 // of the file system; 0 if that cannot be read
	Fills, MaxFills int   // downloads that run, and that may run at once
	Open            int   // blobs that are being read
	MemoryBytes     int64 // of small blobs
	WaitingForIndex int64 // changes of the index that wait in memory for disk space
	ScrubEvery      time.Duration
}

// Stats returns the current state. It does not read the index.
func (s *Store) Stats() Stats {
	st := Stats{
		MaxSize: s.space.maxSize, LowMark: share(s.space.maxSize, s.evictor.lowMark), MinFree: max(s.space.minFree, index.Floor),
		Fills: s.slots.places.Taken(), MaxFills: s.slots.places.Limit(), WaitingForIndex: s.index.Waiting(),
		ScrubEvery: s.health.scrubEvery,
	}
	st.Partial, st.Reserved, st.Quarantine = s.space.state()
	st.Bytes, st.Blobs, st.Counted = s.ledger.state()
	st.Free, st.Total, _ = s.disk.space() // an error leaves 0
	st.MemoryBytes = s.access.memoryBytes()
	st.Open = s.gate.opened()
	return st
}

// state returns totals, and whether the records are added up.
func (l *ledger) state() (bytes, count int64, counted bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.bytes, l.count, l.adding == nil
}

// FillInfo is a download in progress.
type FillInfo struct {
	Digest               digest.Digest
	Upstream, Repository string // of the request that started it
	Manifest             bool
	State                string    // "waiting" for a slot or an answer, "downloading", "checking", or "passing through": not stored
	Started              time.Time // when it was requested
	Written              int64     // bytes, those of an earlier try too
	Size                 int64     // -1 while unknown
	Readers              int       // clients that follow it
	Connections          int       // to the upstream
}

// Fills returns the downloads in progress, the oldest first.
func (s *Store) Fills() []FillInfo {
	fills := s.gate.running()
	infos := make([]FillInfo, len(fills))
	for i, f := range fills {
		infos[i] = f.info()
	}
	slices.SortFunc(infos, func(a, b FillInfo) int {
		return cmp.Or(a.Started.Compare(b.Started), cmp.Compare(a.Digest, b.Digest), cmp.Compare(a.Upstream, b.Upstream))
	})
	return infos
}

func (f *fill) info() FillInfo {
	f.mu.Lock()
	defer f.mu.Unlock()
	i := FillInfo{
		Digest: f.digest, Upstream: f.place.Upstream, Repository: f.place.Repository, Manifest: f.place.Manifest,
		Started: f.started, Written: f.written, Size: f.size, Readers: max(0, f.users-1),
	}
	switch f.phase {
	case opening:
		i.State = "waiting"
	case streaming:
		i.State, i.Connections = "downloading", int(f.connections.Load())
	case passingThrough:
		i.State, i.Connections, i.Readers = "passing through", f.users, f.users
	default:
		i.State = "checking"
	}
	return i
}

// Verify is [Verify] of this store's blobs. The records of damaged blobs are dropped at
// once, so that the next request downloads them.
func (s *Store) Verify(ctx context.Context, dryRun bool, progress func(read, all int64)) (Verification, error) {
	ctx, cancel := s.life.within(ctx)
	defer cancel(nil)
	v, err := Verify(ctx, s.disk.root, dryRun, progress)
	s.health.updateQuarantine()
	return v, err
}
