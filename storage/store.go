package storage

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/cachalot-registry/cachalot/storage/download"
	"github.com/cachalot-registry/cachalot/storage/index"
	"github.com/cachalot-registry/cachalot/task"
)

// Config of a [Store].
type Config struct {
	Path     string // folder; created if missing
	MaxSize  Size   // of all blobs, partial downloads and damaged blobs, in blocks of 4 KiB; zero: no limit but MinFree
	MinFree  Size   // free space that is left to others; what the index needs is left to it in any case
	MaxFills int    // downloads at once; further ones wait
	// Share is the part of MaxFills that one upstream, or one client while others wait,
	// has at most. Zero: a quarter.
	Share float64
	// HighMark and LowMark are shares of MaxSize, in percent. Above HighMark blobs are
	// evicted in the background, down to LowMark, so that downloads need not wait. MinFree
	// has the same marks above it: 98 is 102 % of it. Zero: 98, or LowMark if that is more,
	// and 95, or HighMark if that is less.
	HighMark, LowMark float64
	// MaxIndex bounds the bytes of tags and lists in the index, and the bytes of links; 0: no
	// bound. Above it the least recently checked tags are evicted, those without stored
	// content first, and the links of blobs that have the most. Pinned ones stay.
	MaxIndex int64
	// Listed: see [Store.SetListed].
	Listed func(upstream string) bool
	// Pinned: see [Store.SetPinned].
	Pinned func(upstream, repository string) bool
	// ScrubEvery is the period in which each blob is read again and compared with its
	// digest; 0: never. The period is longer if there is too much to read.
	ScrubEvery time.Duration
}

// Store is a folder of blobs. All methods may be called at any time from any
// goroutine, until Close.
type Store struct {
	disk      disk
	lock      *os.File
	index     *index.Index
	ledger    *ledger
	gate      *gate
	space     *space
	evictor   *evictor
	access    *accessLog
	health    *health
	summaries *summaries
	metrics   *Metrics
	log       *slog.Logger
	slots     *slots
	buffers   *download.Buffers // for pieces that fills fetch ahead
	ctx       context.Context
	stop      context.CancelCauseFunc
	running   sync.WaitGroup                                         // fills, maintenance and scrub
	pins      atomic.Pointer[func(upstream, repository string) bool] // see SetPinned
}

// Open opens or creates the folder in cfg.Path. It returns as soon as blobs can be
// served; the records are added up, and compared with the disk, in the background. It
// fails with [ErrLocked] if another process uses the folder.
func Open(cfg Config, m *Metrics, log *slog.Logger) (*Store, error) {
	if cfg.HighMark == 0 {
		cfg.HighMark = max(98, cfg.LowMark)
	}
	if cfg.LowMark == 0 {
		cfg.LowMark = min(95, cfg.HighMark)
	}
	if cfg.LowMark < 0 || cfg.LowMark > cfg.HighMark || cfg.HighMark > 100 {
		return nil, fmt.Errorf("storage: low mark %g %%, high mark %g %%; write 0 <= low mark <= high mark <= 100", cfg.LowMark, cfg.HighMark)
	}
	if cfg.MaxFills < 1 {
		return nil, fmt.Errorf("storage: %d fills at once; at least 1 is needed", cfg.MaxFills)
	}
	k, lock, err := openDisk(cfg.Path)
	if err != nil {
		return nil, err
	}
	free, total, err := k.space()
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	ctx, stop := context.WithCancelCause(context.Background())
	s := &Store{
		disk: k, lock: lock, metrics: m, log: log,
		slots: newSlots(cfg.MaxFills, cfg.Share), buffers: download.NewBuffers(),
		ctx: ctx, stop: stop,
		gate: newGate(),
	}
	s.index = index.Open(index.Config{Dir: k.index(), Max: cfg.MaxIndex, Pinned: s.Pinned, Rest: rest}, m.index, log)
	s.ledger = newLedger(s.index, m)
	s.space = &space{
		maxSize: cfg.MaxSize.of(total), minFree: cfg.MinFree.of(total), blobs: s.ledger.total, free: k.space,
		metrics: m, log: log,
	}
	s.access = newAccessLog(s.ledger, log)
	s.evictor = newEvictor(s)
	s.evictor.highMark, s.evictor.lowMark = cfg.HighMark, cfg.LowMark
	s.summaries = newSummaries(s.sumUp)
	s.health = newHealth(ctx, k, s.ledger, s.space, m, log, exclusion{s.gate.exclusive, s.gate.exclusiveIdle, s.forget})
	s.health.scrubEvery, s.health.quarantineMax = cfg.ScrubEvery, cmp.Or(s.space.maxSize, total)/quarantineShare
	m.limit.Set(float64(s.space.maxSize))
	m.minFree.Set(float64(max(s.space.minFree, index.Floor)))
	m.fillsLimit.Set(float64(cfg.MaxFills))
	m.disk.Store(&s.disk)
	s.SetListed(cfg.Listed)
	s.SetPinned(cfg.Pinned)
	if err := k.partials(func(_ partial, info fs.FileInfo) { s.space.grow(blocks(info.Size())) }); err != nil {
		log.Warn("cannot list partial downloads", "error", err)
	}
	s.health.updateQuarantine()
	log.Info("storage open", "path", cfg.Path, "max_bytes", s.space.maxSize, "free_bytes", free, "min_free_bytes", s.space.minFree)
	s.running.Go(task.Keep(ctx, "maintenance", s.maintain))
	s.running.Go(task.Keep(ctx, "scrub", s.health.scrub))
	s.running.Go(task.Keep(ctx, "bounds of the index", func() { s.index.Run(ctx) }))
	return s, nil
}

// Close breaks off all fills and closes the index. The next start resumes the partials
// of fills that are not NoStore. Open blobs stay readable.
func (s *Store) Close() error {
	s.gate.close()
	s.access.close()
	s.stop(ErrClosed)
	s.running.Wait()
	s.access.flush()
	return errors.Join(s.index.Close(), s.lock.Close())
}

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
		func() { s.running.Go(task.Guard("download", func() { own.run(ctx) })) })
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
