package storage

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/cachalot-registry/cachalot/storage/download"
	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// evil is the scope of a repository at a hostile registry.
func evil(repository string) Scope { return Scope{Upstream: "evil.example", Repository: repository} }

// liar is an origin of wrong content with the right length.
func liar(o *origin) *origin {
	return &origin{content: bytes.Repeat([]byte{'x'}, len(o.content)), hold: o.hold, cuts: o.cuts}
}

// TestOrigins_Settling: a blob whose link is not recorded yet has an origin.
func TestOrigins_Settling(t *testing.T) {
	t.Parallel()
	s := openStore(t, t.TempDir())
	o := &origin{content: upstreamtest.Random(303, 1000)}
	s.ledger.mu.Lock() // so that nothing is recorded
	b := open(t, s, scope(), o.digest(), o.source)
	defer b.Close()
	if err := b.Wait(t.Context()); err != nil {
		t.Error(err)
	}
	for !s.exists(o.digest()) {
		runtime.Gosched()
	}
	if _, err := s.Get(t.Context(), evil("a"), o.digest(), nil); !errors.Is(err, ErrUnlinked) {
		t.Errorf("another upstream's place: %v", err)
	}
	origins := func() (names []string) {
		if err := s.Origins(o.digest(), func(name string) bool { names = append(names, name); return true }); err != nil {
			t.Error(err)
		}
		return names
	}
	if got := origins(); !slices.Equal(got, []string{scope().Upstream}) {
		t.Errorf("while it is recorded its origins are %q", got)
	}
	s.ledger.mu.Unlock()
	settle(t, s)
	if got := origins(); !slices.Equal(got, []string{scope().Upstream}) {
		t.Errorf("its origins are %q", got)
	}
}

// TestOrigins: what one registry sends, says or leaves in fills/ does not affect another
// registry.
func TestOrigins(t *testing.T) {
	t.Parallel()
	const size = 1 << 20
	for name, tc := range map[string]struct {
		begin func(t *testing.T, s *Store, d digest.Digest, lies *origin) (end func()) // what the hostile registry does first
	}{
		"trickles": {func(t *testing.T, s *Store, d digest.Digest, lies *origin) func() {
			t.Helper()
			lies.hold = make(chan struct{})
			open(t, s, evil("a"), d, lies.source).Close()
			return func() { close(lies.hold) }
		}},
		"leaves a poisoned partial": {func(t *testing.T, s *Store, d digest.Digest, lies *origin) func() {
			t.Helper()
			lies.cuts = []int64{size / 2}
			lies.refuse = func(n int) error {
				if n > 0 {
					return download.ErrRefused
				}
				return nil
			}
			open(t, s, evil("a"), d, lies.source).Close()
			settle(t, s)
			if s.space.filling() != size/2 {
				t.Errorf("%d bytes left, want a partial of half", s.space.filling())
			}
			return func() { // as when it is too old
				for _, p := range s.idlePartialsOf(d) {
					s.removePartial(p)
				}
			}
		}},
		"refuses in the end": {func(t *testing.T, s *Store, d digest.Digest, lies *origin) func() {
			t.Helper()
			lies.gate = make(chan struct{})
			lies.refuse = func(int) error { return download.ErrRefused }
			got := make(chan error)
			go func() {
				_, err := s.Get(t.Context(), evil("a"), d, lies.source)
				got <- err
			}()
			synctest.Wait()
			return func() {
				lies.gate <- struct{}{}
				if err := <-got; !errors.Is(err, download.ErrRefused) {
					t.Errorf("evil's own client: %v", err)
				}
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := openStore(t, t.TempDir())
				o := &origin{content: upstreamtest.Random(300, size)}
				lies := liar(o)
				end := tc.begin(t, s, o.digest(), lies)
				mustFetch(t, s, o, Miss)
				if !slices.Equal(o.offsets, []int64{0}) {
					t.Errorf("asked for %v, want all of it once", o.offsets)
				}
				end()
				settle(t, s)
				mustFetch(t, s, o, Hit)
				if _, err := s.Get(t.Context(), evil("a"), o.digest(), lies.source); !errors.Is(err, ErrUnlinked) {
					t.Errorf("evil reads what it never sent: %v", err)
				}
				checkDisk(t, s)
				if s.space.filling() != 0 {
					t.Errorf("%d bytes in fills/", s.space.filling())
				}
			})
		})
	}
}

// TestOrigins_TwoFillsOfOneBlob: two registries send the same blob at the same time. It is stored and
// counted once.
func TestOrigins_TwoFillsOfOneBlob(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := openStore(t, t.TempDir())
		hub := &origin{content: upstreamtest.Random(301, 1<<20), hold: make(chan struct{})}
		quay := &origin{content: hub.content, hold: make(chan struct{})}
		other := Scope{Upstream: "quay.io", Repository: "b", Keep: Retention{For: time.Hour}}
		a := open(t, s, scope(), hub.digest(), hub.source)
		b := open(t, s, other, hub.digest(), quay.source)
		if fills := s.Fills(); len(fills) != 2 || a.Outcome != Miss || b.Outcome != Miss {
			t.Errorf("%+v, outcomes %d and %d", fills, a.Outcome, b.Outcome)
		}
		close(quay.hold)
		if got, err := io.ReadAll(b.Content); err != nil || !bytes.Equal(got, hub.content) {
			t.Errorf("%d bytes, %v", len(got), err)
		}
		synctest.Wait()
		if !s.exists(hub.digest()) {
			t.Error("not kept while the other comes")
		}
		close(hub.hold)
		if got, err := io.ReadAll(a.Content); err != nil || !bytes.Equal(got, hub.content) {
			t.Errorf("%d bytes, %v", len(got), err)
		}
		checkDisk(t, s)
		for _, sc := range []Scope{scope(), other} {
			open(t, s, sc, hub.digest(), nil).Close()
		}
		s.access.flush()
		if r, _, err := s.index.Record(hub.digest()); err != nil || r.Until != 0 {
			t.Errorf("%+v, %v: want it kept as the more generous one says", r, err)
		}
	})
}

// TestOrigins_Admitted: during its own download, a registry admits another repository to the
// blob. If the download fails, that repository gets no link.
func TestOrigins_Admitted(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := openStore(t, t.TempDir())
		o := &origin{content: upstreamtest.Random(302, 1<<20)}
		d := o.digest()
		lies := liar(o)
		lies.hold = make(chan struct{})
		open(t, s, evil("a"), d, lies.source).Close()
		if _, err := s.Get(t.Context(), evil("b"), d, lies.source); !errors.Is(err, ErrUnlinked) || !s.Admit(evil("b"), d, "text/html") {
			t.Errorf("%v", err)
		}
		for i := range maxAdmitted {
			if admitted := s.Admit(evil(fmt.Sprint("more", i)), d, ""); admitted != (i < maxAdmitted-1) {
				t.Fatalf("place %d: admitted %v", i, admitted)
			}
		}
		b := open(t, s, evil("b"), d, lies.source)
		if b.MediaType != "text/html" || b.Outcome != Collapsed {
			t.Errorf("media type %q, outcome %d; want what was said of the place itself", b.MediaType, b.Outcome)
		}
		mustFetch(t, s, o, Miss)
		close(lies.hold)
		if _, err := io.ReadAll(b.Content); !errors.Is(err, ErrDigest) {
			t.Errorf("evil's reader: %v", err)
		}
		settle(t, s)
		for _, repository := range []string{"a", "b"} {
			if _, err := s.Get(t.Context(), evil(repository), d, nil); !errors.Is(err, ErrUnlinked) {
				t.Errorf("%s: %v", repository, err)
			}
		}
		if s.Admit(evil("b"), d, "") {
			t.Error("admitted to a download that has ended")
		}
		if b := open(t, s, scope(), d, nil); b.MediaType != "application/x-test" {
			t.Errorf("media type %q", b.MediaType)
		}
		checkDisk(t, s)
	})
}

// TestOrigins_Removed: an endless download from one registry does not block the purge, eviction
// or repair of the blob from another registry.
func TestOrigins_Removed(t *testing.T) {
	t.Parallel()
	for name, remove := range map[string]func(*testing.T, *Store, digest.Digest){
		"purged": func(t *testing.T, s *Store, d digest.Digest) {
			t.Helper()
			if became, _, err := s.Purge(d, Purge{}); became != Gone || err != nil {
				t.Errorf("%v, %v", became, err)
			}
			if became, _, err := s.Purge(d, Purge{}); became != Busy || err != nil {
				t.Errorf("what is downloaded alone: %v, %v", became, err)
			}
			if became, _, err := s.Purge(d, Purge{Upstream: scope().Upstream}); became != Absent || err != nil {
				t.Errorf("of a registry that has no part in it: %v, %v", became, err)
			}
		},
		"evicted": func(t *testing.T, s *Store, d digest.Digest) {
			t.Helper()
			s.access.flush()
			r, _, err := s.index.Record(d)
			if !s.evict(victim{d, r}) || err != nil {
				t.Errorf("not evicted; %v", err)
			}
		},
		"damaged": func(t *testing.T, s *Store, d digest.Digest) {
			t.Helper()
			overwrite(t, s, d, cut(10))
			if _, err := s.Get(t.Context(), scope(), d, nil); !errors.Is(err, ErrNotFound) {
				t.Errorf("error %v, want ErrNotFound", err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := openStore(t, t.TempDir())
				o := &origin{content: upstreamtest.Random(303, 1<<20)}
				slow := &origin{content: o.content, hold: make(chan struct{})}
				b := open(t, s, Scope{Upstream: "slow.example", Repository: "a"}, o.digest(), slow.source)
				mustFetch(t, s, o, Miss)
				synctest.Wait()
				remove(t, s, o.digest())
				if s.exists(o.digest()) {
					t.Error("still here")
				}
				close(slow.hold)
				if got, err := io.ReadAll(b.Content); err != nil || !bytes.Equal(got, o.content) {
					t.Errorf("the slow one: %d bytes, %v", len(got), err)
				}
				settle(t, s)
				if _, err := s.Get(t.Context(), scope(), o.digest(), nil); !s.exists(o.digest()) || !errors.Is(err, ErrUnlinked) {
					t.Errorf("%v; want the slow one's, and for itself", err)
				}
				checkDisk(t, s)
			})
		})
	}
}
