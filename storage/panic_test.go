package storage

import (
	"context"
	"errors"
	"io"
	"os"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/cachalot-registry/cachalot/storage/download"
	"github.com/cachalot-registry/cachalot/task"
	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// panicking is a body that panics after some of its bytes.
type panicking struct {
	io.ReadCloser
	left int
}

func (p *panicking) Read(b []byte) (int, error) {
	if p.left == 0 {
		panic("a bug in what reads")
	}
	n, err := p.ReadCloser.Read(b[:min(len(b), p.left)])
	p.left -= n
	return n, err
}

// TestFill_Panics: a download that panics fails for all who wait for it. It leaves nothing
// behind, and the next one works.
func TestFill_Panics(t *testing.T) {
	t.Parallel()
	for name, broken := range map[string]func(download.Source) download.Source{
		"Source": func(download.Source) download.Source {
			return func(context.Context, download.Span) (*download.Part, error) { panic("a bug in what asks") }
		},
		"body": func(src download.Source) download.Source {
			return func(ctx context.Context, s download.Span) (*download.Part, error) {
				part, err := src(ctx, s)
				if err == nil {
					part.Body = &panicking{part.Body, 200_000}
				}
				return part, err
			}
		},
		"no part": func(download.Source) download.Source {
			return func(context.Context, download.Span) (*download.Part, error) { return nil, nil } //nolint:nilnil // the bug
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := openStore(t, t.TempDir())
			o := &origin{content: upstreamtest.Random(1, 1<<20)}
			got, _, err := fetch(t, s, o.digest(), broken(o.source))
			if _, ok := errors.AsType[*task.PanicError](err); !ok {
				t.Errorf("%d bytes, %v", len(got), err)
			}
			if got, _, err := fetch(t, s, o.digest(), o.source); err != nil || digest.FromBytes(got) != o.digest() {
				t.Errorf("the next one: %d bytes, %v", len(got), err)
			}
			if err := s.Close(); err != nil { // waits until all has ended
				t.Error(err)
			}
			if st := s.Stats(); st.Fills != 0 || st.Partial != 0 || st.Reserved != 0 {
				t.Errorf("left: %+v", st)
			}
			if left, err := os.ReadDir(s.disk.fills()); err != nil || len(left) != 0 {
				t.Errorf("left in fills/: %v, %v", left, err)
			}
		})
	}
}
