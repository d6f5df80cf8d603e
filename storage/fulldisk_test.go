package storage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/cachalot-registry/cachalot/storage/index"
	"github.com/cachalot-registry/cachalot/test/smalldisk"
	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// tagOf is a tag whose record has about 1 KiB.
func tagOf(i int) TagKey {
	return TagKey{Upstream: "u", Repository: "r", Name: fmt.Sprint("n", i, strings.Repeat("-", 900))}
}

// remove gives back what smalldisk.Fill took.
func remove(t *testing.T, name string) {
	t.Helper()
	if err := os.Remove(name); err != nil {
		t.Error(err)
	}
}

// checkTags checks that of n tags only the odd ones are stored.
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

// TestIndexDiskFull fills the disk to the last byte while many goroutines write more to the
// index than badger's log has room for. No write is lost: on the full disk, when there is space
// again, and after a restart.
func TestIndexDiskFull(t *testing.T) {
	t.Parallel()
	dir := smalldisk.New(t, 256)
	s := openStore(t, dir)
	kept := &origin{content: upstreamtest.Random(400, 100_000)}
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
	other := smalldisk.Fill(t, dir)
	wg.Wait()
	if s.index.Waiting() == 0 {
		t.Error("nothing waits: badger was written to on a full disk")
	}
	checkTags(t, s, tags)
	big := &origin{content: upstreamtest.Random(401, 1<<20)} // evicting all blobs would not make room
	mustFetch(t, s, big, Miss)
	settle(t, s)
	if s.exists(big.digest()) {
		t.Error("kept on a full disk")
	}

	remove(t, other)
	s.maintainIndex()
	if n := s.index.Waiting(); n != 0 {
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

// mustRead reads a stored blob. Any goroutine can call it.
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

// TestIndexReserve: with its reserve, the index opens and closes on a full disk. Maintenance
// takes the reserve back.
func TestIndexReserve(t *testing.T) {
	t.Parallel()
	dir := smalldisk.New(t, 256)
	s := openStore(t, dir)
	s.index.KeepReserve(0)
	reserve := filepath.Join(dir, "reserve")
	o := &origin{content: upstreamtest.Random(410, 1000)}
	mustFetch(t, s, o, Miss)
	settle(t, s)
	smalldisk.Fill(t, dir)
	if err := s.PutTag(tagOf(1), Tag{Digest: digest.FromString("1")}, time.Hour); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(reserve); err == nil {
			t.Error("the reserve was not given up")
		}
		s = openStore(t, dir)
		mustRead(t, s, o)
		if _, ok := s.Tag(tagOf(1)); !ok {
			t.Error("the tag that waited was not written")
		}
		s.maintainIndex()
		if info, err := os.Stat(reserve); err != nil || info.Size() < index.Floor {
			t.Errorf("the reserve was not taken back: %v", err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestIndexWithoutReserve: if the disk is full at start and there is no reserve, a walk of the
// disk finds the blobs. When there is space, the index has its old records and the changes
// since the start.
func TestIndexWithoutReserve(t *testing.T) {
	t.Parallel()
	dir := smalldisk.New(t, 256)
	s := openStore(t, dir)
	sc := Scope{Upstream: "u", Repository: "r"}
	evicted, limited := put(t, s, 420, 1000, 5, false), put(t, s, 421, 2000, 6, false)
	setRecord(t, s, limited, func(r *index.Record) { r.Until = 1 << 40 })
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	_ = os.Remove(filepath.Join(dir, "reserve")) // it may not have been made yet
	other := smalldisk.Fill(t, dir)
	info, err := os.Stat(other)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(other, info.Size()-1<<20); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, dir)
	s.reconcile()
	if s.index.Waiting() == 0 {
		t.Fatal("badger is open on a full disk")
	}
	checkDisk(t, s)
	if _, err := s.Get(t.Context(), sc, limited, nil); !errors.Is(err, ErrUnlinked) {
		t.Errorf("error %v, want ErrUnlinked", err)
	}
	elsewhere := Scope{Upstream: "u", Repository: "other"}
	if err := s.PutLink(elsewhere, limited, ""); err != nil {
		t.Fatal(err)
	}
	open(t, s, elsewhere, limited, nil)
	if err := os.Remove(s.disk.blob(evicted)); err != nil {
		t.Fatal(err)
	}
	s.forget(evicted)
	checkDisk(t, s)

	remove(t, other)
	s.maintainIndex()
	if n := s.index.Waiting(); n != 0 {
		t.Fatalf("the index is not whole: %d wait", n)
	}
	open(t, s, sc, limited, nil)
	open(t, s, elsewhere, limited, nil)
	if r, ok, err := s.index.Record(limited); err != nil || !ok || r.Until != 1<<40 {
		t.Errorf("record %+v %v %v, not what the index knew", r, ok, err)
	}
	if _, ok, err := s.index.Record(evicted); ok || err != nil {
		t.Errorf("a record of what is gone: %v", err)
	}
	checkDisk(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestBlobsLeaveRoom: blobs never fill the space that the index needs, whatever min_free is.
func TestBlobsLeaveRoom(t *testing.T) {
	t.Parallel()
	s := openStore(t, smalldisk.New(t, 256))
	for i := range 15 {
		put(t, s, uint64(440+i), 10<<20, int64(i), false)
		if free, _, err := s.disk.space(); err != nil || free < index.Floor {
			t.Fatalf("%d bytes free after %d blobs, %v", free, i+1, err)
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
