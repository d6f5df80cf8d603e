package storage

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// TestRecentWrites: who reads after a write has ended gets what was written, or
// newer, however many read meanwhile.
func TestRecentWrites(t *testing.T) {
	t.Parallel()
	s := openStore(t, t.TempDir())
	key := TagKey{Upstream: "u", Repository: "r", Name: "1"}
	var written atomic.Int64
	var done atomic.Bool
	var wg sync.WaitGroup
	for range 2 { // more would only keep the writer from its processor
		wg.Go(func() {
			for !done.Load() {
				least := written.Load()
				tag, ok := s.Tag(key)
				if least > 0 && (!ok || tag.Checked.UnixNano() < least) {
					t.Errorf("read %d, %t after %d was written", tag.Checked.UnixNano(), ok, least)
					return
				}
			}
		})
	}
	for i := int64(1); i <= 500; i++ {
		if err := s.PutTag(key, Tag{Digest: digest.FromString(strconv.FormatInt(i, 10)), Checked: time.Unix(0, i)}, time.Hour); err != nil {
			t.Fatal(err)
		}
		written.Store(i)
	}
	done.Store(true)
	wg.Wait()
	if err := s.DeleteTag(key); err != nil {
		t.Fatal(err)
	}
	if tag, ok := s.Tag(key); ok {
		t.Errorf("%v after it was deleted", tag)
	}
}

// TestRecentOvertaken: what was read before a write is not taken in after it.
func TestRecentOvertaken(t *testing.T) {
	t.Parallel()
	x := openStore(t, t.TempDir()).index
	key := []byte("t some tag")
	if err := x.put(key, []byte("old"), 0); err != nil {
		t.Fatal(err)
	}
	_, _, writes := x.recent.get(key)
	old, _, err := x.read(key)
	if err != nil {
		t.Fatal(err)
	}
	if err := x.put(key, []byte("new"), 0); err != nil {
		t.Fatal(err)
	}
	x.recent.add(key, old, writes)
	if _, err := x.get(key, func(b []byte) error {
		if string(b) != "new" {
			t.Errorf("%q", b)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// TestRecentExpires: memory forgets when the index does.
func TestRecentExpires(t *testing.T) {
	t.Parallel()
	x := openStore(t, t.TempDir()).index
	key := []byte("t some tag")
	_, _, writes := x.recent.get(key)
	x.recent.add(key, entry{value: []byte("old"), expires: uint64(time.Now().Add(-time.Minute).Unix())}, writes)
	if ok, err := x.get(key, func([]byte) error { return nil }); ok || err != nil {
		t.Errorf("%t, %v: it has expired", ok, err)
	}
}

// TestSmallInMemory: small content is read once, by whom it belongs to, counts as
// used, and goes with its blob.
func TestSmallInMemory(t *testing.T) {
	t.Parallel()
	s := openStore(t, t.TempDir())
	o := &origin{content: content(1, 5000)}
	d := o.digest()
	mustFetch(t, s, o, Miss)
	settle(t, s)
	inFile := func() bool {
		b := open(t, s, scope(), d, nil)
		got, err := io.ReadAll(b.Content)
		if err != nil || !bytes.Equal(got, o.content) || b.Outcome != Hit || b.Size != 5000 || b.MediaType != "application/x-test" {
			t.Fatalf("%+v: %d bytes, %v", b, len(got), err)
		}
		if _, err := b.Content.Seek(-10, io.SeekEnd); err != nil {
			t.Error(err)
		}
		if tail, err := io.ReadAll(b.Content); err != nil || !bytes.Equal(tail, o.content[4990:]) {
			t.Errorf("%d bytes, %v", len(tail), err)
		}
		b.Close()
		_, is := b.Content.(*os.File)
		return is
	}
	if !inFile() || inFile() {
		t.Error("want it from the file once, then from memory")
	}
	elsewhere := scope()
	elsewhere.Repository = "library/b"
	if _, err := s.Get(t.Context(), elsewhere, d, nil); !errors.Is(err, ErrUnlinked) {
		t.Errorf("in another repository: %v", err)
	}
	setRecord(t, s, d, func(r *record) { r.accessed = 1 })
	_ = inFile()
	s.flushTouched()
	r, _, err := s.index.record(d)
	if err != nil || r.accessed == 1 {
		t.Errorf("%+v, %v: a use from memory does not count", r, err)
	}
	s.evict(victim{d, r})
	if err := s.PutLink(scope(), d, ""); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(t.Context(), scope(), d, nil); !errors.Is(err, ErrNotFound) {
		t.Errorf("after its eviction: %v", err)
	}
}

// TestSmallDamaged: a small blob that a disk has damaged is found when it gets into
// memory, and fetched anew.
func TestSmallDamaged(t *testing.T) {
	t.Parallel()
	s := openStore(t, t.TempDir())
	o := &origin{content: content(1, 5000)}
	mustFetch(t, s, o, Miss)
	settle(t, s)
	bad := content(1, 5000)
	bad[100]++
	if err := os.WriteFile(s.disk.blob(o.digest()), bad, 0o600); err != nil {
		t.Fatal(err)
	}
	mustFetch(t, s, o, Miss)
	settle(t, s)
	mustFetch(t, s, o, Hit)
	if n := o.opens.Load(); n != 2 {
		t.Errorf("fetched %d times, want twice", n)
	}
	checkDisk(t, s)
}

// TestMemoryBound: the least recently used goes first.
func TestMemoryBound(t *testing.T) {
	t.Parallel()
	m := newMemory()
	b := make([]byte, smallBlob-1)
	name := func(i int) digest.Digest { return digest.Digest(fmt.Sprint(i)) }
	fits := maxContent / len(b)
	for i := range fits + 10 {
		m.add(name(i), b)
		m.get(name(0))
		m.add(name(i), b) // again
	}
	if m.bytes > maxContent || m.bytes < maxContent-2*len(b) || m.bytes != m.blobs.Len()*len(b) {
		t.Errorf("%d bytes in %d blobs; the bound is %d", m.bytes, m.blobs.Len(), maxContent)
	}
	for i, want := range map[int]bool{0: true, 1: false, 5: false, fits + 9: true} {
		if _, ok := m.get(name(i)); ok != want {
			t.Errorf("%d is there: %t", i, ok)
		}
	}
}
