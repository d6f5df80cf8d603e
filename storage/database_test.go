package storage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"golang.org/x/sys/unix"
)

// smallDisk is a file system of so many MiB of its own. What the test opens on
// it afterwards is closed before it goes.
func smallDisk(t *testing.T, mib int) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%dm", mib)); err != nil {
		t.Skipf("a full disk needs a file system of its own, and so root: mount: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// fillDisk is somebody else's file, which takes the last byte. It returns what
// gives the space back.
func fillDisk(t *testing.T, dir string) (empty func()) {
	t.Helper()
	f, err := os.Create(filepath.Join(dir, "other"))
	if err != nil {
		t.Fatal(err)
	}
	for chunk := make([]byte, 1<<20); err == nil; {
		_, err = f.Write(chunk)
	}
	if free := (&index{dir: filepath.Join(dir, "index")}).free(); !errors.Is(err, unix.ENOSPC) || free != 0 {
		t.Fatalf("the disk is not full: %v, %d bytes free", err, free)
	}
	return func() {
		if err := errors.Join(f.Close(), os.Remove(f.Name())); err != nil {
			t.Error(err)
		}
	}
}

// tagOf is a tag whose record has about 1 KiB.
func tagOf(i int) TagKey { return TagKey{"u", "r", fmt.Sprint("n", i, strings.Repeat("-", 900))} }

// checkTags holds that of n tags the odd ones are there, and the others are not.
func checkTags(t *testing.T, s *Store, n int) {
	t.Helper()
	seen := map[TagKey]bool{}
	if err := s.Tags(func(k TagKey, _ Tag) bool {
		if seen[k] {
			t.Errorf("%v twice", k)
		}
		seen[k] = true
		return true
	}); err != nil {
		t.Error(err)
	}
	for i := range n {
		got, ok := s.Tag(tagOf(i))
		if want := i%2 == 1; ok != want || ok && got.Digest != digest.FromString(fmt.Sprint(i)) || seen[tagOf(i)] != want {
			t.Errorf("tag %d: %v %v, visited: %v", i, got, ok, seen[tagOf(i)])
		}
	}
	if len(seen) != n/2 {
		t.Errorf("%d tags visited, want %d", len(seen), n/2)
	}
}

// TestIndexDiskFull fills the disk to the last byte while the index is written
// to from many goroutines, more than badger's log has room for. Nothing that was
// written is lost, there and then, when there is space again, and after a restart.
func TestIndexDiskFull(t *testing.T) {
	t.Parallel()
	dir := smallDisk(t, 256)
	s := openStore(t, dir)
	kept := &origin{content: content(400, 100_000)}
	mustFetch(t, s, kept, Miss)
	settle(t, s)

	const tags = 4_000
	var next atomic.Int64
	var wg sync.WaitGroup
	started := make(chan struct{})
	for range 4 {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < tags; i = int(next.Add(1)) - 1 {
				if i == tags/4 {
					close(started)
				}
				if err := s.PutTag(tagOf(i), Tag{Digest: digest.FromString(fmt.Sprint(i))}, time.Hour); err != nil {
					t.Error(err)
				}
				if i%2 == 0 {
					if err := s.DeleteTag(tagOf(i)); err != nil {
						t.Error(err)
					}
				}
				if i%200 == 0 {
					mustRead(t, s, kept)
				}
			}
		})
	}
	<-started
	empty := fillDisk(t, dir)
	wg.Wait()
	if s.index.waits.Load() == 0 {
		t.Error("nothing waits: badger was written to on a full disk")
	}
	checkTags(t, s, tags)
	big := &origin{content: content(401, 1<<20)} // all of what is kept would go in vain
	mustFetch(t, s, big, Miss)
	settle(t, s)
	if s.exists(big.digest()) {
		t.Error("kept on a full disk")
	}

	empty()
	s.maintainIndex()
	if n := s.index.waits.Load(); n != 0 {
		t.Errorf("%d changes wait though there is space", n)
	}
	checkTags(t, s, tags)
	mustFetch(t, s, big, Miss)
	checkDisk(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, dir)
	checkTags(t, s, tags)
	mustRead(t, s, kept)
	checkDisk(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// mustRead gets a blob that is kept, from any goroutine.
func mustRead(t *testing.T, s *Store, o *origin) {
	t.Helper()
	b, err := s.Get(context.WithoutCancel(t.Context()), scope(), o.digest(), nil)
	if err != nil {
		t.Error(err)
		return
	}
	defer b.Close()
	if got, err := io.ReadAll(b.Content); err != nil || !bytes.Equal(got, o.content) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

// TestIndexReserve: with its reserve the index is opened and closed on a full
// disk, and the reserve is taken back.
func TestIndexReserve(t *testing.T) {
	t.Parallel()
	dir := smallDisk(t, 256)
	s := openStore(t, dir)
	s.index.keepReserve(0)
	o := &origin{content: content(410, 1000)}
	mustFetch(t, s, o, Miss)
	settle(t, s)
	defer fillDisk(t, dir)()
	if err := s.PutTag(tagOf(1), Tag{Digest: digest.FromString("1")}, time.Hour); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if fileExists(s.index.reserve()) {
			t.Error("the reserve was not given up")
		}
		s = openStore(t, dir)
		mustRead(t, s, o)
		if _, ok := s.Tag(tagOf(1)); !ok {
			t.Error("the tag that waited was not written")
		}
		s.maintainIndex()
		if info, err := os.Stat(s.index.reserve()); err != nil || info.Size() < indexFloor {
			t.Errorf("the reserve was not taken back: %v", err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestIndexWithoutReserve: where the disk is full at start and there is no
// reserve, blobs are served from a walk of the disk; the index is whole again
// as soon as there is space, with what it knew and what was learnt meanwhile.
func TestIndexWithoutReserve(t *testing.T) {
	t.Parallel()
	dir := smallDisk(t, 256)
	s := openStore(t, dir)
	sc := Scope{Upstream: "u", Repository: "r"}
	evicted, limited := put(t, s, 420, 1000, 5, false), put(t, s, 421, 2000, 6, false)
	setRecord(t, s, limited, func(r *record) { r.until = 1 << 40 })
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	_ = os.Remove(s.index.reserve()) // it may not have been made yet
	empty := fillDisk(t, dir)
	if err := os.Truncate(filepath.Join(dir, "other"), fileSize(t, filepath.Join(dir, "other"))-1<<20); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, dir)
	if s.index.db.Load() != nil {
		t.Fatal("badger is open on a full disk")
	}
	s.reconcile()
	checkDisk(t, s)
	if _, err := s.Get(t.Context(), sc, limited, nil); !errors.Is(err, ErrUnlinked) {
		t.Errorf("error %v, want ErrUnlinked", err)
	}
	other := Scope{Upstream: "u", Repository: "other"}
	if err := s.PutLink(other, limited, ""); err != nil {
		t.Fatal(err)
	}
	open(t, s, other, limited, nil)
	if err := os.Remove(s.disk.blob(evicted)); err != nil {
		t.Fatal(err)
	}
	s.forget(evicted)
	checkDisk(t, s)

	empty()
	s.maintainIndex()
	if s.index.db.Load() == nil || s.index.waits.Load() != 0 {
		t.Fatalf("the index is not whole: %d wait", s.index.waits.Load())
	}
	open(t, s, sc, limited, nil)
	open(t, s, other, limited, nil)
	if r, ok, err := s.index.record(limited); err != nil || !ok || r.until != 1<<40 {
		t.Errorf("record %+v %v %v, not what the index knew", r, ok, err)
	}
	if _, ok, err := s.index.record(evicted); ok || err != nil {
		t.Errorf("a record of what is gone: %v", err)
	}
	checkDisk(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestBlobsLeaveRoom: blobs never fill the space that the index needs, whatever
// min_free says.
func TestBlobsLeaveRoom(t *testing.T) {
	t.Parallel()
	s := openStore(t, smallDisk(t, 256))
	for i := range 15 {
		put(t, s, uint64(440+i), 10<<20, int64(i), false)
		if free := s.index.free(); free < indexFloor {
			t.Fatalf("%d bytes free after %d blobs", free, i+1)
		}
	}
	if n := testutil.ToFloat64(s.metrics.evictedBytes.WithLabelValues(reasonSpace)); n == 0 {
		t.Error("nothing was evicted: the disk is too large for this test")
	}
	checkDisk(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

func fileSize(t *testing.T, name string) int64 {
	t.Helper()
	info, err := os.Stat(name)
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}

// TestTooMuchWaits: what waits is bounded, and room helps at once.
func TestTooMuchWaits(t *testing.T) {
	t.Parallel()
	dir := smallDisk(t, 256)
	s := openStore(t, dir)
	empty := fillDisk(t, dir)
	s.index.waits.Store(maxWaiting + 1) // as if
	if err := s.PutTag(tagOf(1), Tag{Digest: digest.FromString("1")}, time.Hour); err == nil {
		t.Error("no error with too much waiting")
	}
	empty()
	if err := s.PutTag(tagOf(1), Tag{Digest: digest.FromString("1")}, time.Hour); err != nil {
		t.Error(err)
	}
	if err := s.index.put(make([]byte, maxEntry), []byte{1}, 0); err == nil {
		t.Error("no error for an entry that badger does not take")
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestOpeningMark: an index that two starts in a row died of is thrown away; one
// death is no proof.
func TestOpeningMark(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := openStore(t, dir)
	for deaths, want := range []bool{true, true, false} {
		if err := s.PutTag(tagOf(1), Tag{Digest: digest.FromString("1")}, time.Hour); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if fileExists(s.index.openingMarker()) {
			t.Error("still marked after it was opened and closed")
		}
		if err := os.WriteFile(s.index.openingMarker(), make([]byte, deaths), 0o600); err != nil {
			t.Fatal(err)
		}
		s = openStore(t, dir)
		if _, ok := s.Tag(tagOf(1)); ok != want {
			t.Errorf("after %d deaths the index was kept: %v, want %v", deaths, ok, want)
		}
	}
}

// TestOpeningMarkGoes: a process that lives need not have read all records.
func TestOpeningMarkGoes(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "index")
	synctest.Test(t, func(t *testing.T) {
		x := openIndex(dir, slog.New(slog.DiscardHandler))
		time.Sleep(survival - time.Nanosecond)
		synctest.Wait()
		if !fileExists(x.openingMarker()) {
			t.Error("no mark: nobody would know of what it dies")
		}
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		if fileExists(x.openingMarker()) {
			t.Error("still marked: two kills in a row would cost the index")
		}
		if err := x.close(); err != nil {
			t.Error(err)
		}
	})
}

// TestGiveBack: memory is given back a while after the last of much work, and
// after nothing less.
func TestGiveBack(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "index")
	synctest.Test(t, func(t *testing.T) {
		x := openIndex(dir, slog.New(slog.DiscardHandler))
		var times atomic.Int64
		x.resting = time.AfterFunc(atRest, func() { times.Add(1) })
		x.resting.Stop()
		wait := func(d time.Duration, want int64) {
			t.Helper()
			time.Sleep(d)
			synctest.Wait()
			if got := times.Load(); got != want {
				t.Errorf("given back %d times, want %d", got, want)
			}
		}
		write := func(from, to int) {
			t.Helper()
			entries := map[string]entry{}
			for i := from; i < to; i++ {
				entries[string(tagKey(TagKey{"u", "r", strconv.Itoa(i)}))] = entry{value: []byte{1}}
			}
			if err := x.write(entries); err != nil {
				t.Fatal(err)
			}
		}
		write(0, muchWork-1)
		wait(2*atRest, 0)
		write(0, muchWork/2) // with that before it is much
		write(0, muchWork/2)
		wait(atRest-time.Nanosecond, 0)
		if err := x.scan([]byte{'t'}, func(_, _ []byte) bool { return true }); err != nil {
			t.Error(err)
		}
		write(0, 2)
		wait(atRest-time.Nanosecond, 0)
		wait(time.Nanosecond, 1)
		write(0, 10)
		wait(2*atRest, 1)
		write(0, muchWork)
		if err := x.close(); err != nil {
			t.Error(err)
		}
		wait(2*atRest, 1)
	})
}

// TestLogAllocated: the blocks of badger's log are the index's own, of each log
// anew, so that a disk that fills up cannot fail a write to it.
func TestLogAllocated(t *testing.T) {
	t.Parallel()
	s := openStore(t, t.TempDir())
	seen := map[string]bool{}
	for i := 0; len(seen) < 3; i++ {
		entries := map[string]entry{}
		for j := range 50 {
			entries[string(tagKey(tagOf(i*50+j)))] = entry{value: make([]byte, 4<<10)}
		}
		if err := s.index.write(entries); err != nil {
			t.Fatal(err)
		}
		name := s.index.walName(s.index.wal)
		var st unix.Stat_t
		if err := unix.Stat(name, &st); err != nil {
			t.Fatal(err)
		}
		if st.Blocks*512 < 2*memtable {
			t.Fatalf("%s has %d bytes of blocks", name, st.Blocks*512)
		}
		if fileExists(s.index.walName(s.index.wal + 1)) {
			t.Fatalf("there is a newer log than %s", name)
		}
		seen[name] = true
	}
}

// TestIndexDiskReadOnly: the index is not opened on a read-only disk. What is
// written waits in memory, and is read from there.
func TestIndexDiskReadOnly(t *testing.T) {
	t.Parallel()
	dir := smallDisk(t, 256)
	s := openStore(t, dir)
	o := &origin{content: content(430, 1000)}
	mustFetch(t, s, o, Miss)
	settle(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	x := openIndex(filepath.Join(dir, "index"), s.log)
	if x.db.Load() != nil {
		t.Error("badger is open on a read-only disk")
	}
	if err := x.put([]byte("k"), []byte("v"), 0); err != nil {
		t.Error(err)
	}
	if ok, err := x.get([]byte("k"), func([]byte) error { return nil }); !ok || err != nil {
		t.Error("what waits is not read: ", err)
	}
	if err := x.remove([]byte("k")); err != nil {
		t.Error(err)
	}
	if ok, err := x.get([]byte("k"), func([]byte) error { return nil }); ok || err != nil {
		t.Error("what was removed is read: ", err)
	}
	if x.free() != 0 {
		t.Error("room on a read-only disk")
	}
	if err := x.close(); err != nil {
		t.Error(err)
	}
}
