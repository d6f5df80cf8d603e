package download

import (
	"bytes"
	"context"
	"errors"
	"io"
)

var (
	// ErrChanged: the upstream announced another length than before.
	ErrChanged = errors.New("upstream changed the blob's length")
	// ErrRefused marks a Source's error as final.
	ErrRefused = errors.New("refused by upstream")
)

// A Source opens a blob at an upstream, or a span of it. It is called again, at
// the offset reached, after a break, and by several goroutines at once where it
// gives spans. An error that wraps [ErrRefused], from the Source or its Body, says
// that asking again is useless; any other is worth another try.
type Source func(ctx context.Context, s Span) (*Part, error)

// Span is what a [Source] is asked for: a blob's bytes from Offset on.
type Span struct {
	Offset int64
	// Length is how many bytes are wanted; 0: all to the end, which a Source
	// without spans opens in any case.
	Length int64
	// IfLong: the Length holds only for a blob known to be much longer, or else
	// the requests for the rest are not worth it.
	IfLong bool
	// Spare: it is wanted over one more connection, for a blob that has one.
	// A Source fails at once that cannot give just the span, or has few
	// connections left for other blobs.
	Spare bool
}

// Part is what a [Source] opened: a blob's bytes from Offset to End.
type Part struct {
	Body      io.ReadCloser
	Offset    int64 // as asked, or 0 where the upstream knows no ranges
	End       int64 // 0: Size
	Size      int64 // of the whole blob; -1 where the upstream did not say
	MediaType string
	// Wrong is called where the whole that began with this part proves to be other
	// content, before its readers know; nil: it is all the same to the Source.
	Wrong func()
}

// end is where a part of a blob of size bytes ends, given what was asked for.
func (p *Part) end(asked Span, size int64) int64 {
	whole := asked.Length == 0 || p.End == 0 || p.Offset != asked.Offset || p.End > asked.Offset+asked.Length
	if whole {
		return size
	}
	return min(asked.Offset+asked.Length, size) // where the part is less, it breaks off
}

// Bytes is a Source for content already in memory.
func Bytes(mediaType string, content []byte) Source {
	return func(_ context.Context, s Span) (*Part, error) {
		size := int64(len(content))
		if s.Offset > size {
			s.Offset = 0
		}
		return &Part{Body: io.NopCloser(bytes.NewReader(content[s.Offset:])), Offset: s.Offset, Size: size, MediaType: mediaType}, nil
	}
}
