package storage

import (
	"context"
	"io/fs"
	"log/slog"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/time/rate"
)

// health finds damaged blobs and takes them out of use: it reads blobs again (scrub),
// moves damaged files to quarantine, and condemns those that cannot be moved.
//
//	hit: the file's length ≠ the link's ──────────────────┐
//	walk at the start: empty, and has no record ──────────┤
//	response cut short ─► Broken: read on from there ─────┤
//	           │ readable                                 ├─► quarantine ─► quarantine/, record and links
//	           ▼                                          │              dropped: the next Get is a miss
//	suspects ─► scrub: hash of each blob, once ───────────┤
//	            in ScrubEvery, by digest, from the cursor │
//	Verify, in another process: the same at once ─────────┘
//
// A link has its blob's length, so a hit reads no record to compare it. The scrub reads
// with O_DIRECT: it finds what the page cache hides, and evicts nothing from the cache. It
// paces itself with timers, so the clock may be wrong.
//
// quarantine checks again what is wrong while no other caller can have the digest
// (gate.exclusive), because the file may have been replaced. Readers that have the damaged
// file open continue with it. A file that can be neither moved nor removed is condemned:
// Get treats it as missing, and the next fill that is stored replaces it.
//
// Verify takes no lock. It renames the file that it has read, if the name is still that
// file's. Maintenance lists quarantine/ and drops the record and the links, unless the blob
// has been stored again by then.
type health struct {
	disk    disk
	ledger  *ledger
	space   *space
	metrics *Metrics
	log     *slog.Logger
	ctx     context.Context // ends the scrub
	blobs   exclusion

	scrubEvery    time.Duration // in which each blob is read again; 0: never
	pace          *rate.Limiter // of the scrub's reads
	quarantineMax int64         // bytes of the disk

	// listing is held while quarantine/ is listed, counted and trimmed, and guards
	// listed. space.mu, ledger.mu and the locks of exclusion are taken under it.
	listing sync.Mutex
	listed  map[digest.Digest]fs.FileInfo // by the last listing; nil: there was none

	suspected chan struct{} // holds a value when there are suspects

	mu       sync.Mutex // guards suspects, and changes of condemned; no lock is taken under it
	suspects map[digest.Digest]struct{}

	// condemned has the damaged blobs whose files can be neither moved nor removed. Its
	// functions check whether a file is still damaged. Each hit reads it without a lock, so
	// the map itself never changes: a change replaces it.
	condemned atomic.Pointer[map[digest.Digest]func() error]
}

// exclusion is what health needs of the store to change a blob.
type exclusion struct {
	exclusive     func(digest.Digest, func()) bool // see gate.exclusive
	exclusiveIdle func(digest.Digest, func()) bool // see gate.exclusiveIdle
	forget        func(digest.Digest)              // drops the record and links of a blob that is not on disk
}

func newHealth(ctx context.Context, k disk, l *ledger, a *space, m *Metrics, log *slog.Logger, blobs exclusion) *health {
	h := &health{
		disk: k, ledger: l, space: a, metrics: m, log: log, ctx: ctx, blobs: blobs,
		pace: rate.NewLimiter(scrubRate, checkSize), suspected: make(chan struct{}, 1), suspects: map[digest.Digest]struct{}{},
	}
	h.condemned.Store(&map[digest.Digest]func() error{})
	return h
}

// suspect has a blob read again soon.
func (h *health) suspect(d digest.Digest) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.suspects) < maxSuspects {
		h.suspects[d] = struct{}{}
	}
	select {
	case h.suspected <- struct{}{}:
	default: // it holds one already
	}
}

// takeSuspects returns the suspects and clears their list.
func (h *health) takeSuspects() map[digest.Digest]struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	suspects := h.suspects
	h.suspects = map[digest.Digest]struct{}{}
	return suspects
}

// isCondemned reports whether the digest's file is treated as missing.
func (h *health) isCondemned(d digest.Digest) bool { return (*h.condemned.Load())[d] != nil }

// condemn makes the digest's file be treated as missing until clear. bad returns what is
// wrong with it; nil: nothing any more.
func (h *health) condemn(d digest.Digest, bad func() error) {
	h.changeCondemned(func(all map[digest.Digest]func() error) { all[d] = bad })
}

// clear says that the digest's file, if it has one, may be served.
func (h *health) clear(d digest.Digest) {
	if h.isCondemned(d) {
		h.changeCondemned(func(all map[digest.Digest]func() error) { delete(all, d) })
	}
}

func (h *health) changeCondemned(change func(map[digest.Digest]func() error)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	all := maps.Clone(*h.condemned.Load())
	change(all)
	h.condemned.Store(&all)
}

// retryCondemned tries again to quarantine the condemned blobs.
func (h *health) retryCondemned() {
	for d, bad := range *h.condemned.Load() {
		h.quarantine(d, bad)
	}
}
