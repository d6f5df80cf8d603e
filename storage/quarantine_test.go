package storage

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"golang.org/x/sys/unix"

	"github.com/cachalot-registry/cachalot/storage/index"
	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// overwrite changes the file of a stored blob without the store's knowledge.
func overwrite(t *testing.T, s *Store, d digest.Digest, change func([]byte) []byte) (damaged []byte) {
	t.Helper()
	b, err := os.ReadFile(s.disk.blob(d))
	if err != nil {
		t.Fatal(err)
	}
	damaged = change(b)
	if err := os.WriteFile(s.disk.blob(d), damaged, 0o600); err != nil {
		t.Fatal(err)
	}
	return damaged
}

func flip(at int) func([]byte) []byte {
	return func(b []byte) []byte { b[at] ^= 1; return b }
}

func cut(n int) func([]byte) []byte { return func(b []byte) []byte { return b[:n] } }

func lengthen(b []byte) []byte { return append(b, "x"...) }

func zero(b []byte) []byte { return make([]byte, len(b)) }

// checkQuarantine checks that exactly these blobs are in quarantine, with these bytes, and are
// counted.
func checkQuarantine(t *testing.T, s *Store, want map[digest.Digest][]byte) {
	t.Helper()
	var sum int64
	err := flat(s.disk.quarantine(), func(d digest.Digest, info fs.FileInfo) {
		b, err := os.ReadFile(s.disk.quarantined(d))
		if err != nil || want[d] == nil || !bytes.Equal(b, want[d]) {
			t.Errorf("%s is in quarantine with %d bytes, want %d (%v)", d, len(b), len(want[d]), err)
		}
		delete(want, d)
		sum += blocks(info.Size())
	})
	if err != nil || len(want) > 0 {
		t.Errorf("not in quarantine: %v, %v", slices.Collect(maps.Keys(want)), err)
	}
	if got := s.space.inQuarantine(); got != sum {
		t.Errorf("%d bytes counted in quarantine, the disk has %d", got, sum)
	}
}

// TestWrongSize: the next request for a blob detects a file of the wrong length, before and
// after a restart. The blob is downloaded again, once.
func TestWrongSize(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func([]byte) []byte{"shorter": cut(99_999), "empty": cut(0), "longer": lengthen} {
		for _, found := range []string{"by ten clients", "by another repository", "by HEAD", "after a start"} {
			t.Run(name+" "+found, func(t *testing.T) {
				t.Parallel()
				dir := t.TempDir()
				s := openStore(t, dir)
				o := &origin{content: upstreamtest.Random(1, 100_000)}
				mustFetch(t, s, o, Miss)
				settle(t, s)
				other := Scope{Upstream: "quay.io", Repository: "a"}
				if err := s.PutLink(other, o.digest(), ""); err != nil {
					t.Fatal(err)
				}
				damaged := overwrite(t, s, o.digest(), change)
				switch found {
				case "by another repository":
					if _, err := s.Get(t.Context(), other, o.digest(), nil); !errors.Is(err, ErrNotFound) {
						t.Errorf("error %v, want ErrNotFound", err)
					}
				case "by HEAD":
					if _, err := s.Get(t.Context(), scope(), o.digest(), nil); !errors.Is(err, ErrNotFound) {
						t.Errorf("error %v, want ErrNotFound", err)
					}
				case "after a start":
					if err := s.Close(); err != nil {
						t.Fatal(err)
					}
					s = openStore(t, dir)
				}
				var wg sync.WaitGroup
				for range 10 {
					wg.Go(func() {
						got, _, err := fetch(t, s, o.digest(), o.source)
						if err != nil || !bytes.Equal(got, o.content) {
							t.Errorf("%d bytes, %v", len(got), err)
						}
					})
				}
				wg.Wait()
				settle(t, s)
				mustFetch(t, s, o, Hit)
				if o.opens.Load() != 2 || o.sent.Load() != 200_000 {
					t.Errorf("%d downloads, %d bytes; want one for the damage", o.opens.Load(), o.sent.Load())
				}
				if found == "by HEAD" {
					if _, err := s.Get(t.Context(), other, o.digest(), nil); !errors.Is(err, ErrUnlinked) {
						t.Errorf("error %v, want ErrUnlinked: the link went with the damaged blob", err)
					}
				}
				s.health.updateQuarantine()
				checkDisk(t, s)
				checkQuarantine(t, s, map[digest.Digest][]byte{o.digest(): damaged})
				if got := testutil.ToFloat64(s.metrics.quarantined); got != 1 {
					t.Errorf("quarantined_blobs_total %v", got)
				}
			})
		}
	}
}

// TestHitReadsNoRecord: a hit compares the length in the link, and does not read the record.
func TestHitReadsNoRecord(t *testing.T) {
	t.Parallel()
	s := openStore(t, t.TempDir())
	o := &origin{content: upstreamtest.Random(1, 1000)}
	mustFetch(t, s, o, Miss)
	settle(t, s)
	setRecord(t, s, o.digest(), func(r *index.Record) { r.Size = 7 })
	mustFetch(t, s, o, Hit)
	if o.opens.Load() != 1 {
		t.Error("the record was read")
	}
}

// TestLinkSize: a hit corrects the size in a link from before the blob was stored, or for an
// earlier file. A blob that is really empty stays.
func TestLinkSize(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		size    int
		link    int64
		recheck bool
	}{
		"not known": {1000, -1, false}, "wrong": {1000, 7, true}, "right": {1000, 1000, false},
		"not known, empty": {0, -1, false}, "wrong, empty": {0, 7, true}, "right, empty": {0, 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := openStore(t, t.TempDir())
				o := &origin{content: upstreamtest.Random(1, tc.size)}
				mustFetch(t, s, o, Miss)
				settle(t, s)
				if err := s.index.PutLink(scope().place(), o.digest(), index.Link{MediaType: "a/b", Size: tc.link}); err != nil {
					t.Fatal(err)
				}
				mustFetch(t, s, o, Hit)
				if l, ok := s.link(scope(), o.digest()); !ok || l != (index.Link{MediaType: "a/b", Size: int64(tc.size)}) {
					t.Errorf("link %+v %v", l, ok)
				}
				synctest.Wait()
				if got := testutil.ToFloat64(s.metrics.scrubbed) > 0; got != (tc.recheck && tc.size > 0) {
					t.Errorf("read again: %v", got)
				}
				mustFetch(t, s, o, Hit)
				checkDisk(t, s)
				checkQuarantine(t, s, nil)
			})
		})
	}
}

// TestEmptiedWithoutRecord: a file that a power cut emptied is detected without its record. A
// blob that is really empty stays.
func TestEmptiedWithoutRecord(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := openStore(t, t.TempDir())
		synctest.Wait() // the store's own walk would find them again
		o, empty := &origin{content: upstreamtest.Random(1, 1000)}, &origin{content: []byte{}}
		for _, o := range []*origin{o, empty} {
			mustFetch(t, s, o, Miss)
			settle(t, s)
			if err := s.index.Forget(o.digest()); err != nil {
				t.Fatal(err)
			}
		}
		s.readIndex()
		overwrite(t, s, o.digest(), cut(0))
		s.reconcile()
		checkDisk(t, s)
		checkQuarantine(t, s, map[digest.Digest][]byte{o.digest(): {}})
		if !s.exists(empty.digest()) {
			t.Error("the empty blob is gone")
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}

// TestHealth_ReadsBrokenAgain: after a broken read, the file is read again, first at the break
// and then, in the background, completely. A good file stays.
func TestHealth_ReadsBrokenAgain(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		change func([]byte) []byte // nil: nothing is wrong
		atOnce bool
	}{
		"good": {nil, false}, "cut in the midst": {cut(500), true}, "flipped": {flip(0), false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := openStore(t, t.TempDir())
				o := &origin{content: upstreamtest.Random(1, 1000)}
				mustFetch(t, s, o, Miss)
				settle(t, s)
				b := open(t, s, scope(), o.digest(), nil)
				if _, err := io.CopyN(io.Discard, b.Content, 500); err != nil {
					t.Fatal(err)
				}
				if tc.change != nil {
					overwrite(t, s, o.digest(), tc.change)
				}
				b.Broken()
				if got := !s.exists(o.digest()); got != tc.atOnce {
					t.Errorf("put away at once: %v", got)
				}
				synctest.Wait()
				want := Miss
				if tc.change == nil {
					want = Hit
				}
				mustFetch(t, s, o, want)
				settle(t, s)
				b.Close()
				checkDisk(t, s)
			})
		})
	}
}

// TestQuarantine_CannotMove: a damaged file that can be neither moved nor removed is not
// served. When the disk is writable again, it is replaced or quarantined.
func TestQuarantine_CannotMove(t *testing.T) {
	t.Parallel()
	s := openStore(t, t.TempDir())
	first, second := &origin{content: upstreamtest.Random(1, 1000)}, &origin{content: upstreamtest.Random(2, 1000)}
	for _, o := range []*origin{first, second} {
		mustFetch(t, s, o, Miss)
		settle(t, s)
		overwrite(t, s, o.digest(), cut(500))
	}
	// A mount point can be neither renamed nor removed.
	names := []string{s.disk.blob(first.digest()), s.disk.blob(second.digest())}
	free := func() {
		for _, name := range names {
			if err := unix.Unmount(name, 0); err != nil {
				t.Error(err)
			}
		}
		names = nil
	}
	defer func() { free() }()
	for _, name := range names {
		if err := unix.Mount(name, name, "", unix.MS_BIND, ""); err != nil {
			names = nil
			t.Skip("a file that cannot be moved needs a mount, and so root: ", err)
		}
	}
	for range 3 {
		mustFetch(t, s, first, Miss)
		mustFetch(t, s, second, Miss)
		settle(t, s)
	}
	free()
	mustFetch(t, s, first, Miss)
	settle(t, s)
	mustFetch(t, s, first, Hit)
	s.health.retryCondemned()
	checkDisk(t, s)
	if len(*s.health.condemned.Load()) > 0 {
		t.Errorf("still condemned: %v", *s.health.condemned.Load())
	}
	mustFetch(t, s, second, Miss)
	settle(t, s)
	mustFetch(t, s, second, Hit)
	checkDisk(t, s)
	if first.opens.Load() != 5 || second.opens.Load() != 5 {
		t.Errorf("%d and %d downloads", first.opens.Load(), second.opens.Load())
	}
}

// TestNoQuarantine: if the quarantine cannot be written, a damaged file is removed.
func TestNoQuarantine(t *testing.T) {
	t.Parallel()
	s := openStore(t, t.TempDir())
	o := &origin{content: upstreamtest.Random(1, 1000)}
	mustFetch(t, s, o, Miss)
	settle(t, s)
	overwrite(t, s, o.digest(), cut(500))
	if err := errors.Join(os.Remove(s.disk.quarantine()), os.WriteFile(s.disk.quarantine(), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	mustFetch(t, s, o, Miss)
	settle(t, s)
	mustFetch(t, s, o, Hit)
	checkDisk(t, s)
	if got := testutil.ToFloat64(s.metrics.quarantined); got != 1 {
		t.Errorf("quarantined_blobs_total %v", got)
	}
}

// TestQuarantineBounds: the newest files stay, up to a tenth of max_size. Blobs have that much
// less space.
func TestQuarantineBounds(t *testing.T) {
	t.Parallel()
	const mib = 1 << 20
	s := openStore(t, t.TempDir(), func(c *Config) { c.MaxSize = Size{Bytes: 20 * mib} })
	digests := make([]digest.Digest, 4)
	left := map[digest.Digest][]byte{}
	for i, size := range []int{mib / 2, mib, mib, 3 * mib} {
		d := put(t, s, uint64(i), size, 1, false)
		damaged := overwrite(t, s, d, cut(size-1))
		s.health.recheck(d)
		if digests[i] = d; i == 1 || i == 2 {
			left[d] = damaged // 3 MiB are too much; the oldest has no room
		}
	}
	checkQuarantine(t, s, left)
	if got := testutil.ToFloat64(s.metrics.quarantineBytes); got != 2*mib {
		t.Errorf("quarantine_bytes %v", got)
	}
	if over := s.space.over(18*mib+1, 100); over != 1 {
		t.Errorf("%d bytes too much, want 1: quarantine counts", over)
	}
	checkDisk(t, s)
	for range quarantineFiles {
		if err := os.WriteFile(s.disk.quarantined(digest.FromBytes(upstreamtest.Random(uint64(1000+len(left)), 8))), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		left[digest.FromBytes(upstreamtest.Random(uint64(1000+len(left)), 8))] = []byte{}
	}
	delete(left, digests[1])
	delete(left, digests[2])
	s.health.updateQuarantine()
	checkQuarantine(t, s, left)
}

// TestQuarantine_CannotOpen: a file that cannot be opened is quarantined, but only if the disk
// is at fault.
func TestQuarantine_CannotOpen(t *testing.T) {
	t.Parallel()
	s := openStore(t, t.TempDir())
	o := &origin{content: upstreamtest.Random(1, 1000)}
	mustFetch(t, s, o, Miss)
	settle(t, s)
	if why := s.health.unopenable(o.digest())(); why != nil {
		t.Error(why)
	}
	// Opening a locked terminal fails with EIO (pts(4)).
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Skip("no terminals: ", err)
	}
	defer master.Close()
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Skip("no terminals: ", err)
	}
	if err := errors.Join(os.Remove(s.disk.blob(o.digest())), os.Symlink(fmt.Sprint("/dev/pts/", n), s.disk.blob(o.digest()))); err != nil {
		t.Fatal(err)
	}
	if why := s.health.unopenable(o.digest())(); !errors.Is(why, unix.EIO) {
		t.Skip("a locked terminal can be opened: ", why)
	}
	mustFetch(t, s, o, Miss)
	settle(t, s)
	mustFetch(t, s, o, Hit)
	checkDisk(t, s)
	if _, err := os.Lstat(s.disk.quarantined(o.digest())); err != nil {
		t.Error(err)
	}
	for err, want := range map[error]bool{
		unix.EIO: true, unix.EUCLEAN: true, unix.EBADMSG: true,
		unix.EMFILE: false, unix.ENOENT: false, unix.EACCES: false, unix.ENOMEM: false,
	} {
		if got := unreadable(&fs.PathError{Op: "open", Path: "x", Err: err}); got != want {
			t.Errorf("%v: %v", err, got)
		}
	}
	if got := pathless(&fs.PathError{Op: "open", Path: "/secret", Err: unix.EIO}); strings.Contains(got.Error(), "secret") {
		t.Error(got)
	}
}
