package storage

import (
	"context"
	"errors"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"testing/iotest"

	"github.com/opencontainers/go-digest"

	"github.com/cachalot-registry/cachalot/storage/download"
)

// TestFill_ReportsWrongContent: the Source is told once that it sent wrong content, even if the only reader has
// left. A broken download does not count.
func TestFill_ReportsWrongContent(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		content string
		size    int64
		broken  bool
		want    int32
	}{
		"other bytes": {content: "other", size: 5, want: 1},
		"more bytes":  {content: "rightly", size: 5, want: 1},
		"right":       {content: "right", size: 5},
		"broken":      {content: "oth", size: 5, broken: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var told atomic.Int32
			src := func(context.Context, download.Span) (*download.Part, error) {
				body := io.Reader(strings.NewReader(tt.content))
				if tt.broken {
					body = io.MultiReader(body, iotest.ErrReader(download.ErrRefused))
				}
				return &download.Part{Body: io.NopCloser(body), Size: tt.size, Wrong: func() { told.Add(1) }}, nil
			}
			s := openStore(t, t.TempDir())
			b, err := s.Get(t.Context(), scope(), digest.FromString("right"), src)
			switch {
			case err == nil:
				b.Close()
			case !isWrong(err) && !errors.Is(err, download.ErrRefused): // the fill ended before Get returned
				t.Fatal(err)
			}
			settle(t, s)
			if n := told.Load(); n != tt.want {
				t.Errorf("told %d times, want %d", n, tt.want)
			}
		})
	}
}

// TestWrongBefore: if the start of wrong content is from an earlier download, the Source of the
// rest is not blamed. The next download starts at 0.
func TestWrongBefore(t *testing.T) {
	t.Parallel()
	s := openStore(t, t.TempDir())
	d := digest.FromString("right")
	get := func(content string, end error) (got string, wrong int32) {
		var told atomic.Int32
		b, err := s.Get(t.Context(), scope(), d, func(_ context.Context, span download.Span) (*download.Part, error) {
			body := io.MultiReader(strings.NewReader(content[span.Offset:]), iotest.ErrReader(end))
			return &download.Part{Body: io.NopCloser(body), Offset: span.Offset, Size: 5, Wrong: func() { told.Add(1) }}, nil
		})
		if err == nil {
			all, _ := io.ReadAll(b.Content)
			got = string(all)
			b.Close()
		}
		settle(t, s)
		return got, told.Load()
	}
	if _, wrong := get("wr", download.ErrRefused); wrong != 0 {
		t.Errorf("told %d times of what broke", wrong)
	}
	if got, wrong := get("right", io.EOF); got == "wrght" || wrong != 0 {
		t.Errorf("%q, told %d times", got, wrong)
	}
	if got, wrong := get("right", io.EOF); got != "right" || wrong != 0 {
		t.Errorf("%q, told %d times", got, wrong)
	}
}
