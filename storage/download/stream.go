package download

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/cenkalti/backoff/v5"
)

const (
	// patience is how long a broken stream tries its Source again before it fails.
	// Clients see a pause until then; those that have another registry use it afterwards.
	patience = 15 * time.Second
	// firstPatience is the same before the first byte: no bytes are lost then, and a
	// client tries again.
	firstPatience = 3 * time.Second
	// progress is how many bytes a part must bring to restart the patience. A Source
	// that breaks after every few bytes must not keep a download without end.
	progress = 64 << 10
)

// Stream reads a blob from its Source to the end, in order, across breaks and
// over as many connections as are worth it: see ahead. If an upstream answers a
// range with the whole blob, the stream skips bytes without comparing them: at the
// end the digest of all bytes that Read returned decides.
type Stream struct {
	ctx     context.Context
	src     Source
	resumed func(offset int64, cause error) // called before every try to resume
	ahead   *ahead                          // nil: one connection

	body           io.ReadCloser
	from           int64 // where it began
	pos, end, size int64 // end is where body ends; it and size are -1 while unknown
	mediaType      string
	wrong          func() // see Part; of the first one

	breaks  *backoff.ExponentialBackOff
	shorter bool      // the whole blob, requested again, ended before pos
	since   time.Time // of the first break without progress; zero: none
	sinceAt int64     // pos then
}

// Open calls src once, for the bytes from offset at. The stream may begin at 0 instead:
// see Pos. It may open more connections while r has buffers left; r nil: one connection.
// resumed is called before every try to resume after a break.
func Open(ctx context.Context, src Source, at int64, r *Buffers, resumed func(int64, error)) (*Stream, error) {
	asked := Span{Offset: at}
	if r != nil {
		asked.Length, asked.IfLong = firstPart, true
	}
	began := time.Now()
	part, err := src(ctx, asked)
	if err != nil {
		return nil, err
	}
	if part.Offset != at && part.Offset != 0 {
		return nil, errors.Join(fmt.Errorf("source opened offset %d, asked for %d", part.Offset, at), part.Body.Close())
	}
	s := &Stream{
		ctx: ctx, src: src, resumed: resumed,
		body: part.Body, from: part.Offset, pos: part.Offset, end: part.end(asked, part.Size), size: part.Size, mediaType: part.MediaType, wrong: part.Wrong,
		breaks: newBreaks(),
	}
	if s.end < s.size {
		s.ahead = newAhead(ctx, src, s, r, time.Since(began))
	}
	return s, nil
}

// newBreaks returns the pauses between tries. There are some eight tries in the patience,
// the first ones soon. Each try may be four requests (a part, the whole, and a redirect of
// each), and a registry that fails so many requests will not send the blob.
func newBreaks() *backoff.ExponentialBackOff {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval, b.Multiplier, b.MaxInterval = 100*time.Millisecond, 3, 5*time.Second
	return b
}

// Read returns the next bytes. io.EOF means that the blob is complete according to
// its length.
func (s *Stream) Read(p []byte) (int, error) {
	for s.size < 0 || s.pos < s.size {
		if s.size >= 0 && s.pos == s.end {
			if err := s.advance(); err != nil {
				return 0, err
			}
		}
		n, err := s.ahead.read(s.body, p)
		if s.size >= 0 && s.pos+int64(n) > s.end {
			return 0, s.refuse(fmt.Errorf("%w: more than the %d bytes announced", ErrChanged, s.end))
		}
		s.pos += int64(n)
		s.ahead.steer(s.end - s.pos)
		switch {
		case n > 0:
			return n, nil
		case err == nil:
			continue
		case errors.Is(err, io.EOF) && s.size < 0:
			s.size, s.end = s.pos, s.pos
			continue
		case errors.Is(err, io.EOF):
			err = io.ErrUnexpectedEOF
		}
		if err := s.resume(err); err != nil {
			return 0, err
		}
	}
	return 0, io.EOF
}

// Pos returns the offset of the next byte that Read returns.
func (s *Stream) Pos() int64 { return s.pos }

// Size returns the length of the whole blob; -1 while unknown.
func (s *Stream) Size() int64 { return s.size }

// MediaType returns the media type of the first part.
func (s *Stream) MediaType() string { return s.mediaType }

// Connections returns how many connections bring the stream's bytes now.
func (s *Stream) Connections() int32 {
	if s.ahead == nil {
		return 1
	}
	return int32(max(1, s.ahead.active()))
}

// Wrong tells the Source, once, that it sent other content: see [Part]. If the length is
// another one, the stream calls it itself.
func (s *Stream) Wrong() {
	if s.wrong != nil {
		s.wrong()
		s.wrong = nil
	}
}

// Excuse makes Wrong do nothing from now on: the bytes of an earlier download may be the
// wrong ones.
func (s *Stream) Excuse() { s.wrong = nil }

// refuse returns err. If err says that the length is another one, it calls Wrong.
func (s *Stream) refuse(err error) error {
	if errors.Is(err, ErrChanged) {
		s.Wrong()
	}
	return err
}

// Close ends all parts that are being read.
func (s *Stream) Close() error {
	s.ahead.close()
	return s.body.Close()
}

// advance continues with the next part after one has ended where it should.
func (s *Stream) advance() error {
	_ = s.body.Close() // read to its end
	body, end := s.ahead.take(s.pos)
	if s.end = end; body != nil {
		s.body = body
		return nil
	}
	if err := s.reopen(); err != nil {
		return s.resume(err)
	}
	return nil
}

// resume opens the rest of the part after a break.
func (s *Stream) resume(cause error) error {
	_ = s.body.Close() // it broke already
	if errors.Is(cause, ErrRefused) || errors.Is(cause, ErrChanged) {
		return s.refuse(cause)
	}
	var wait time.Duration // none after a first break
	if s.since.IsZero() || s.pos-s.sinceAt >= progress {
		s.since, s.sinceAt = time.Now(), s.pos
		s.breaks.Reset()
	} else {
		wait = s.breaks.NextBackOff()
	}
	limit := patience
	if s.pos == s.from {
		limit = firstPatience
	}
	for ; time.Since(s.since) < limit; wait = s.breaks.NextBackOff() {
		select {
		case <-s.ctx.Done():
			return fmt.Errorf("resume at %d: %w", s.pos, context.Cause(s.ctx))
		case <-time.After(wait):
		}
		s.resumed(s.pos, cause)
		err := s.reopen()
		if err == nil {
			return nil
		}
		if errors.Is(err, ErrRefused) || errors.Is(err, ErrChanged) {
			return s.refuse(err)
		}
		cause = err
	}
	return fmt.Errorf("no progress at byte %d for %s: %w", s.pos, limit, cause)
}

// reopen opens the rest of the part at the Source. When it returns, the next byte of the
// body is that at pos.
func (s *Stream) reopen() error {
	asked := Span{Offset: s.pos}
	if s.end < s.size {
		asked.Length = s.end - s.pos
	}
	part, err := s.src(s.ctx, asked)
	if err != nil {
		return err
	}
	switch {
	case part.Size >= 0 && (s.size >= 0 && part.Size != s.size || part.Size < s.pos):
		err = fmt.Errorf("%w: %d bytes, %d before", ErrChanged, part.Size, max(s.size, s.pos))
	case part.Offset == 0:
		_, err = io.CopyN(io.Discard, part.Body, s.pos)
		if errors.Is(err, io.EOF) && part.Size < 0 { // or a break that looks like the end
			if s.shorter {
				err = fmt.Errorf("%w: twice fewer than %d bytes", ErrChanged, s.pos)
			}
			s.shorter = true
		}
	case part.Offset != s.pos:
		err = fmt.Errorf("source opened offset %d, asked for %d", part.Offset, s.pos)
	}
	if err != nil {
		return errors.Join(err, part.Body.Close())
	}
	if s.size < 0 {
		s.size = part.Size
	}
	if end := part.end(asked, s.size); end != s.end {
		s.ahead.close() // the body goes to the end of the blob
		s.end = end
	}
	s.body = part.Body
	return nil
}
