package storage

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"math"

	"github.com/opencontainers/go-digest"

	"github.com/cachalot-registry/cachalot/storage/download"
)

// state is what a reader sees of a fill at one moment.
type state struct {
	phase     phase
	err       error
	size      int64
	written   int64
	mediaType string
	keep      Retention
	changed   <-chan struct{}
}

func (f *fill) state() state {
	f.mu.Lock()
	defer f.mu.Unlock()
	return state{f.phase, f.err, f.size, f.written, f.mediaType, f.keep, f.changed}
}

// await returns the fill's first state for which ok holds.
func (f *fill) await(ctx context.Context, ok func(state) bool) (state, error) {
	for {
		st := f.state()
		if ok(st) {
			return st, nil
		}
		select {
		case <-st.changed:
		case <-ctx.Done():
			return st, fmt.Errorf("wait for fill: %w", context.Cause(ctx))
		}
	}
}

// joined returns a reader of the fill to a caller that did not start it.
func (f *fill) joined(ctx context.Context, mediaType string) (*Blob, error) {
	if f.state().phase == verified {
		return f.blob(ctx, Hit, mediaType)
	}
	return f.blob(ctx, Collapsed, mediaType)
}

// blob waits until the Source has opened, and returns a reader of the fill. It takes over
// one use of the fill, also with an error. mediaType is that of the reader's own place;
// "": that of the download.
func (f *fill) blob(ctx context.Context, o Outcome, mediaType string) (*Blob, error) {
	st, err := f.await(ctx, func(st state) bool {
		// An empty blob is complete with its header, so the header waits until it has verified.
		return st.phase > streaming || st.phase == streaming && st.size != 0
	})
	if o == Collapsed {
		f.follow(ctx)
	}
	if err == nil && st.phase == failed {
		err = st.err
	}
	r := &fillReader{ctx: ctx, fill: f, last: math.MaxInt64}
	if err == nil && st.phase == passingThrough {
		if err = r.goAlone(st); err == nil {
			st.size, st.mediaType = r.alone.Size(), r.alone.MediaType()
		}
	}
	if err != nil {
		f.release()
		return nil, err
	}
	return &Blob{
		Digest: f.digest, Size: st.size, MediaType: cmp.Or(mediaType, st.mediaType), Outcome: o, Content: r,
		Stored: st.phase != passingThrough && !st.keep.NoStore,
		from:   r,
	}, nil
}

// fillReader follows a fill. If the fill is passed through, it continues alone. It is the content
// of a [Blob], and what that was opened from.
type fillReader struct {
	ctx  context.Context
	fill *fill
	off  int64
	last int64 // held back, with all after it, until the blob has verified

	alone    *download.Stream // the bytes after the file of a fill that is passed through
	ahead    *bufio.Reader
	hash     hash.Hash // of all bytes before aloneAt
	aloneAt  int64
	verified bool // by this reader, alone
	follows  bool // of a blob without a length: there are bytes after the file's
}

// Seek from the end fails while the fill does not know its size.
func (r *fillReader) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += r.off
	case io.SeekEnd:
		size := r.fill.state().size
		if r.alone != nil {
			size = r.alone.Size()
		}
		if size < 0 {
			return 0, errors.New("seek: size not known yet")
		}
		offset += size
	}
	if offset < 0 {
		return 0, errors.New("seek: before the start")
	}
	r.off = offset
	return offset, nil
}

// Read waits for bytes to be published. It fails with the fill's error; the caller must
// then cut the response.
func (r *fillReader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	st, err := r.fill.await(r.ctx, func(st state) bool {
		return st.phase > streaming || r.off < r.visible(st)
	})
	switch {
	case err != nil:
		return 0, err
	case st.phase == failed && (r.off >= r.visible(st) || isWrong(st.err)):
		return 0, st.err
	case r.off < r.visible(st):
		n := min(int64(len(p)), r.visible(st)-r.off)
		m, err := r.fill.file.ReadAt(p[:n], r.off)
		r.off += int64(m)
		if err != nil && !errors.Is(err, io.EOF) {
			return m, fmt.Errorf("read fill: %w", err)
		}
		if m == 0 {
			return 0, fmt.Errorf("read fill at %d: %w", r.off, io.ErrUnexpectedEOF)
		}
		return m, nil
	case st.phase == verified:
		return 0, io.EOF
	}
	n, err := r.readAlone(p, st)
	if r.alone != nil {
		err = refuse(r.alone, err)
	}
	return n, err
}

// visible returns how far the reader may read the file.
func (r *fillReader) visible(st state) int64 {
	if st.phase == verified || r.verified {
		return st.written
	}
	last := st.written - 1 // it may be the blob's last byte
	switch {
	case st.size >= 0:
		last = st.size - 1
	case r.follows:
		last = st.written
	}
	return min(st.written, last, r.last)
}

// goAlone opens the Source after the end of the file of a fill that is passed through.
func (r *fillReader) goAlone(st state) error {
	clone, ok := r.fill.hash.(hash.Cloner)
	if !ok {
		return fmt.Errorf("%w: hash cannot be copied", ErrNotStored)
	}
	h, err := clone.Clone()
	if err != nil {
		return fmt.Errorf("copy hash: %w", err)
	}
	s, err := download.Open(r.ctx, r.fill.src, st.written, nil, func(int64, error) { r.fill.store.metrics.resumes.Inc() })
	if err != nil {
		return err
	}
	if _, err := io.CopyN(io.Discard, s, st.written-s.Pos()); err != nil {
		return errors.Join(refuse(s, err), s.Close())
	}
	r.alone, r.ahead, r.hash, r.aloneAt = s, bufio.NewReaderSize(s, 32<<10), h, st.written
	return nil
}

// readAlone reads the rest of a fill that is passed through. The bytes that reach the end, or the last
// byte of the range, are returned only after the whole blob has verified.
func (r *fillReader) readAlone(p []byte, st state) (int, error) {
	if r.verified {
		return 0, io.EOF
	}
	if r.alone == nil {
		if err := r.goAlone(st); err != nil {
			return 0, err
		}
	}
	if r.off < r.aloneAt { // held back in the file
		if _, err := r.ahead.Peek(1); err == nil && r.off < r.last && st.size < 0 && !r.follows {
			r.follows = true
		} else if err := r.verifyRest(); err != nil {
			return 0, err
		}
		return r.Read(p)
	}
	tee := io.TeeReader(r.ahead, r.hash)
	if _, err := io.CopyN(io.Discard, tee, r.off-r.aloneAt); err != nil {
		return 0, err
	}
	r.aloneAt = r.off
	n, err := tee.Read(p)
	r.aloneAt += int64(n)
	if err != nil && !errors.Is(err, io.EOF) {
		return 0, err
	}
	end := errors.Is(err, io.EOF) || r.aloneAt > r.last || r.aloneAt == r.alone.Size()
	if !end && r.alone.Size() < 0 {
		_, err := r.ahead.Peek(1)
		end = errors.Is(err, io.EOF)
	}
	if end {
		if err := r.verifyRest(); err != nil {
			return 0, err
		}
	}
	r.off += int64(n)
	if n == 0 {
		return 0, io.EOF
	}
	return n, nil
}

// verifyRest reads on to the blob's end and compares the digest.
func (r *fillReader) verifyRest() error {
	if _, err := io.Copy(r.hash, r.ahead); err != nil {
		return err
	}
	if sum := digest.NewDigest(r.fill.digest.Algorithm(), r.hash); sum != r.fill.digest {
		return fmt.Errorf("%w: got %s", ErrDigest, sum)
	}
	r.verified = true
	return nil
}

func (r *fillReader) wait(ctx context.Context) error {
	st, err := r.fill.await(ctx, func(st state) bool { return st.phase > streaming })
	switch {
	case err != nil:
		return err
	case st.phase == passingThrough:
		return ErrNotStored
	}
	return st.err
}

func (r *fillReader) hold(last int64) { r.last = last }

func (r *fillReader) broken() {} // its file may be no blob

func (r *fillReader) close() {
	if r.alone != nil {
		_ = r.alone.Close() // only read
	}
	r.fill.release()
}
