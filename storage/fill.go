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

	"github.com/cachalot-registry/cachalot/storage/download"
	"github.com/cachalot-registry/cachalot/storage/index"
	"github.com/cachalot-registry/cachalot/task"
)

// phase of a fill; see doc.go.
type phase int

const (
	opening phase = iota
	streaming
	verified
	passingThrough
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
	src     download.Source
	started time.Time

	// Owned by run until the phase is final, then read by readers.
	file     *os.File
	hash     hash.Hash // of the first `written` bytes
	promised int64     // bytes reserved, and not yet written

	left        chan struct{}           // closed when the fill has left the gate's table
	shut        bool                    // new callers wait until it has left; guarded by gate.mu
	settling    bool                    // it is about to become a blob; guarded by gate.mu
	admitted    map[index.Place]string  // places, with media types, that get a link when this fill does; guarded by gate.mu, nil after that
	connections atomic.Int32            // to the upstream, as run last saw; for FillInfo
	progress    atomic.Int64            // Unix nanoseconds of the last byte, or of the start; 0: not started
	stop        context.CancelCauseFunc // ends run; set before it has a slot

	mu        sync.Mutex // guards the fields below; taken under gate.mu, and no lock is taken under it
	phase     phase
	err       error // of failed
	size      int64 // -1 while unknown
	written   int64
	mediaType string
	changed   chan struct{}     // closed and replaced whenever one of these changes
	span      trace.SpanContext // of the fill; zero: not traced
	users     int               // run and readers; the last one closes file
	keep      Retention         // the most generous of all that joined
}

func newFill(s *Store, sc Scope, d digest.Digest, src download.Source) *fill {
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

// retain adds a reader and its Retention. gate.mu is held: see noStore.
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
		_ = f.file.Close() // synced by commit, or discarded
	}
}

// errPassThrough: the blob cannot be stored. Its readers still get it.
var errPassThrough = errors.New("not stored")

// run downloads the blob, and makes it durable unless it is NoStore. In any case the
// fill ends in a final phase and leaves the gate's table. ctx is that of the first caller:
// its end stops the fill only before it has a slot; its values (request id, span) stay.
func (f *fill) run(ctx context.Context) {
	s := f.store
	own, cancel := s.life.within(context.WithoutCancel(ctx))
	defer cancel(nil)
	f.stop = cancel
	defer f.release()
	defer s.ended(f)
	defer f.unfinished()
	err := errAgain // other callers that wait for this fill start another one
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
	defer func() { s.space.release(f.promised) }() // after the blob is in the account
	switch {
	case err == nil:
		f.publish(func() { f.phase = verified }) // readers get the last byte before it is durable
		if f.settle(own) {
			f.link(own)
		}
	case errors.Is(err, errAgain):
		f.close()
		f.publish(func() { f.phase, f.err = failed, err })
	case errors.Is(err, errPassThrough):
		s.metrics.passedThrough.Inc()
		s.log.WarnContext(own, "blob passed through and not stored", "digest", f.digest, "error", err)
		f.discard()
		f.publish(func() { f.phase = passingThrough })
	default:
		reason := reasonUpstream
		wrong := isWrong(err)
		switch {
		case wrong:
			reason = reasonDigest
			s.log.ErrorContext(own, "upstream sent wrong content", "upstream", f.place.Upstream, "repository", f.place.Repository, "digest", f.digest, "error", err)
		case s.life.ctx.Err() != nil:
			reason, err = reasonClosed, ErrClosed
		case f.written > 0: // otherwise each waiting client gets the error, and its request line has it
			s.log.WarnContext(own, "download failed", "upstream", f.place.Upstream, "repository", f.place.Repository,
				"digest", f.digest, "bytes", f.written, "error", err)
		}
		_, panicked := errors.AsType[*task.PanicError](err)
		if wrong || panicked || f.written == 0 || f.noStore() {
			f.discard()
		}
		if f.state().phase > opening || !errors.Is(err, download.ErrRefused) { // a refusal before the first byte is no failed download
			s.metrics.failures.WithLabelValues(reason).Inc()
		}
		f.publish(func() { f.phase, f.err = failed, err })
	}
}

// unfinished ends a fill whose run has panicked.
func (f *fill) unfinished() {
	if f.state().phase <= streaming {
		f.close()
		f.publish(func() { f.phase, f.err = failed, errPanicked })
	}
}

// errPanicked ends a download that has panicked. The log has the stack.
var errPanicked = errors.New("internal error while downloading")

// slot waits for a slot of MaxFills; false: ctx, or the store's context, has ended.
func (s *Store) slot(ctx context.Context, f *fill) (give func(), ok bool) {
	s.metrics.fillsWaiting.Inc()
	defer s.metrics.fillsWaiting.Dec()
	return s.slots.take(ctx, s.life.ctx, f)
}

func (f *fill) progressed() { f.progress.Store(time.Now().UnixNano()) }

// silent returns how long the upstream has sent nothing.
func (f *fill) silent() time.Duration {
	at := f.progress.Load()
	if at == 0 {
		return 0
	}
	return time.Since(time.Unix(0, at))
}

// fetch downloads the whole blob into the file and verifies it.
func (f *fill) fetch(ctx context.Context) error {
	if err := f.openPartial(); err != nil {
		return fmt.Errorf("%w: %w", errPassThrough, err)
	}
	if f.written > 0 && f.sum() == f.digest {
		// The partial was whole before a restart. Whether this scope may have it is not
		// known, so it is stored, or removed, and the caller looks again.
		f.settle(ctx)
		return errAgain
	}
	st, err := f.openStream(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = st.Close() }()
	err = f.fits(st.Size())
	if err == nil {
		err = f.reserve(f.reserveTo(st.Size()))
	}
	if err != nil {
		// Readers need size and type before they continue alone.
		f.publish(func() { f.size, f.mediaType = st.Size(), st.MediaType() })
		return err
	}
	f.publish(func() { f.phase, f.size, f.mediaType = streaming, st.Size(), st.MediaType() })
	if err = f.copy(st); err == nil {
		err = f.verify()
	}
	return refuse(st, err)
}

// refuse returns err. If err says that the upstream sent other content, it tells the
// stream's Source.
func refuse(st *download.Stream, err error) error {
	if isWrong(err) {
		st.Wrong()
	}
	return err
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

// openStream asks the Source for the bytes after the partial. If the upstream does not
// support ranges, or the partial is as long as the blob or longer, it starts from 0: no
// reader has seen a byte yet.
func (f *fill) openStream(ctx context.Context) (*download.Stream, error) {
	resumed := func(offset int64, cause error) {
		f.store.metrics.resumes.Inc()
		resumedSpan(ctx, offset, cause)
		f.store.log.InfoContext(ctx, "download broke; resuming", "upstream", f.place.Upstream, "repository", f.place.Repository,
			"digest", f.digest, "offset", offset, "error", cause)
	}
	st, err := download.Open(ctx, f.src, f.written, f.store.buffers, resumed)
	if err == nil && st.Pos() > 0 && st.Size() >= 0 && st.Size() <= st.Pos() {
		if err := st.Close(); err != nil {
			return nil, err
		}
		st, err = download.Open(ctx, f.src, 0, f.store.buffers, resumed)
	}
	switch {
	case err != nil:
		return nil, err
	case st.Pos() == f.written && st.Pos() > 0:
		st.Excuse() // if the content is wrong, the earlier partial may be the reason
		f.store.metrics.resumes.Inc()
	case st.Pos() == 0 && f.written > 0:
		if err := f.file.Truncate(0); err != nil {
			return nil, errors.Join(errPassThrough, err, st.Close())
		}
		f.store.space.grow(-blocks(f.written))
		f.hash.Reset()
		f.publish(func() { f.written = 0 })
	}
	return st, nil
}

// A fill reserves as many bytes again as it has, between leastStep and mostStep at a time.
const (
	leastStep = 1 << 20
	mostStep  = 64 << 20
)

// reserveTo returns the length up to which space is reserved next. size is what the
// upstream announced; -1: nothing. An announced length alone evicts no other blob.
func (f *fill) reserveTo(size int64) int64 {
	next := f.written + min(max(f.written, leastStep), mostStep)
	if size >= 0 {
		next = min(next, size)
	}
	return next
}

// fits fails if a blob of size bytes cannot be stored even after evictions. Nothing is
// evicted for it then.
func (f *fill) fits(size int64) error {
	if need := blocks(size) - blocks(f.written); size > f.reserveTo(size) && !f.store.evictor.couldFit(need) {
		return fmt.Errorf("%w: no space for %d bytes", errPassThrough, need)
	}
	return nil
}

// reserve reserves disk space for the blob up to a length.
func (f *fill) reserve(length int64) error {
	need := blocks(length) - blocks(f.written) - f.promised
	if need <= 0 {
		return nil
	}
	if !f.store.evictor.reserve(need) {
		return fmt.Errorf("%w: no space for %d bytes", errPassThrough, need)
	}
	f.promised += need
	return nil
}

// copy moves the stream into the file, a chunk at a time.
func (f *fill) copy(st *download.Stream) error {
	buf := make([]byte, chunk)
	for {
		n, err := st.Read(buf)
		f.connections.Store(st.Connections())
		if n > 0 {
			f.progressed()
			grown := blocks(f.written+int64(n)) - blocks(f.written)
			if f.promised < grown {
				if err := f.reserve(max(f.reserveTo(st.Size()), f.written+int64(n))); err != nil {
					return err
				}
			}
			if _, werr := f.file.WriteAt(buf[:n], f.written); werr != nil {
				// The chunk is lost; readers get it from the Source, from the end of the file.
				// Bytes of it that were written are cut off, and not in the account.
				return errors.Join(fmt.Errorf("%w: write: %w", errPassThrough, werr), f.file.Truncate(f.written))
			}
			_, _ = f.hash.Write(buf[:n]) // a hash never fails
			f.promised -= grown
			f.store.space.spend(grown)
			f.publish(func() { f.written += int64(n) })
			runtime.Gosched() // let readers run first
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

// verify compares the digest of what has come.
func (f *fill) verify() error {
	if sum := f.sum(); sum != f.digest {
		return fmt.Errorf("%w: got %s", ErrDigest, sum)
	}
	return nil
}

func (f *fill) sum() digest.Digest {
	return digest.NewDigest(f.digest.Algorithm(), f.hash)
}

// settle stores the verified file as a blob, or removes it if it is NoStore. If the disk
// fails now, the blob is not stored, and readers still get it.
func (f *fill) settle(ctx context.Context) (stored bool) {
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

// noStore reports whether all that joined are NoStore. The answer is final: see gate.settle.
func (f *fill) noStore() bool { return !f.store.gate.settle(f) }

// here reports whether another upstream's fill has made the blob already.
func (f *fill) here() bool {
	_, recorded, err := f.store.index.Record(f.digest)
	return !f.store.health.isCondemned(f.digest) && recorded && err == nil && f.store.exists(f.digest)
}

// link writes the links of the fill's place and of the places that were admitted to it.
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

// commit renames the verified file to its final name and records it.
func (f *fill) commit() error {
	s := f.store
	if err := s.disk.commit(f.file, f.partial()); err != nil {
		return err
	}
	s.health.clear(f.digest)
	now := time.Now()
	r := index.Record{Size: f.written, Accessed: now.Unix(), Until: f.state().keep.until(now), Manifest: f.place.Manifest}
	if err := s.space.commit(blocks(f.written), func() error { return s.ledger.add(f.digest, r) }); err != nil {
		return errors.Join(fmt.Errorf("record blob: %w", err), os.Remove(s.disk.blob(f.digest))) // without a record it would never be evicted
	}
	return nil
}

// discard removes the partial. No caller joins the fill after it.
func (f *fill) discard() {
	f.close()
	f.store.removePartial(f.partial())
}

// close makes new callers wait until the fill has left the table.
func (f *fill) close() { f.store.gate.shut(f) }

func (f *fill) partial() partial { return partialOf(f.digest, f.place.Upstream) }
