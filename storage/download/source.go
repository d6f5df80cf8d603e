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

// A Source opens a blob at an upstream, or a span of it. After a break it is called
// again, at the offset reached. If it gives spans, several goroutines call it at once.
// An error that wraps [ErrRefused], from the Source or its Body, says that another try
// is useless; any other error is worth another try.
type Source func(ctx context.Context, s Span) (*Part, error)

// Span is the part of a blob that a [Source] is to open: its bytes from Offset on.
type Span struct {
	Offset int64
	// Length is how many bytes are wanted; 0: all to the end. A Source without spans
	// always opens all to the end.
	Length int64
	// IfLong: the Length applies only if the blob is known to be much longer;
	// otherwise the requests for the rest are not worth it.
	IfLong bool
	// Spare: the span is wanted over one more connection, for a blob that has one.
	// The Source fails at once if it cannot give exactly the span, or has few
	// connections left for other blobs.
	Spare bool
}

// Part is what a [Source] opened: a blob's bytes from Offset to End.
type Part struct {
	Body      io.ReadCloser
	Offset    int64 // as requested, or 0 if the upstream does not support ranges
	End       int64 // 0: Size
	Size      int64 // of the whole blob; -1 if the upstream did not say
	MediaType string
	// Wrong is called if the whole that began with this part proves to be other
	// content, before its readers know; nil: the Source does not use that.
	Wrong func()
}

// end returns where a part of a blob of size bytes ends, if asked was requested.
func (p *Part) end(asked Span, size int64) int64 {
	whole := asked.Length == 0 || p.End == 0 || p.Offset != asked.Offset || p.End > asked.Offset+asked.Length
	if whole {
		return size
	}
	return min(asked.Offset+asked.Length, size) // a part that ends earlier counts as a break
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
