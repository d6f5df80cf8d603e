package process

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// TestManyBlobs: a cache of 2,000 blobs (CACHALOT_TEST_BLOBS) serves while its index is
// rebuilt, after kill -9 and after a normal end, without upstream requests for linked
// content. The test logs the time and memory. With 1,000,000 blobs (4 GB on disk), memory
// is back to 100 bytes a blob within a minute, pages of the index's files included, and 35
// without them.
func TestManyBlobs(t *testing.T) {
	n := count(t, "CACHALOT_TEST_BLOBS", 2_000)
	if n < 1_000_000 {
		t.Parallel()
	}
	up := upstreamtest.New(t, upstreamtest.Options{})
	const asked = 100 // the upstream has these, and one that is not stored
	for i := range asked {
		up.AddBlob("library/app", upstreamtest.NewContent("", tiny(i)))
	}
	fresh := upstreamtest.NewContent("", upstreamtest.Random(1, 100_000))
	up.AddBlob("library/app", fresh)

	empty := start(t, t.TempDir(), up.URL)
	none := empty.resident(t)
	report := func(what string, s *server, took time.Duration) {
		t.Helper()
		m := s.resident(t)
		t.Logf("%-26s %6d ms, CPU %6d ms, RSS %4d MiB (anonymous %3d, files %3d): %3d B a blob", what,
			took.Milliseconds(), cpu(t, s).Milliseconds(), m.all>>20, m.anonymous>>20, m.files>>20, (m.all-none.all)/n)
	}
	// rests waits until the process has freed the memory of the start.
	rests := func(what string, s *server) {
		t.Helper()
		limit := time.After(time.Minute)
		for tick := time.NewTicker(100 * time.Millisecond); n >= 1_000_000; {
			if m := s.resident(t); (m.all-none.all)/n <= 100 && (m.anonymous-none.anonymous)/n <= 35 {
				break
			}
			select {
			case <-tick.C:
			case <-limit:
				t.Errorf("%s: it holds on to %+v, and with no blob to %+v", what, s.resident(t), none)
				return
			}
		}
		report(what+", at rest", s, 0)
	}
	report("no blob", empty, 0)
	empty.Kill()

	folder := t.TempDir()
	writeTiny(t, folder, n)
	var s *server
	// first starts the mirror and fetches one of the blobs.
	first := func(what string, requests int, storage ...string) {
		t.Helper()
		up.Forget()
		began := time.Now()
		s = startConfig(t, basicConfig(folder, up.URL, storage...))
		if err := s.fetch(http.DefaultClient, digest.FromBytes(tiny(0))); err != nil {
			t.Fatalf("%s: %v: %s", what, err, s.Log)
		}
		report(what, s, time.Since(began))
		if got := len(up.Requests()) - up.Count(upstreamtest.Ping); got != requests || up.Sent(digest.FromBytes(tiny(0))) != 0 {
			t.Errorf("%s: %d requests upstream, want %d", what, got, requests)
		}
	}

	first("no index", 1)
	began := time.Now()
	var slowest time.Duration
	for i := range asked {
		start := time.Now()
		if err := s.fetch(http.DefaultClient, digest.FromBytes(tiny(i))); err != nil {
			t.Error(err)
		}
		slowest = max(slowest, time.Since(start))
	}
	if err := s.fetch(http.DefaultClient, fresh.Digest); err != nil {
		t.Error(err)
	}
	known := s.metricBooks(t).blobs
	s.untilMetrics(t, func(b books) bool { return b.blobs > n })
	report("index rebuilt", s, time.Since(began))
	s.books(t, folder)
	rests("index rebuilt", s)
	t.Logf("meanwhile %d blobs were asked for, the slowest took %d ms; %d were known when the last had come", asked, slowest.Milliseconds(), known)
	if heads := up.Count(upstreamtest.HeadBlob); heads != asked || up.Sent(fresh.Digest) != fresh.Size {
		t.Errorf("%d HEADs upstream for %d blobs", heads, asked)
	}

	s.Kill()
	first("after kill -9", 0)
	s.Interrupt(t)
	began = time.Now()
	first("after an orderly end", 0)
	s.untilMetrics(t, func(b books) bool { return b.blobs > n })
	report("all counted", s, time.Since(began))
	rests("all counted", s)
	s.Kill()

	// A tenth must be evicted, with urgency.
	limit := int64(n) * 4096 * 9 / 10
	first("too full", 0, fmt.Sprintf("max_size: %d", limit), "high_mark: 100%", "low_mark: 100%")
	began = time.Now()
	s.untilMetrics(t, func(b books) bool { return b.blobs > 0 && b.bytes <= limit })
	report("room made", s, time.Since(began))
	s.books(t, folder)
	rests("room made", s)
	s.Interrupt(t)
}

// untilMetrics waits until enough accepts the metrics.
func (s *server) untilMetrics(t *testing.T, enough func(books) bool) {
	t.Helper()
	for tick := time.NewTicker(10 * time.Millisecond); !enough(s.metricBooks(t)); <-tick.C {
		select {
		case <-s.Ended():
			t.Fatalf("it has ended: %s", s.Log)
		default:
		}
	}
}

// tiny is the content of the nth small blob.
func tiny(n int) []byte { return fmt.Appendf(nil, "blob %d", n) }

// writeTiny writes n small blobs into a mirror's folder.
func writeTiny(t *testing.T, folder string, n int) {
	t.Helper()
	for shard := range 256 {
		if err := os.MkdirAll(filepath.Join(folder, "blobs", "sha256", fmt.Sprintf("%02x", shard)), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	var next atomic.Int64
	var wg sync.WaitGroup
	for range 2 * runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				b := tiny(i)
				hex := digest.FromBytes(b).Encoded()
				if err := os.WriteFile(filepath.Join(folder, "blobs", "sha256", hex[:2], hex), b, 0o600); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// resident is a process' resident memory, in bytes.
type resident struct{ all, anonymous, files int }

func (s *server) resident(t *testing.T) resident {
	t.Helper()
	return resident{s.status(t, "VmRSS"), s.status(t, "RssAnon"), s.status(t, "RssFile")}
}

// cpu is the CPU time of a process.
func cpu(t *testing.T, s *server) time.Duration {
	t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.Cmd.Process.Pid))
	if err != nil {
		return 0 // it has ended, or there is no /proc
	}
	var ticks time.Duration // of 10 ms
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	for _, f := range fields[11:13] {
		n, err := strconv.Atoi(f)
		if err != nil {
			t.Fatal(err)
		}
		ticks += time.Duration(n)
	}
	return ticks * 10 * time.Millisecond
}
