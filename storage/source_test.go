package storage

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"
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
