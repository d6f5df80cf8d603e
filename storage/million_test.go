package storage

import (
	"encoding/binary"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"
)

// tiny is the content of the nth of many distinct small blobs.
func tiny(n int) []byte { return binary.BigEndian.AppendUint64([]byte("blob "), uint64(n)) }

// writeTiny writes n small blobs where a store in dir keeps them.
func writeTiny(tb testing.TB, dir string, n int) {
	tb.Helper()
	k, lock, err := openDisk(dir)
	if err != nil {
		tb.Fatal(err)
	}
	for shard := range 256 {
		name := filepath.Join(dir, "blobs", "sha256", string("0123456789abcdef"[shard>>4])+string("0123456789abcdef"[shard&15]))
		if err := os.MkdirAll(name, 0o700); err != nil {
			tb.Fatal(err)
		}
	}
	var next atomic.Int64
	var wg sync.WaitGroup
	for range 2 * runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				b := tiny(i)
				if err := os.WriteFile(k.blob(digest.FromBytes(b)), b, fs.FileMode(0o600)); err != nil {
					tb.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	if err := lock.Close(); err != nil {
		tb.Fatal(err)
	}
}

// linkTiny makes the index of a store in dir know its n small blobs, in one place.
func linkTiny(tb testing.TB, s *Store, n int) {
	tb.Helper()
	entries := map[string]entry{}
	for i := range n {
		d := digest.FromBytes(tiny(i))
		entries[string(linkKey(scope(), d))] = entry{}
		if len(entries) == batch || i == n-1 {
			if err := s.index.write(entries); err != nil {
				tb.Fatal(err)
			}
			clear(entries)
		}
	}
}
