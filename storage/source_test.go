package storage

import (
	"context"
	"errors"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
)

// TestPatience: how long a Source is asked again that brings nothing any more.
func TestPatience(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	for name, tc := range map[string]struct {
		first string // bytes before the first break
		want  time.Duration
	}{
		"in the middle":         {"half", patience},
		"before the first byte": {"", firstPatience},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				asked := 0
				src := func(_ context.Context, sp Span) (*Part, error) {
					asked++
					body := io.MultiReader(strings.NewReader(tc.first[min(sp.Offset, int64(len(tc.first))):]), errReader{broken})
					return &Part{Body: io.NopCloser(body), Offset: sp.Offset, Size: 8}, nil
				}
				st, err := openStream(t.Context(), src, 0, nil, func(int64, error) {})
				if err != nil {
					t.Fatal(err)
				}
				started := time.Now()
				got, err := io.ReadAll(st)
				took := time.Since(started)
				if string(got) != tc.first || !errors.Is(err, broken) || took < tc.want || took > tc.want+8*time.Second || asked < 4 {
					t.Errorf("read %q, %v, after %s and %d questions; want %q after %s", got, err, took, asked, tc.first, tc.want)
				}
			})
		})
	}
}

type errReader struct{ err error }

func (r errReader) Read([]byte) (int, error) { return 0, r.err }

// TestBreaksOff: what breaks off each time, a few bytes on or not at all, is asked for
// few times in the patience: a registry pays for each.
func TestBreaksOff(t *testing.T) {
	t.Parallel()
	for name, brings := range map[string]int64{"a byte": 1, "fifty": 50, "the same again": 0} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				const size = 1 << 20
				asked := 0
				src := func(_ context.Context, sp Span) (*Part, error) {
					asked++
					n := brings
					if sp.Offset == 0 {
						n = 50
					}
					return &Part{Body: io.NopCloser(io.MultiReader(strings.NewReader(strings.Repeat("x", int(n))), errReader{io.ErrUnexpectedEOF})), Offset: sp.Offset, Size: size}, nil
				}
				st, err := openStream(t.Context(), src, 0, nil, func(int64, error) {})
				if err != nil {
					t.Fatal(err)
				}
				got, err := io.ReadAll(st)
				if int64(len(got)) != 50+int64(asked-1)*brings || !errors.Is(err, io.ErrUnexpectedEOF) || asked > 12 {
					t.Errorf("read %d bytes, %v, after %d questions", len(got), err, asked)
				}
			})
		})
	}
}

// TestShorterThanBefore: a Source without lengths that twice brings all of it, and less
// than before a break, is not asked until the patience ends.
func TestShorterThanBefore(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		asked := 0
		src := func(context.Context, Span) (*Part, error) {
			asked++
			body := io.Reader(strings.NewReader("longer"))
			if asked == 1 {
				body = io.MultiReader(strings.NewReader("longer by one"), errReader{io.ErrUnexpectedEOF})
			}
			return &Part{Body: io.NopCloser(body), Size: -1}, nil
		}
		st, err := openStream(t.Context(), src, 0, nil, func(int64, error) {})
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(st); !errors.Is(err, ErrChanged) || asked != 3 {
			t.Errorf("read %q, %v, after %d questions", got, err, asked)
		}
	})
}

// TestWrong: the Source is told, once, that it sent other content, though the only reader
// has left; and not where it broke.
func TestWrong(t *testing.T) {
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
			src := func(context.Context, Span) (*Part, error) {
				body := io.Reader(strings.NewReader(tt.content))
				if tt.broken {
					body = io.MultiReader(body, errReader{ErrRefused})
				}
				return &Part{Body: io.NopCloser(body), Size: tt.size, Wrong: func() { told.Add(1) }}, nil
			}
			s := openStore(t, t.TempDir())
			b, err := s.Get(t.Context(), scope(), digest.FromString("right"), src)
			switch {
			case err == nil:
				b.Close()
			case !isWrong(err) && !errors.Is(err, ErrRefused): // it is over before it is read
				t.Fatal(err)
			}
			settle(t, s)
			if n := told.Load(); n != tt.want {
				t.Errorf("told %d times, want %d", n, tt.want)
			}
		})
	}
}

// TestWrongBefore: where the beginning is from an earlier download, who gave the rest is
// not the one who was wrong, and is asked for all of it the next time.
func TestWrongBefore(t *testing.T) {
	t.Parallel()
	s := openStore(t, t.TempDir())
	d := digest.FromString("right")
	get := func(content string, end error) (got string, wrong int32) {
		var told atomic.Int32
		b, err := s.Get(t.Context(), scope(), d, func(_ context.Context, span Span) (*Part, error) {
			body := io.MultiReader(strings.NewReader(content[span.Offset:]), errReader{end})
			return &Part{Body: io.NopCloser(body), Offset: span.Offset, Size: 5, Wrong: func() { told.Add(1) }}, nil
		})
		if err == nil {
			all, _ := io.ReadAll(b.Content)
			got = string(all)
			b.Close()
		}
		settle(t, s)
		return got, told.Load()
	}
	if _, wrong := get("wr", ErrRefused); wrong != 0 {
		t.Errorf("told %d times of what broke", wrong)
	}
	if got, wrong := get("right", io.EOF); got == "wrght" || wrong != 0 {
		t.Errorf("%q, told %d times", got, wrong)
	}
	if got, wrong := get("right", io.EOF); got != "right" || wrong != 0 {
		t.Errorf("%q, told %d times", got, wrong)
	}
}
