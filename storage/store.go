package storage

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/cachalot-registry/cachalot/storage/download"
	"github.com/cachalot-registry/cachalot/storage/index"
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
	life      *lifetime
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
	k, err := openDisk(cfg.Path)
	if err != nil {
		return nil, err
	}
	free, total, err := k.space()
	if err != nil {
		return nil, errors.Join(err, k.close())
	}
	s := &Store{
		disk: k, metrics: m, log: log, life: newLifetime(), gate: newGate(),
		slots: newSlots(cfg.MaxFills, cfg.Share), buffers: download.NewBuffers(),
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
	s.health = newHealth(s.life.ctx, k, s.ledger, s.space, m, log, exclusion{s.gate.exclusive, s.gate.exclusiveIdle, s.forget})
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
	s.life.keep("maintenance", s.maintain)
	s.life.keep("scrub", s.health.scrub)
	s.life.keep("bounds of the index", func() { s.index.Run(s.life.ctx) })
	return s, nil
}

// Close breaks off all fills and closes the index. The next start resumes the partials
// of fills that are not NoStore. Open blobs stay readable.
func (s *Store) Close() error {
	s.gate.close()
	s.access.close()
	s.life.end()
	s.access.flush()
	return errors.Join(s.index.Close(), s.disk.close())
}
