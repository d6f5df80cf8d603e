package storage

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/cachalot-registry/cachalot/storage/index"
	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// TestSmallInMemory: small content is read from disk once. Only linked repositories get it. A
// hit in memory is a use. The content leaves memory with its blob.
func TestSmallInMemory(t *testing.T) {
	t.Parallel()
	s := openStore(t, t.TempDir())
	o := &origin{content: upstreamtest.Random(1, 5000)}
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
	setRecord(t, s, d, func(r *index.Record) { r.Accessed = 1 })
	_ = inFile()
	s.access.flush()
	r, _, err := s.index.Record(d)
	if err != nil || r.Accessed == 1 {
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

// TestSmallDamaged: a small blob that is damaged on disk is detected when it is read into
// memory, and downloaded again.
func TestSmallDamaged(t *testing.T) {
	t.Parallel()
	s := openStore(t, t.TempDir())
	o := &origin{content: upstreamtest.Random(1, 5000)}
	mustFetch(t, s, o, Miss)
	settle(t, s)
	bad := upstreamtest.Random(1, 5000)
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

// TestMemoryBound: the least recently used content is evicted first.
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
