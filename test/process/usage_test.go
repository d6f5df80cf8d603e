package process

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// usage is what a process uses and must free.
type usage struct {
	goroutines int
	sockets    int // listeners, and this request's connection
	files      int // open files, without the index's
	index      int // files of the index
	heap       int // reachable bytes
	rss        int // bytes
}

func (u usage) String() string {
	return fmt.Sprintf("%d goroutines, %d sockets, %d files, %d files of the index, heap %.1f MiB, RSS %.1f MiB",
		u.goroutines, u.sockets, u.files, u.index, float64(u.heap)/(1<<20), float64(u.rss)/(1<<20))
}

// usage runs a garbage collection and measures.
func (s *server) usage(t *testing.T) usage {
	t.Helper()
	s.Get(t, "/debug/pprof/heap?gc=1")
	m := s.Metrics(t)
	u := usage{
		goroutines: int(m["go_goroutines"]), heap: int(m["go_memstats_heap_alloc_bytes"]),
		rss: int(m["process_resident_memory_bytes"]),
	}
	dir, open := s.descriptors(t)
	for _, e := range open {
		to, err := os.Readlink(filepath.Join(dir, e.Name()))
		switch {
		case err != nil: // closed in between
		case strings.HasPrefix(to, "socket:"):
			u.sockets++
		case strings.Contains(to, "/index/"):
			u.index++
		default:
			u.files++
		}
	}
	return u
}

// quiet waits until no request and no download is in progress, and measures. With before it
// also waits until there are no more goroutines than before, because badger may still work.
func (s *server) quiet(t *testing.T, before *usage) usage {
	t.Helper()
	const listeners, ours = 2, 1
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	limit := time.NewTimer(2 * time.Minute) // idle connections to a registry close after one minute
	defer limit.Stop()
	var last usage
	for same := 0; same < 5; { // a goroutine may end slightly later
		u := s.usage(t)
		m := s.Metrics(t)
		if m["cachalot_connections"] == 0 && m["cachalot_fills_in_progress"] == 0 && u.sockets <= listeners+ours &&
			u.goroutines == last.goroutines && (before == nil || u.goroutines <= before.goroutines) && u.files == last.files {
			same++
		} else {
			same = 0
		}
		last = u
		select {
		case <-tick.C:
		case <-limit.C:
			t.Fatalf("not quiet after 2 minutes: %v, %v clients, %v downloads\n%s", u,
				m["cachalot_connections"], m["cachalot_fills_in_progress"], s.Get(t, "/debug/pprof/goroutine?debug=1"))
		}
	}
	return last
}

// descriptors are the links in dir to the process' open files.
func (s *server) descriptors(t *testing.T) (dir string, open []os.DirEntry) {
	t.Helper()
	dir = fmt.Sprintf("/proc/%d/fd", s.Cmd.Process.Pid)
	open, err := os.ReadDir(dir)
	if err != nil {
		t.Fatalf("%v: %s", err, s.Log)
	}
	return dir, open
}

// status returns a value in KiB of /proc/PID/status, in bytes.
func (s *server) status(t *testing.T, key string) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.Cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(key + `:\s+(\d+) kB`).FindSubmatch(b)
	if m == nil {
		t.Fatalf("no %s in %s", key, b)
	}
	kib, err := strconv.Atoi(string(m[1]))
	if err != nil {
		t.Fatal(err)
	}
	return kib << 10
}
