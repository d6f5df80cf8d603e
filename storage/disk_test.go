package storage

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"golang.org/x/sys/unix"

	"github.com/cachalot-registry/cachalot/storage/index"
	"github.com/cachalot-registry/cachalot/test/smalldisk"
	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// TestResumeAfterRestart closes the store in the middle of a fill. After the restart, only the
// missing bytes are downloaded.
func TestResumeAfterRestart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	o := &origin{content: upstreamtest.Random(20, 1<<20), hold: make(chan struct{})}
	s := openStore(t, dir)
	b, err := s.Get(t.Context(), scope(), o.digest(), o.source)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(io.Discard, b.Content, 1<<19); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(b.Content); !errors.Is(err, ErrClosed) {
		t.Errorf("reader of a closed store: %v, want ErrClosed", err)
	}
	b.Close()
	close(o.hold)

	s = openStore(t, dir)
	if got := s.space.filling(); got != 1<<19 {
		t.Errorf("%d bytes in fills/ after restart", got)
	}
	mustFetch(t, s, o, Miss)
	settle(t, s)
	if o.sent.Load() != 1<<20 {
		t.Errorf("%d bytes from upstream in all, want each once", o.sent.Load())
	}
	if s.space.filling() != 0 || s.space.promised() != 0 {
		t.Errorf("%d filling, %d reserved at rest", s.space.filling(), s.space.promised())
	}
	checkDisk(t, s)
}

// TestDamagedPartial: a partial that a power cut damaged costs one failed pull, no more.
func TestDamagedPartial(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	o := &origin{content: upstreamtest.Random(21, 1<<20)}
	if err := openStore(t, dir).Close(); err != nil {
		t.Fatal(err)
	}
	partial := disk{root: dir}.partial(partialOf(o.digest(), scope().Upstream))
	if err := os.WriteFile(partial, make([]byte, 1000), 0o600); err != nil {
		t.Fatal(err)
	}
	s := openStore(t, dir)
	if got, _, err := fetch(t, s, o.digest(), o.source); !errors.Is(err, ErrDigest) || len(got) == len(o.content) {
		t.Fatalf("%d bytes, error %v, want ErrDigest before the end", len(got), err)
	}
	settle(t, s)
	mustFetch(t, s, o, Miss)
	settle(t, s)

	// A partial that is longer than the blob costs no pull: the download starts at 0.
	o2 := &origin{content: upstreamtest.Random(22, 1000)}
	if err := os.WriteFile(disk{root: dir}.partial(partialOf(o2.digest(), scope().Upstream)), make([]byte, 2000), 0o600); err != nil {
		t.Fatal(err)
	}
	s.space.grow(blocks(2000))
	mustFetch(t, s, o2, Miss)
	settle(t, s)
	if s.space.filling() != 0 {
		t.Errorf("%d bytes counted in fills/ at rest", s.space.filling())
	}
	checkDisk(t, s)
}

// TestWholePartial: a download that was complete when the process died is not repeated. The
// blob has no link until the upstream confirms it.
func TestWholePartial(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	o := &origin{content: upstreamtest.Random(23, 1000)}
	if err := openStore(t, dir).Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(disk{root: dir}.partial(partialOf(o.digest(), scope().Upstream)), o.content, 0o600); err != nil {
		t.Fatal(err)
	}
	s := openStore(t, dir)
	if _, _, err := fetch(t, s, o.digest(), o.source); !errors.Is(err, ErrUnlinked) {
		t.Fatalf("error %v, want ErrUnlinked", err)
	}
	if err := s.PutLink(scope(), o.digest(), ""); err != nil {
		t.Fatal(err)
	}
	mustFetch(t, s, o, Hit)
	if o.opens.Load() != 0 {
		t.Errorf("%d opens", o.opens.Load())
	}
	checkDisk(t, s)
}

// TestIndexLost checks invariant I8 for an index that is gone, damaged, or of another format.
func TestIndexLost(t *testing.T) {
	t.Parallel()
	for name, damage := range map[string]func(t *testing.T, dir string){
		"removed": func(t *testing.T, dir string) {
			t.Helper()
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
		},
		"garbage": func(t *testing.T, dir string) {
			t.Helper()
			files, err := filepath.Glob(filepath.Join(dir, "*"))
			if err != nil || len(files) == 0 {
				t.Fatal(files, err)
			}
			for _, f := range files {
				if err := os.WriteFile(f, upstreamtest.Random(1, 4096), 0o600); err != nil {
					t.Fatal(err)
				}
			}
		},
		"of before formats": func(t *testing.T, dir string) {
			t.Helper()
			setFormat(t, dir, 0)
		},
		"of another format": func(t *testing.T, dir string) {
			t.Helper()
			setFormat(t, dir, 1000)
		},
		"a file": func(t *testing.T, dir string) {
			t.Helper()
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(dir, []byte("x"), 0o600); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			o := &origin{content: upstreamtest.Random(24, 100_000)}
			s := openStore(t, dir)
			mustFetch(t, s, o, Miss)
			settle(t, s)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			damage(t, filepath.Join(dir, "index"))
			s = openStore(t, dir)
			if _, _, err := fetch(t, s, o.digest(), o.source); !errors.Is(err, ErrUnlinked) {
				t.Fatalf("error %v, want ErrUnlinked", err)
			}
			if err := s.PutLink(scope(), o.digest(), ""); err != nil {
				t.Fatal(err)
			}
			mustFetch(t, s, o, Hit)
			s.reconcile()
			checkDisk(t, s)
			if o.opens.Load() != 1 {
				t.Errorf("%d downloads", o.opens.Load())
			}
			if b, l := countRecords(t, s), countLinks(t, s); b != 1 || l != 1 {
				t.Errorf("%d records and %d links of one blob", b, l)
			}
		})
	}
}

// setFormat sets the format number of an index. It is in badger's MANIFEST, after a magic word.
func setFormat(t *testing.T, dir string, format uint16) {
	t.Helper()
	name := filepath.Join(dir, "MANIFEST")
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if string(b[:4]) != "Bdgr" || binary.BigEndian.Uint16(b[4:]) == format {
		t.Fatalf("no manifest of another format: %q", b[:6])
	}
	binary.BigEndian.PutUint16(b[4:], format)
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestReconcile_FilesDeleted: records of files that another program deleted are dropped.
func TestReconcile_FilesDeleted(t *testing.T) {
	t.Parallel()
	s := openStore(t, t.TempDir())
	o := &origin{content: upstreamtest.Random(25, 1000)}
	mustFetch(t, s, o, Miss)
	settle(t, s)
	if err := os.Remove(s.disk.blob(o.digest())); err != nil {
		t.Fatal(err)
	}
	s.reconcile()
	checkDisk(t, s)
	mustFetch(t, s, o, Miss)
	settle(t, s)
	checkDisk(t, s)
}

func TestSecondProcess(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	openStore(t, dir)
	if _, err := Open(Config{Path: dir, MaxFills: 1}, NewMetrics(), slog.New(slog.DiscardHandler)); !errors.Is(err, ErrLocked) {
		t.Errorf("error %v, want ErrLocked", err)
	}
}

func TestEviction(t *testing.T) {
	t.Parallel()
	const mib = 1 << 20
	for name, tc := range map[string]struct {
		setup func(t *testing.T, s *Store) (kept, gone []digest.Digest)
	}{
		"least recently used first": {setup: func(t *testing.T, s *Store) (kept, gone []digest.Digest) {
			t.Helper()
			a, b, c := put(t, s, 1, 3*mib, 300, false), put(t, s, 2, 3*mib, 100, false), put(t, s, 3, 3*mib, 200, false)
			return []digest.Digest{a, c}, []digest.Digest{b}
		}},
		"a hit renews": {setup: func(t *testing.T, s *Store) (kept, gone []digest.Digest) {
			t.Helper()
			a, b, c := put(t, s, 1, 3*mib, 1, false), put(t, s, 2, 3*mib, 2, false), put(t, s, 3, 3*mib, 3, false)
			blob, err := s.Get(t.Context(), Scope{Upstream: "u", Repository: "r"}, a, nil)
			if err != nil {
				t.Fatal(err)
			}
			blob.Close()
			return []digest.Digest{a, c}, []digest.Digest{b}
		}},
		"not what is being read": {setup: func(t *testing.T, s *Store) (kept, gone []digest.Digest) {
			t.Helper()
			a, b, c := put(t, s, 1, 3*mib, 1, false), put(t, s, 2, 3*mib, 2, false), put(t, s, 3, 3*mib, 3, false)
			blob, err := s.Get(t.Context(), Scope{Upstream: "u", Repository: "r"}, a, nil)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(blob.Close)
			setRecord(t, s, a, func(r *index.Record) { r.Accessed = 1 })
			return []digest.Digest{a, c}, []digest.Digest{b}
		}},
		"manifests and small blobs last": {setup: func(t *testing.T, s *Store) (kept, gone []digest.Digest) {
			t.Helper()
			a, b := put(t, s, 1, mib, 1, true), put(t, s, 2, smallBlob-1, 1, false)
			c, d := put(t, s, 3, 4*mib, 100, false), put(t, s, 4, 4*mib, 200, false)
			return []digest.Digest{a, b, d}, []digest.Digest{c}
		}},
		"what was used once before what was used again": {setup: func(t *testing.T, s *Store) (kept, gone []digest.Digest) {
			t.Helper()
			a, b, c := put(t, s, 1, 3*mib, 100, false), put(t, s, 2, 3*mib, 200, false), put(t, s, 3, 3*mib, 300, false)
			setRecord(t, s, a, func(r *index.Record) { r.Again = true })
			return []digest.Digest{a, c}, []digest.Digest{b}
		}},
		"what was used once stays while it is little": {setup: func(t *testing.T, s *Store) (kept, gone []digest.Digest) {
			t.Helper()
			a, b, c := put(t, s, 1, 4*mib, 100, false), put(t, s, 2, 3*mib, 300, false), put(t, s, 3, 2*mib, 200, false)
			for _, d := range []digest.Digest{a, b} {
				setRecord(t, s, d, func(r *index.Record) { r.Again = true })
			}
			return []digest.Digest{b, c}, []digest.Digest{a}
		}},
		"what nothing points to, then what has a limit": {setup: func(t *testing.T, s *Store) (kept, gone []digest.Digest) {
			t.Helper()
			a, b := put(t, s, 1, mib, 300, true), put(t, s, 2, mib, 300, false)
			c, d := put(t, s, 3, 3*mib, 100, false), put(t, s, 4, 4*mib, 50, false)
			setRecord(t, s, b, func(r *index.Record) { r.Until = 5000 })
			if err := s.MarkOrphaned([]digest.Digest{a}); err != nil {
				t.Fatal(err)
			}
			return []digest.Digest{c, d}, []digest.Digest{a, b}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := openStore(t, t.TempDir(), func(c *Config) { c.MaxSize = Size{Bytes: 10 * mib} })
			kept, gone := tc.setup(t, s)
			kept = append(kept, put(t, s, 99, 2*mib, 1000, false))
			for _, d := range kept {
				if !s.exists(d) {
					t.Errorf("%s is gone", d)
				}
			}
			for _, d := range gone {
				if s.exists(d) {
					t.Errorf("%s is still here", d)
				}
				if _, ok := s.link(Scope{Upstream: "u", Repository: "r"}, d); ok {
					t.Errorf("link of %s is still here", d)
				}
			}
			checkDisk(t, s)
			if got := testutil.ToFloat64(s.metrics.evictedBytes.WithLabelValues(reasonSpace)); got == 0 {
				t.Error("evicted_bytes_total is 0")
			}
		})
	}
}

// TestFill_LargerThanDisk: a blob that can never fit is passed through to each client. It
// evicts nothing, and is still verified.
func TestFill_LargerThanDisk(t *testing.T) {
	t.Parallel()
	s := openStore(t, t.TempDir(), func(c *Config) { c.MaxSize = Size{Bytes: 1 << 20} })
	d := put(t, s, 1, 1<<19, 1, false)
	for _, o := range []*origin{
		{content: upstreamtest.Random(2, 2<<20)},
		{content: upstreamtest.Random(3, 2<<20), cuts: []int64{0, 77, 1 << 20}},
		{content: upstreamtest.Random(5, 2<<20), noRange: true},
	} {
		mustFetch(t, s, o, Miss)
	}
	truth := &origin{content: upstreamtest.Random(6, 2<<20)}
	lie := &origin{content: upstreamtest.Random(7, 2<<20)}
	if got, _, err := fetch(t, s, truth.digest(), lie.source); !errors.Is(err, ErrDigest) || len(got) >= 2<<20 {
		t.Errorf("%d wrong bytes, error %v", len(got), err)
	}
	blob, err := s.Get(t.Context(), scope(), truth.digest(), truth.source)
	if err != nil {
		t.Fatal(err)
	}
	defer blob.Close()
	blob.Hold(1999)
	if _, err := blob.Content.Seek(1000, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 1000)
	if _, err := io.ReadFull(blob.Content, got); err != nil || !bytes.Equal(got, truth.content[1000:2000]) {
		t.Errorf("range of a blob not kept: %v", err)
	}
	if err := blob.Wait(t.Context()); !errors.Is(err, ErrNotStored) {
		t.Errorf("wait: %v, want ErrNotStored", err)
	}
	if !s.exists(d) {
		t.Error("another blob was evicted in vain")
	}
	mustFetch(t, s, &origin{content: upstreamtest.Random(4, 2<<20), noSize: true}, Miss) // its size is known too late to evict nothing
	if s.space.promised() != 0 || s.space.filling() != 0 {
		t.Errorf("%d reserved, %d filling at rest", s.space.promised(), s.space.filling())
	}
	checkDisk(t, s)
}

// TestDiskFull fills a small file system in the middle of a fill with many readers. Each reader
// gets the whole blob.
func TestDiskFull(t *testing.T) {
	t.Parallel()
	dir := smalldisk.New(t, 128)
	s := openStore(t, dir)
	o := &origin{content: upstreamtest.Random(30, 16<<20), hold: make(chan struct{})}
	var wg sync.WaitGroup
	for range 5 {
		b, err := s.Get(t.Context(), scope(), o.digest(), o.source)
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			defer b.Close()
			got, err := io.ReadAll(b.Content)
			if err != nil || !bytes.Equal(got, o.content) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
		})
	}
	if _, err := s.gate.runningOf(o.digest())[0].await(t.Context(), func(st state) bool { return st.written == 8<<20 }); err != nil {
		t.Fatal(err)
	}
	// Another program's file leaves a little space, which ends within a chunk.
	free, _, err := s.disk.space()
	if err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(dir, "other")
	if err := os.WriteFile(other, make([]byte, free-(1<<20)-chunk/2), 0o600); err != nil {
		t.Fatal(err)
	}
	close(o.hold)
	wg.Wait()
	if got := testutil.ToFloat64(s.metrics.passedThrough); got != 1 {
		t.Errorf("%v fills passingThrough, want 1", got)
	}
	if err := os.Remove(other); err != nil {
		t.Fatal(err)
	}
	settle(t, s)
	mustFetch(t, s, o, Miss)
	settle(t, s)
	checkDisk(t, s)
}

func TestOldPartials(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	k := disk{root: dir}
	if err := openStore(t, dir).Close(); err != nil {
		t.Fatal(err)
	}
	old, young := digest.FromString("old"), digest.FromString("young")
	for d, age := range map[digest.Digest]time.Duration{old: partialAge + time.Hour, young: time.Hour} {
		if err := os.WriteFile(k.partial(partialOf(d, scope().Upstream)), make([]byte, 10), 0o600); err != nil {
			t.Fatal(err)
		}
		at := time.Now().Add(-age)
		if err := os.Chtimes(k.partial(partialOf(d, scope().Upstream)), at, at); err != nil {
			t.Fatal(err)
		}
	}
	s := openStore(t, dir)
	s.dropPartials(partialAge)
	if _, err := os.Stat(k.partial(partialOf(old, scope().Upstream))); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("old partial: %v", err)
	}
	if _, err := os.Stat(k.partial(partialOf(young, scope().Upstream))); err != nil || s.space.filling() != block {
		t.Errorf("young partial: %v; %d bytes counted", err, s.space.filling())
	}
}

// TestEvictionUnderLoad fetches far more than fits, from many goroutines. The total stays right
// and no read fails.
func TestEvictionUnderLoad(t *testing.T) {
	t.Parallel()
	s := openStore(t, t.TempDir(), func(c *Config) { c.MaxSize = Size{Bytes: 4 << 20} })
	origins := make([]*origin, 40)
	for i := range origins {
		origins[i] = &origin{content: upstreamtest.Random(uint64(100+i), 200<<10)}
	}
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 60 {
				o := origins[(g*7+i*13)%len(origins)]
				b, err := s.Get(context.WithoutCancel(t.Context()), scope(), o.digest(), o.source)
				if err != nil {
					t.Error(err)
					return
				}
				got, err := io.ReadAll(b.Content)
				b.Close()
				if err != nil || !bytes.Equal(got, o.content) {
					t.Errorf("%d bytes, %v", len(got), err)
				}
			}
		})
	}
	wg.Wait()
	checkDisk(t, s)
	if got := s.ledger.total(); got > 4<<20 {
		t.Errorf("%d bytes kept, limit %d", got, 4<<20)
	}
}

// TestFoldersOnTwoFileSystems: if fills/ and blobs/ are on two file systems, the store does not
// start, and the error says why.
func TestFoldersOnTwoFileSystems(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	elsewhere, err := os.MkdirTemp("/dev/shm", "cachalot-") //nolint:usetesting // another file system is wanted
	if err != nil {
		t.Skip("a second file system is needed: ", err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(elsewhere); err != nil {
			t.Error(err)
		}
	})
	var here, there unix.Stat_t
	if err := errors.Join(unix.Stat(dir, &here), unix.Stat(elsewhere, &there)); err != nil || here.Dev == there.Dev {
		t.Skip("a second file system is needed: ", err)
	}
	if err := os.Symlink(elsewhere, filepath.Join(dir, "blobs")); err != nil {
		t.Fatal(err)
	}
	s, err := Open(Config{Path: dir, MaxFills: 1}, NewMetrics(), slog.New(slog.DiscardHandler))
	if err == nil {
		t.Error("it starts: ", s.Close())
	} else if !errors.Is(err, unix.EXDEV) || !strings.Contains(err.Error(), dir) {
		t.Error(err)
	}
}
