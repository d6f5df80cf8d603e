package index

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/cachalot-registry/cachalot/test/smalldisk"
)

// tagOf is a tag whose record has about 1 KiB.
func tagOf(i int) TagKey { return TagKey{"u", "r", fmt.Sprint("n", i, strings.Repeat("-", 900))} }

// TestIndex_WaitingIsBounded: changes that wait for space are bounded. With space, the next
// change is written.
func TestIndex_WaitingIsBounded(t *testing.T) {
	t.Parallel()
	dir := smalldisk.New(t, 256)
	x := openIndex(t, dir, Config{})
	other := smalldisk.Fill(t, dir)
	if free := x.free(); free != 0 {
		t.Errorf("%d bytes are free", free)
	}
	x.waits.Store(maxWaiting + 1) // as if so many wait
	if err := x.PutTag(tagOf(1), Tag{Digest: digest.FromString("1")}, time.Hour); err == nil {
		t.Error("no error with too much waiting")
	}
	if err := os.Remove(other); err != nil {
		t.Fatal(err)
	}
	if err := x.PutTag(tagOf(1), Tag{Digest: digest.FromString("1")}, time.Hour); err != nil {
		t.Error(err)
	}
	if err := x.put(make([]byte, maxEntry), []byte{1}, 0); err == nil {
		t.Error("no error for an entry that badger does not take")
	}
	if err := x.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestOpeningMark: an index is used after one start that died while opening it, and discarded
// after two in a row.
func TestOpeningMark(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	x := openIndex(t, dir, Config{})
	for deaths, want := range []bool{true, true, false} {
		x.Recount(t.Context()) // as maintenance does after a start
		if err := x.PutTag(tagOf(1), Tag{Digest: digest.FromString("1")}, time.Hour); err != nil {
			t.Fatal(err)
		}
		if err := x.Close(); err != nil {
			t.Fatal(err)
		}
		if fileExists(x.openingMarker()) {
			t.Error("still marked after it was opened and closed")
		}
		if err := os.WriteFile(x.openingMarker(), make([]byte, deaths), 0o600); err != nil {
			t.Fatal(err)
		}
		x = openIndex(t, dir, Config{})
		if _, ok, err := x.Tag(tagOf(1)); ok != want || err != nil {
			t.Errorf("after %d deaths the index was kept: %v, want %v; %v", deaths, ok, want, err)
		}
	}
}

// TestOpeningMark_RemovedAfterStart: the mark is removed after survival, even if not all records have been
// read.
func TestOpeningMark_RemovedAfterStart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		x := openIndex(t, dir, Config{})
		time.Sleep(survival - time.Nanosecond)
		synctest.Wait()
		if !fileExists(x.openingMarker()) {
			t.Error("no mark: the next start would not know what killed this one")
		}
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		if fileExists(x.openingMarker()) {
			t.Error("still marked: two kills in a row would cost the index")
		}
		if err := x.Close(); err != nil {
			t.Error(err)
		}
	})
}

// TestIndex_GivesMemoryBack: memory is given back atRest after a lot of work, and not after
// less.
func TestIndex_GivesMemoryBack(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		x := openIndex(t, dir, Config{})
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
		write(0, muchWork/2) // enough, with the writes before
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
		if err := x.Close(); err != nil {
			t.Error(err)
		}
		wait(2*atRest, 1)
	})
}

// TestLogAllocated: the blocks of each badger log are allocated in advance, so that a write to
// it does not fail on a full disk.
func TestLogAllocated(t *testing.T) {
	t.Parallel()
	x := openIndex(t, t.TempDir(), Config{})
	seen := map[string]bool{}
	for i := 0; len(seen) < 3; i++ {
		entries := map[string]entry{}
		for j := range 50 {
			entries[string(tagKey(tagOf(i*50+j)))] = entry{value: make([]byte, 4<<10)}
		}
		if err := x.write(entries); err != nil {
			t.Fatal(err)
		}
		name := x.walName(x.wal)
		var st unix.Stat_t
		if err := unix.Stat(name, &st); err != nil {
			t.Fatal(err)
		}
		if st.Blocks*512 < 2*memtable {
			t.Fatalf("%s has %d bytes of blocks", name, st.Blocks*512)
		}
		if fileExists(x.walName(x.wal + 1)) {
			t.Fatalf("there is a newer log than %s", name)
		}
		seen[name] = true
	}
}

// TestIndexDiskReadOnly: the index is not opened on a read-only disk. Changes wait in memory,
// and are read from there.
func TestIndexDiskReadOnly(t *testing.T) {
	t.Parallel()
	dir := smalldisk.New(t, 256)
	x := openIndex(t, dir, Config{})
	if err := errors.Join(x.PutTag(tagOf(1), Tag{Digest: digest.FromString("1")}, time.Hour), x.Close()); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	x = openIndex(t, dir, Config{})
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
	if err := x.Close(); err != nil {
		t.Error(err)
	}
}

// TestOtherFormat: an index of another format opens empty.
func TestOtherFormat(t *testing.T) {
	t.Parallel()
	kept := digest.FromString("kept")
	place := Place{Upstream: "docker.io", Repository: "library/a"}
	for number, entries := range map[uint16]map[string][]byte{
		0: {
			"b" + string(kept): make([]byte, 25),
			"l" + string(kept) + "\x00b" + place.Upstream + "\x00" + place.Repository: nil,
		},
		format + 1: {
			string(blobKey(kept)): Record{Size: 1}.encode(), string(linkKey(place, kept)): Link{Size: 1}.encode(),
		},
	} {
		dir := t.TempDir()
		db, err := badger.Open(badger.DefaultOptions(filepath.Join(dir, "index")).WithExternalMagic(number).WithLogger(nil))
		if err != nil {
			t.Fatal(err)
		}
		err = db.Update(func(txn *badger.Txn) (err error) {
			for key, value := range entries {
				err = errors.Join(err, txn.Set([]byte(key), value))
			}
			return err
		})
		if err := errors.Join(err, db.Close()); err != nil {
			t.Fatal(err)
		}
		x := openIndex(t, dir, Config{})
		if err := x.scan(nil, func(key, _ []byte) bool { t.Errorf("format %d: %q is left", number, key); return true }); err != nil {
			t.Error(err)
		}
		if x.db.Load() == nil {
			t.Errorf("format %d: not opened", number)
		}
	}
}
