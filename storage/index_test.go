package storage

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/cachalot-registry/cachalot/storage/index"
)

// TestIndex_MalformedRecords: a record that cannot be decoded is written again from the disk.
func TestIndex_MalformedRecords(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		s := openStore(t, dir)
		good, spoilt, lost := put(t, s, 1, 1000, 7, true), put(t, s, 2, 4000, 3, false), put(t, s, 3, 8000, 3, false)
		if err := s.index.PutRecords(map[digest.Digest]index.Record{spoilt: {Size: -1}, lost: {Size: -1}}); err != nil { // a negative size cannot be decoded
			t.Fatal(err)
		}
		if err := errors.Join(s.Close(), os.Remove(s.disk.blob(lost))); err != nil {
			t.Fatal(err)
		}
		s = openStore(t, dir)
		s.reconcile()
		info, err := os.Stat(s.disk.blob(spoilt))
		if err != nil {
			t.Fatal(err)
		}
		for d, want := range map[digest.Digest]index.Record{
			good:   {Size: 1000, Accessed: 7, Manifest: true},
			spoilt: {Size: 4000, Accessed: info.ModTime().Unix()},
		} {
			if r, ok, err := s.index.Record(d); err != nil || !ok || r != want {
				t.Errorf("record %+v %v %v, want %+v", r, ok, err, want)
			}
		}
		checkDisk(t, s)

		// A malformed record whose file is gone was never counted.
		s.forget(lost)
		checkDisk(t, s)
		synctest.Wait() // until the store's own walk ends
		writes := s.index.Writes()
		if err := s.index.Forget(lost); err != nil || s.index.Writes() != writes {
			t.Errorf("record of a blob that is gone, %v", err)
		}
	})
}

// TestMaxIndex: the store keeps its tags within their bound and counts the evicted ones. The
// count of tags is right after a restart.
func TestMaxIndex(t *testing.T) {
	t.Parallel()
	const bound = 100 << 10
	dir := t.TempDir()
	bounded := func(c *Config) { c.MaxIndex = bound }
	s := openStore(t, dir, bounded)
	for n := 0; gathered(t, s.metrics, "evicted_tags_total") == 0; n++ {
		k := TagKey{Upstream: "docker.io", Repository: "rep", Name: fmt.Sprint(n)}
		if err := s.PutTag(k, Tag{Digest: digest.FromString("x"), Checked: time.Now()}, time.Hour); err != nil {
			t.Fatal(err)
		}
		if bytes := gathered(t, s.metrics, "storage_tags_bytes"); bytes > bound {
			t.Fatalf("%v bytes of %d after %d tags", bytes, bound, n)
		}
	}
	if n := gathered(t, s.metrics, "storage_tags_limit_bytes"); n != bound {
		t.Errorf("storage_tags_limit_bytes is %v", n)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	want := gathered(t, s.metrics, "storage_tags")
	s = openStore(t, dir, bounded)
	for gathered(t, s.metrics, "storage_tags") != want { // until maintenance has added them up
		runtime.Gosched()
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "index.opening")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the index was read, and is still marked: %v", err)
	}
}
