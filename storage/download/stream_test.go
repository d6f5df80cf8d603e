package download

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestPatience: how long a Source that sends nothing more is asked again.
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
				st, err := Open(t.Context(), src, 0, nil, func(int64, error) {})
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

// TestBreaksOff: a Source that breaks off each time, after a few bytes or none, is asked only a
// few times within the patience. Each request costs the registry.
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
				st, err := Open(t.Context(), src, 0, nil, func(int64, error) {})
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

// TestStream_ShorterAfterBreak: a Source without lengths breaks off, then twice sends a complete but
// shorter body. Then it is abandoned.
func TestStream_ShorterAfterBreak(t *testing.T) {
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
		st, err := Open(t.Context(), src, 0, nil, func(int64, error) {})
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(st); !errors.Is(err, ErrChanged) || asked != 3 {
			t.Errorf("read %q, %v, after %d questions", got, err, asked)
		}
	})
}

// TestStream_Wrong: the Source is told once of a wrong length by the stream, or of wrong
// content by the reader, unless the reader excuses it.
func TestStream_Wrong(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		size int64 // announced; the content has 5 bytes
		call func(*Stream)
		want int
	}{
		"right":         {size: 5, call: func(*Stream) {}},
		"said twice":    {size: 5, call: func(s *Stream) { s.Wrong(); s.Wrong() }, want: 1},
		"excused":       {size: 5, call: func(s *Stream) { s.Excuse(); s.Wrong() }},
		"longer":        {size: 4, call: func(*Stream) {}, want: 1},
		"longer, again": {size: 4, call: func(s *Stream) { s.Wrong() }, want: 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			told := 0
			src := func(context.Context, Span) (*Part, error) {
				return &Part{Body: io.NopCloser(strings.NewReader("bytes")), Size: tc.size, MediaType: "a/b", Wrong: func() { told++ }}, nil
			}
			st, err := Open(t.Context(), src, 0, nil, func(int64, error) {})
			if err != nil {
				t.Fatal(err)
			}
			defer st.Close()
			got, err := io.ReadAll(st)
			if changed := tc.size < 5; errors.Is(err, ErrChanged) != changed || !changed && (err != nil || st.Pos() != 5) {
				t.Errorf("read %q, %v", got, err)
			}
			if tc.call(st); told != tc.want {
				t.Errorf("told %d times, want %d", told, tc.want)
			}
			if st.Size() != tc.size || st.MediaType() != "a/b" || st.Connections() != 1 {
				t.Errorf("size %d, media type %q, %d connections", st.Size(), st.MediaType(), st.Connections())
			}
		})
	}
}
