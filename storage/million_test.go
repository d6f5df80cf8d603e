package storage

import (
	"encoding/binary"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/cachalot-registry/cachalot/storage/index"
)

// tiny is the content of the nth of many distinct small blobs.
func tiny(n int) []byte { return binary.BigEndian.AppendUint64([]byte("blob "), uint64(n)) }

// writeTiny writes n small blobs where a store in dir expects them.
func writeTiny(tb testing.TB, dir string, n int) {
	tb.Helper()
	k, err := openDisk(dir)
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
	if err := k.close(); err != nil {
		tb.Fatal(err)
	}
}

// linkTiny links n small blobs to one repository.
func linkTiny(tb testing.TB, s *Store, n int) {
	tb.Helper()
	for i := range n {
		if err := s.index.PutLink(scope().place(), digest.FromBytes(tiny(i)), index.Link{Size: -1}); err != nil {
			tb.Fatal(err)
		}
	}
}

// BenchmarkLookAtMillion measures the admin API with a million blobs, each in two of a thousand
// repositories. There are no files, because only the index is read.
func BenchmarkLookAtMillion(b *testing.B) {
	const n = 1_000_000
	// It measures processor time, because the machine may have other work.
	timed := func(b *testing.B, look func()) {
		b.Helper()
		begun := cpuSeconds(b)
		for b.Loop() {
			look()
		}
		b.ReportMetric((cpuSeconds(b)-begun)/float64(b.N), "cpu-s/op")
	}
	s, err := Open(Config{Path: b.TempDir(), MaxFills: 1}, NewMetrics(), slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = s.Close() })
	batch := map[digest.Digest]index.Record{}
	for i := range n {
		d := digest.FromBytes(tiny(i))
		batch[d] = index.Record{Size: int64(i), Accessed: int64(i)}
		for _, repository := range []string{"library/a", "library/b"} {
			place := index.Place{Upstream: "docker.io", Repository: fmt.Sprint(repository, i%500)}
			if err := s.index.PutLink(place, d, index.Link{Size: int64(i)}); err != nil {
				b.Fatal(err)
			}
		}
		if len(batch) == 1000 || i == n-1 {
			if err := s.index.PutRecords(batch); err != nil {
				b.Fatal(err)
			}
			clear(batch)
		}
	}
	b.Run("summary", func(b *testing.B) {
		timed(b, func() {
			s.InvalidateSummary()
			if sum, err := s.Summary(b.Context()); err != nil || len(sum.Repositories) != 1000 || sum.Upstreams[0].Blobs < n/2 { // the walk at the start drops some
				b.Fatal(len(sum.Repositories), sum.Upstreams, err)
			}
		})
	})
	b.Run("largest", func(b *testing.B) {
		timed(b, func() {
			if page, err := s.TopBlobs(b.Context(), BlobQuery{}, BySize, 100); err != nil || len(page) != 100 {
				b.Fatal(len(page), err)
			}
		})
	})
	b.Run("page", func(b *testing.B) {
		timed(b, func() {
			if page, next, err := s.Blobs(b.Context(), BlobQuery{}, "sha256:80", 100); err != nil || len(page) != 100 || next == "" {
				b.Fatal(len(page), err)
			}
		})
	})
	b.Run("page of a repository", func(b *testing.B) {
		q := BlobQuery{Upstream: "docker.io", Repository: "library/a7"}
		timed(b, func() {
			if page, next, err := s.Blobs(b.Context(), q, "", 100); err != nil || len(page) != 100 || next == "" {
				b.Fatal(len(page), err)
			}
		})
	})
}

func cpuSeconds(tb testing.TB) float64 {
	tb.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		tb.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()).Seconds()
}
