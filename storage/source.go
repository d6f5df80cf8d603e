package storage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/cenkalti/backoff/v5"
)

// A Source opens a blob at an upstream from a byte offset. It is called again,
// at the offset reached, after a break. An error that wraps [ErrRefused], from
// the Source or its Body, says that asking again is useless; any other is worth
// another try.
type Source func(ctx context.Context, offset int64) (*Part, error)

// Part is what a [Source] opened: a blob's bytes from Offset to its end.
type Part struct {
	Body      io.ReadCloser
	Offset    int64 // as asked, or 0 where the upstream knows no ranges
	Size      int64 // of the whole blob; -1 where the upstream did not say
	MediaType string
}

// Bytes is a Source for content already in memory.
func Bytes(mediaType string, content []byte) Source {
	return func(_ context.Context, offset int64) (*Part, error) {
		size := int64(len(content))
		if offset > size {
			offset = 0
		}
		return &Part{Body: io.NopCloser(bytes.NewReader(content[offset:])), Offset: offset, Size: size, MediaType: mediaType}, nil
	}
}

const (
	// patience is how long a broken stream asks its Source again before it gives
	// up. Clients see a pause meanwhile, and those that can go elsewhere do so
	// only afterwards.
	patience = 15 * time.Second
	// firstPatience is the same until there is a first byte, when nobody loses
	// what was fetched: a download that was given up is begun again by a client.
	firstPatience = 3 * time.Second
	// progress is what a part must bring for the patience to start anew; a
	// Source that breaks after every few bytes must not keep a fill for ever.
	progress = 64 << 10
)

// stream reads a blob from its Source to the end, across breaks. What it
// skips when an upstream answers a range with the whole blob is not compared:
// the digest of all that was handed out decides at the end.
type stream struct {
	ctx     context.Context
	src     Source
	resumed func(offset int64, cause error) // told of every resume

	body      io.ReadCloser
	from      int64 // where it began
	pos, size int64 // size is -1 while unknown
	mediaType string

	breaks  *backoff.ExponentialBackOff
	since   time.Time // of the first break without progress; zero: none
	sinceAt int64     // pos then
}

// openStream asks src once, from offset at. The stream may begin at 0 instead:
// see pos.
func openStream(ctx context.Context, src Source, at int64, resumed func(int64, error)) (*stream, error) {
	part, err := src(ctx, at)
	if err != nil {
		return nil, err
	}
	if part.Offset != at && part.Offset != 0 {
		return nil, errors.Join(fmt.Errorf("source opened offset %d, asked for %d", part.Offset, at), part.Body.Close())
	}
	return &stream{
		ctx: ctx, src: src, resumed: resumed,
		body: part.Body, from: part.Offset, pos: part.Offset, size: part.Size, mediaType: part.MediaType,
		breaks: backoff.NewExponentialBackOff(),
	}, nil
}

// Read gives the next bytes. io.EOF means that the blob is complete as far as
// its length tells.
func (s *stream) Read(p []byte) (int, error) {
	for s.size < 0 || s.pos < s.size {
		n, err := s.body.Read(p)
		if s.size >= 0 && s.pos+int64(n) > s.size {
			return 0, fmt.Errorf("%w: more than the %d bytes announced", ErrChanged, s.size)
		}
		s.pos += int64(n)
		switch {
		case n > 0:
			return n, nil
		case err == nil:
			continue
		case errors.Is(err, ErrRefused):
			return 0, err
		case errors.Is(err, io.EOF) && s.size < 0:
			s.size = s.pos
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

// Close ends the part being read.
func (s *stream) Close() error { return s.body.Close() }

// resume opens the rest of the blob after a break.
func (s *stream) resume(cause error) error {
	_ = s.body.Close()     // it broke already
	var wait time.Duration // none after a first break
	if s.since.IsZero() || s.pos-s.sinceAt >= progress {
		s.since, s.sinceAt = time.Now(), s.pos
		s.breaks.InitialInterval = 50 * time.Millisecond
		s.breaks.MaxInterval = 5 * time.Second
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
		body, err := s.reopen()
		if err == nil {
			s.body = body
			return nil
		}
		if errors.Is(err, ErrRefused) || errors.Is(err, ErrChanged) {
			return err
		}
		cause = err
	}
	return fmt.Errorf("no progress at byte %d for %s: %w", s.pos, limit, cause)
}

// reopen asks the Source for what is left and stands at pos when it returns.
func (s *stream) reopen() (io.ReadCloser, error) {
	part, err := s.src(s.ctx, s.pos)
	if err != nil {
		return nil, err
	}
	switch {
	case part.Size >= 0 && s.size >= 0 && part.Size != s.size:
		err = fmt.Errorf("%w: %d bytes, %d before", ErrChanged, part.Size, s.size)
	case part.Offset == 0:
		_, err = io.CopyN(io.Discard, part.Body, s.pos)
	case part.Offset != s.pos:
		err = fmt.Errorf("source opened offset %d, asked for %d", part.Offset, s.pos)
	}
	if err != nil {
		return nil, errors.Join(err, part.Body.Close())
	}
	if s.size < 0 {
		s.size = part.Size
	}
	return part.Body, nil
}
