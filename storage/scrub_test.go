package storage

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"golang.org/x/sys/unix"

	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

func scrubEvery(d time.Duration) func(*Config) { return func(c *Config) { c.ScrubEvery = d } }

// keep stores blobs of a size, and returns them in the order of their digests.
func keep(t *testing.T, s *Store, n, size int) []*origin {
	t.Helper()
	origins := make([]*origin, n)
	for i := range origins {
		origins[i] = &origin{content: upstreamtest.Random(uint64(300+i), size)}
		mustFetch(t, s, origins[i], Miss)
		settle(t, s)
	}
	slices.SortFunc(origins, func(a, b *origin) int {
		return bytes.Compare([]byte(a.digest()), []byte(b.digest()))
	})
	return origins
}

// TestScrub: the scrub detects damaged content within a period. The blob is downloaded again,
// once. Other blobs are not touched.
func TestScrub(t *testing.T) {
	t.Parallel()
	const size = 2<<20 + 17 // in three reads
	for name, change := range map[string]func([]byte) []byte{
		"first bit": flip(0), "last bit": flip(size - 1), "a bit of the second read": flip(1<<20 + 1),
		"zeroes": zero, "shorter": cut(1 << 20), "longer": lengthen, "empty": cut(0),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				const period = time.Minute
				s := openStore(t, t.TempDir(), scrubEvery(period))
				origins := keep(t, s, 3, size)
				bad := origins[1]
				damaged := overwrite(t, s, bad.digest(), change)
				time.Sleep(period + maintenance)
				checkQuarantine(t, s, map[digest.Digest][]byte{bad.digest(): damaged})
				if got := testutil.ToFloat64(s.metrics.quarantined); got != 1 {
					t.Errorf("quarantined_blobs_total %v", got)
				}
				mustFetch(t, s, bad, Miss)
				settle(t, s)
				for _, o := range origins {
					mustFetch(t, s, o, Hit)
				}
				if bad.opens.Load() != 2 || origins[0].opens.Load()+origins[2].opens.Load() != 2 {
					t.Errorf("%d downloads of the damaged blob", bad.opens.Load())
				}
				checkDisk(t, s)
				time.Sleep(period + maintenance)
				if got := testutil.ToFloat64(s.metrics.quarantined); got != 1 {
					t.Errorf("quarantined_blobs_total %v once it was mended", got)
				}
			})
		})
	}
}

// TestScrubSpread: the scrub reads each blob once in a period, evenly. With period 0 it reads
// nothing.
func TestScrubSpread(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const period, n, size = 2 * time.Minute, 4, 100_000
		s := openStore(t, t.TempDir(), scrubEvery(period))
		never := openStore(t, t.TempDir())
		keep(t, never, 1, size)
		keep(t, s, n, size)
		time.Sleep(maintenance + time.Second) // the first blob has been read
		for i := range 2*n - 1 {
			if i == n { // between rounds
				time.Sleep(maintenance)
			}
			if got := int(testutil.ToFloat64(s.metrics.scrubbed)); got != (i+1)*size {
				t.Errorf("%d blobs read, want %d", got/size, i+1)
			}
			time.Sleep(period / n)
		}
		if got := testutil.ToFloat64(never.metrics.scrubbed); got != 0 {
			t.Errorf("%v bytes read without a period", got)
		}
	})
}

// TestScrubGrows: if blobs are added, the wait for the next blob gets shorter, even if it has
// begun.
func TestScrubGrows(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const period, size = 20 * time.Minute, 100_000
		s := openStore(t, t.TempDir(), scrubEvery(period))
		keep(t, s, 1, size)
		time.Sleep(maintenance + time.Second)
		for i := range uint64(9) {
			put(t, s, i, size, 1, false)
		}
		time.Sleep(period / 10 * 3)
		if got := testutil.ToFloat64(s.metrics.scrubbed); got < 2*size {
			t.Errorf("%v bytes read", got)
		}
	})
}

// TestScrubRate: the scrub never reads faster than scrubRate.
func TestScrubRate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := openStore(t, t.TempDir(), scrubEvery(time.Nanosecond))
		keep(t, s, 4, 3<<20)
		begun, before := time.Now(), testutil.ToFloat64(s.metrics.scrubbed)
		time.Sleep(10 * time.Second)
		read := testutil.ToFloat64(s.metrics.scrubbed) - before
		if most := scrubRate*time.Since(begun).Seconds() + 3<<20; read > most || read < most*.8 {
			t.Errorf("%.0f MiB read in %s", read/(1<<20), time.Since(begun))
		}
	})
}

// TestScrubResumes: after a restart, the scrub continues where it was. If its position is
// damaged, it starts over.
func TestScrubResumes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const period, n, size = 4 * time.Minute, 4, 100_000
		dir := t.TempDir()
		s := openStore(t, dir, scrubEvery(period))
		origins := keep(t, s, n, size)
		last := origins[n-1]
		damaged := overwrite(t, s, last.digest(), flip(5))
		for done := range n / 2 { // one blob in each process
			time.Sleep(maintenance + time.Second)
			if got := testutil.ToFloat64(s.metrics.scrubbed); got != size {
				t.Errorf("life %d: %v bytes read, want one blob", done, got)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			s = openStore(t, dir, scrubEvery(period))
		}
		time.Sleep(maintenance + period/2 - time.Second)
		if got := testutil.ToFloat64(s.metrics.scrubbed); got != n/2*size {
			t.Errorf("%v bytes read, want the other half", got)
		}
		checkQuarantine(t, s, map[digest.Digest][]byte{last.digest(): damaged})
		if err := s.index.SetScrubPosition("nonsense"); err != nil || s.health.scrubbed() != "" {
			t.Error("nonsense is a place to begin at")
		}
	})
}

// TestScrubWhileRead: a reader that has the damaged file open keeps it. The next reader does
// not get it.
func TestScrubWhileRead(t *testing.T) {
	t.Parallel()
	s := openStore(t, t.TempDir())
	o := &origin{content: upstreamtest.Random(1, 100_000)}
	mustFetch(t, s, o, Miss)
	settle(t, s)
	damaged := overwrite(t, s, o.digest(), flip(5))
	b := open(t, s, scope(), o.digest(), nil)
	s.health.recheck(o.digest())
	checkDisk(t, s)
	mustFetch(t, s, o, Miss)
	settle(t, s)
	checkDisk(t, s)
	got := make([]byte, 100_000)
	if _, err := b.Content.(*os.File).ReadAt(got, 0); err != nil || !bytes.Equal(got, damaged) {
		t.Errorf("the reader lost its file: %v", err)
	}
	// Damage found in the old file does not count for the new one.
	info, err := b.Content.(*os.File).Stat()
	if err != nil {
		t.Fatal(err)
	}
	old := &damage{info, ErrDigest}
	s.health.quarantine(o.digest(), func() error { return old.still(s.disk.blob(o.digest())) })
	mustFetch(t, s, o, Hit)
	checkQuarantine(t, s, map[digest.Digest][]byte{o.digest(): damaged})
}

// TestCheckLeavesCache: a check of a blob neither adds pages to the page cache nor removes any.
func TestCheckLeavesCache(t *testing.T) {
	t.Parallel()
	s := openStore(t, t.TempDir())
	o := &origin{content: upstreamtest.Random(1, 4<<20)}
	mustFetch(t, s, o, Miss)
	settle(t, s)
	f, err := os.Open(s.disk.blob(o.digest()))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	pages, err := unix.Mmap(int(f.Fd()), 0, 4<<20, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Munmap(pages) }()
	cached := func() (n int) {
		in := make([]byte, len(pages)/os.Getpagesize())
		_, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&pages[0])), uintptr(len(pages)), uintptr(unsafe.Pointer(&in[0])))
		if errno != 0 {
			t.Fatal(errno)
		}
		for _, p := range in {
			n += int(p & 1)
		}
		return n
	}
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil || cached() > 0 {
		t.Skip("this file system keeps its pages: ", err)
	}
	s.health.recheck(o.digest())
	if n := cached(); n > 0 {
		t.Errorf("%d pages of a cold blob are in the page cache", n)
	}
	if _, err := os.ReadFile(s.disk.blob(o.digest())); err != nil {
		t.Fatal(err)
	}
	warm := cached()
	s.health.recheck(o.digest())
	if n := cached(); n > warm || n < warm*9/10 || warm == 0 { // the kernel may drop some at any time
		t.Errorf("%d pages of a warm blob are in the page cache, %d before", n, warm)
	}
	if got := testutil.ToFloat64(s.metrics.scrubbed); got != 8<<20 {
		t.Errorf("%v bytes read", got)
	}
}

// TestCheckThroughCache: damage is detected also on a file system without direct I/O.
func TestCheckThroughCache(t *testing.T) {
	t.Parallel()
	k := disk{root: t.TempDir()}
	if err := unix.Mount("ramfs", k.root, "ramfs", 0, ""); err != nil {
		t.Skip("a file system of its own needs root: ", err)
	}
	defer func() {
		if err := unix.Unmount(k.root, 0); err != nil {
			t.Error(err)
		}
	}()
	b := upstreamtest.Random(1, checkSize+5000)
	d := digest.FromBytes(b)
	if err := os.MkdirAll(filepath.Dir(k.blob(d)), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func([]byte) []byte{"good": func(b []byte) []byte { return b }, "damaged": flip(checkSize)} {
		if err := os.WriteFile(k.blob(d), change(slices.Clone(b)), 0o600); err != nil {
			t.Fatal(err)
		}
		f, direct, err := openDirect(k.blob(d))
		if err != nil {
			t.Fatal(err)
		}
		_ = f.Close()
		if direct {
			t.Skip("ramfs knows reads past the cache")
		}
		read, bad, err := k.check(t.Context(), d, func(context.Context, int) error { return nil })
		if err != nil || read != int64(len(b)) || (bad != nil) != (name == "damaged") {
			t.Errorf("%s: %d bytes read, %v, %v", name, read, bad, err)
		}
	}
}
