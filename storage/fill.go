package storage

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	"go.opentelemetry.io/otel/trace"

	"github.com/cachalot-registry/cachalot/storage/index"
	"github.com/cachalot-registry/cachalot/task"
)

// phase of a fill; see doc.go.
type phase int

const (
	opening phase = iota
	streaming
	verified
	spilled
	failed
)

// chunk is what is read, written, hashed and published at a time.
const chunk = 128 << 10

// fill is one download. run writes; readers follow.
type fill struct {
	store   *Store
	place   index.Place // that started it; others need a link to join
	client  string      // whose request started it
	digest  digest.Digest
	src     Source
	started time.Time

	// Owned by run until the phase is final, then read by readers.
	file     *os.File
	hash     hash.Hash // of the first `written` bytes
	promised int64     // bytes reserved, and not yet taken of the disk

	left        chan struct{}           // closed once it is in the store's table no more
	shut        bool                    // who comes waits until it has left; guarded by gate.mu
	settling    bool                    // it is about to become a blob; guarded by gate.mu
	admitted    map[index.Place]string  // media types of the places that get a link with its own; guarded by gate.mu, nil once they have
	connections atomic.Int32            // to the upstream, as run last saw; for who looks on
	progress    atomic.Int64            // Unix nanoseconds of the last byte, or of the start; 0: not started
	stop        context.CancelCauseFunc // ends run; set before it has a slot

	mu        sync.Mutex // guards the fields below
	phase     phase
	err       error // of failed
	size      int64 // -1 while unknown
	written   int64
	mediaType string
	changed   chan struct{}     // closed and replaced whenever one of these changes
	span      trace.SpanContext // of the fill; zero: not traced
	users     int               // run and readers; the last one closes file
	keep      Retention         // the most generous of those who joined
}

func newFill(s *Store, sc Scope, d digest.Digest, src Source) *fill {
	return &fill{
		store: s, place: sc.place(), client: sc.Client, keep: sc.Keep, digest: d, src: src, started: time.Now(),
		left: make(chan struct{}), admitted: map[index.Place]string{},
		hash: d.Algorithm().Hash(), size: -1, changed: make(chan struct{}), users: 1,
	}
}

// publish changes the guarded fields and wakes every reader.
func (f *fill) publish(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
	close(f.changed)
	f.changed = make(chan struct{})
}

// retain adds a reader, who wants the blob kept so. gate.mu is held: see noStore.
func (f *fill) retain(keep Retention) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.users++
	f.keep = f.keep.or(keep)
}

func (f *fill) release() {
	f.mu.Lock()
	f.users--
	last := f.users == 0
	f.mu.Unlock()
	if last && f.file != nil {
		_ = f.file.Close() // synced by commit, or not worth keeping
	}
}

// errSpill: the disk cannot take the blob, the clients can.
var errSpill = errors.New("not stored")

// run downloads the blob and makes it durable if it is to be kept. Whatever
// happens to it, the fill ends in a final phase and leaves the store's table.
// Only until it has a slot does it depend on ctx, of the one who started it; of
// its values the fill has those of ctx all along.
func (f *fill) run(ctx context.Context) {
	s := f.store
	own, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	f.stop = cancel
	defer context.AfterFunc(s.ctx, func() { cancel(context.Cause(s.ctx)) })()
	defer f.release()
	defer s.ended(f)
	defer f.unfinished()
	err := errAgain // others who wait for it start another
	if give, ok := s.slot(ctx, f); ok {
		defer give()
		f.progressed()
		s.metrics.fills.Inc()
		defer s.metrics.fills.Dec()
		var span trace.Span
		own, span = f.traced(own)
		defer f.endSpan(span)
		err = task.Try("download", func() error { return f.fetch(own) })
	}
	defer func() { s.space.release(f.promised) }() // until a blob has it in the books
	switch {
	case err == nil:
		f.publish(func() { f.phase = verified }) // readers get the last byte before it is durable
		if f.settle(own) {
			f.link(own)
		}
	case errors.Is(err, errAgain):
		f.close()
		f.publish(func() { f.phase, f.err = failed, err })
	case errors.Is(err, errSpill):
		s.metrics.spills.Inc()
		s.log.WarnContext(own, "blob passed through and not stored", "digest", f.digest, "error", err)
		f.discard()
		f.publish(func() { f.phase = spilled })
	default:
		reason := reasonUpstream
		wrong := isWrong(err)
		switch {
		case wrong:
			reason = reasonDigest
			s.log.ErrorContext(own, "upstream sent wrong content", "upstream", f.place.Upstream, "repository", f.place.Repository, "digest", f.digest, "error", err)
		case s.ctx.Err() != nil:
			reason, err = reasonClosed, ErrClosed
		case f.written > 0: // or else it is told to all who wait, at once
			s.log.WarnContext(own, "download failed", "upstream", f.place.Upstream, "repository", f.place.Repository,
				"digest", f.digest, "bytes", f.written, "error", err)
		}
		_, panicked := errors.AsType[*task.PanicError](err)
		if wrong || panicked || f.written == 0 || f.noStore() {
			f.discard()
		}
		if f.state().phase > opening || !errors.Is(err, ErrRefused) { // or else there was nothing to download
			s.metrics.failures.WithLabelValues(reason).Inc()
		}
		f.publish(func() { f.phase, f.err = failed, err })
	}
}

// unfinished ends the fill of a run that has panicked.
func (f *fill) unfinished() {
	if f.state().phase <= streaming {
		f.close()
		f.publish(func() { f.phase, f.err = failed, errPanicked })
	}
}

// errPanicked ends a download by a bug, of which the log has the stack.
var errPanicked = errors.New("internal error while downloading")

// slot waits for one of the fills that may run at once; false: ctx, or the store,
// has ended.
func (s *Store) slot(ctx context.Context, f *fill) (give func(), ok bool) {
	s.metrics.fillsWaiting.Inc()
	defer s.metrics.fillsWaiting.Dec()
	return s.slots.take(ctx, s.ctx, f)
}

func (f *fill) progressed() { f.progress.Store(time.Now().UnixNano()) }

// silent is how long nothing has come.
func (f *fill) silent() time.Duration {
	at := f.progress.Load()
	if at == 0 {
		return 0
	}
	return time.Since(time.Unix(0, at))
}

// fetch brings the whole blob into the file and verifies it.
func (f *fill) fetch(ctx context.Context) error {
	if err := f.openPartial(); err != nil {
		return fmt.Errorf("%w: %w", errSpill, err)
	}
	if f.written > 0 && f.sum() == f.digest {
		// Whole since before a restart; whether this scope may have it is not
		// known, so it becomes a blob, or goes, and the caller looks again.
		f.settle(ctx)
		return errAgain
	}
	st, err := f.openStream(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = st.Close() }()
	err = f.fits(st.size)
	if err == nil {
		err = f.reserve(f.reserveTo(st.size))
	}
	if err != nil {
		// Readers need size and type before they go on alone.
		f.publish(func() { f.size, f.mediaType = st.size, st.mediaType })
		return err
	}
	f.publish(func() { f.phase, f.size, f.mediaType = streaming, st.size, st.mediaType })
	if err := f.copy(st); err != nil {
		return err
	}
	if sum := f.sum(); sum != f.digest {
		return st.refuse(fmt.Errorf("%w: got %s", ErrDigest, sum))
	}
	return nil
}

// openPartial opens the file and hashes what an earlier fill left in it.
func (f *fill) openPartial() error {
	file, err := os.OpenFile(f.store.disk.partial(f.partial()), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("create partial: %w", err)
	}
	f.file = file
	n, err := io.Copy(f.hash, file)
	if err != nil {
		f.hash.Reset()
		return fmt.Errorf("read partial: %w", err)
	}
	f.publish(func() { f.written = n })
	return nil
}

// openStream asks the Source for what the partial lacks. Where the upstream
// knows no ranges, or the partial cannot be the blob's, it begins anew: no
// reader has seen anything yet.
func (f *fill) openStream(ctx context.Context) (*stream, error) {
	resumed := func(offset int64, cause error) {
		f.store.metrics.resumes.Inc()
		resumedSpan(ctx, offset, cause)
		f.store.log.InfoContext(ctx, "download broke; resuming", "upstream", f.place.Upstream, "repository", f.place.Repository,
			"digest", f.digest, "offset", offset, "error", cause)
	}
	st, err := openStream(ctx, f.src, f.written, f.store.buffers, resumed)
	if err == nil && st.pos > 0 && st.size >= 0 && st.size <= st.pos {
		if err := st.Close(); err != nil {
			return nil, err
		}
		st, err = openStream(ctx, f.src, 0, f.store.buffers, resumed)
	}
	switch {
	case err != nil:
		return nil, err
	case st.pos == f.written && st.pos > 0:
		st.wrong = nil // what an earlier fill left may be what is wrong
		f.store.metrics.resumes.Inc()
	case st.pos == 0 && f.written > 0:
		if err := f.file.Truncate(0); err != nil {
			return nil, errors.Join(errSpill, err, st.Close())
		}
		f.store.space.grow(-blocks(f.written))
		f.hash.Reset()
		f.publish(func() { f.written = 0 })
	}
	return st, nil
}

// leastStep and mostStep are how much room is reserved at a time, besides what has
// come: as much again as that, within these.
const (
	leastStep = 1 << 20
	mostStep  = 64 << 20
)

// reserveTo is up to where room is reserved next for a blob that is said to be size bytes
// long; -1: not known. The length is a claim, for which nothing has to go.
func (f *fill) reserveTo(size int64) int64 {
	next := f.written + min(max(f.written, leastStep), mostStep)
	if size >= 0 {
		next = min(next, size)
	}
	return next
}

// fits is an error where a blob of size bytes cannot be kept, whatever goes for it: so
// nothing does.
func (f *fill) fits(size int64) error {
	if need := blocks(size) - blocks(f.written); size > f.reserveTo(size) && !f.store.evictor.couldFit(need) {
		return fmt.Errorf("%w: no space for %d bytes", errSpill, need)
	}
	return nil
}

// reserve promises disk space for the blob to become so many bytes long.
func (f *fill) reserve(length int64) error {
	need := blocks(length) - blocks(f.written) - f.promised
	if need <= 0 {
		return nil
	}
	if !f.store.evictor.reserve(need) {
		return fmt.Errorf("%w: no space for %d bytes", errSpill, need)
	}
	f.promised += need
	return nil
}

// copy moves the stream into the file, a chunk at a time.
func (f *fill) copy(st *stream) error {
	buf := make([]byte, chunk)
	for {
		n, err := st.Read(buf)
		f.connections.Store(st.connections())
		if n > 0 {
			f.progressed()
			grown := blocks(f.written+int64(n)) - blocks(f.written)
			if f.promised < grown {
				if err := f.reserve(max(f.reserveTo(st.size), f.written+int64(n))); err != nil {
					return err
				}
			}
			if _, werr := f.file.WriteAt(buf[:n], f.written); werr != nil {
				// The chunk is lost; readers ask for it again from where the file ends.
				// What came of it is in no books.
				return errors.Join(fmt.Errorf("%w: write: %w", errSpill, werr), f.file.Truncate(f.written))
			}
			_, _ = f.hash.Write(buf[:n]) // a hash never fails
			f.promised -= grown
			f.store.space.spend(grown)
			f.publish(func() { f.written += int64(n) })
			runtime.Gosched() // readers first
		}
		switch {
		case errors.Is(err, io.EOF):
			f.publish(func() { f.size = f.written })
			return nil
		case err != nil:
			return err
		}
	}
}

func (f *fill) sum() digest.Digest {
	return digest.NewDigest(f.digest.Algorithm(), f.hash)
}

// settle makes the verified file a blob, or removes it where no one wants it
// kept. A disk that fails now costs the blob, not the readers.
func (f *fill) settle(ctx context.Context) (kept bool) {
	if f.noStore() {
		f.discard()
		return false
	}
	if f.here() {
		f.store.removePartial(f.partial())
		return true
	}
	if err := f.commit(); err != nil {
		f.store.metrics.failures.WithLabelValues(reasonDisk).Inc()
		f.store.log.ErrorContext(ctx, "cannot store blob", "digest", f.digest, "error", err)
		f.discard()
		return false
	}
	return true
}

// noStore says that no one who joined wants the blob kept. That is final: the
// fill is shut then. If it is wanted, nothing removes the digest from now on until the
// fill has left.
func (f *fill) noStore() bool { return !f.store.gate.settle(f) }

// here reports whether another upstream's fill has made the blob already.
func (f *fill) here() bool {
	_, recorded, err := f.store.index.Record(f.digest)
	return !f.store.health.isCondemned(f.digest) && recorded && err == nil && f.store.exists(f.digest)
}

// link lets the places have the blob that were told so while it came.
func (f *fill) link(ctx context.Context) {
	s := f.store
	places := s.gate.takeAdmitted(f)
	places[f.place] = f.state().mediaType
	for p, mediaType := range places {
		if err := s.index.PutLink(p, f.digest, index.Link{MediaType: mediaType, Size: f.written}); err != nil {
			s.log.WarnContext(ctx, "cannot record link", "digest", f.digest, "error", err)
		}
	}
}

// commit moves the verified file under its final name and into the books.
func (f *fill) commit() error {
	s := f.store
	if err := s.disk.commit(f.file, f.partial()); err != nil {
		return err
	}
	s.health.clear(f.digest)
	now := time.Now()
	r := index.Record{Size: f.written, Accessed: now.Unix(), Until: f.state().keep.until(now), Manifest: f.place.Manifest}
	if err := s.space.commit(blocks(f.written), func() error { return s.ledger.add(f.digest, r) }); err != nil {
		return errors.Join(fmt.Errorf("record blob: %w", err), os.Remove(s.disk.blob(f.digest))) // it would never go
	}
	return nil
}

// discard removes the partial, and lets no one join any more.
func (f *fill) discard() {
	f.close()
	f.store.removePartial(f.partial())
}

// close makes who comes from now on wait until the fill has left.
func (f *fill) close() { f.store.gate.shut(f) }

func (f *fill) partial() partial { return partialOf(f.digest, f.place.Upstream) }
