package process

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/cachalot-registry/cachalot/storage"
	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// TestDamage damages an index's files at random, 12 times (CACHALOT_TEST_DAMAGES). The
// mirror opens or rebuilds it, and serves. badger may crash two starts in a row, not three.
func TestDamage(t *testing.T) {
	t.Parallel()
	up := upstreamtest.New(t, upstreamtest.Options{})
	blob := upstreamtest.NewContent("", upstreamtest.Random(5, 100_000))
	up.AddBlob("library/app", blob)
	closed, killed := t.TempDir(), t.TempDir()
	s := start(t, closed, up.URL)
	if err := s.fetch(http.DefaultClient, blob.Digest); err != nil {
		t.Fatal(err)
	}
	s.Interrupt(t)
	// Enough records for several tables and a log of badger.
	store, err := storage.Open(storage.Config{Path: closed, MaxFills: 1}, storage.NewMetrics(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	for i := range 20_000 {
		sc := storage.Scope{Upstream: "docker.io", Repository: "library/" + digest.FromString(fmt.Sprint(i)).Encoded()}
		if err := store.PutLink(sc, blob.Digest, "application/x-test"); err != nil {
			t.Fatal(err)
		}
	}
	copySparse(t, killed, closed)
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}

	var mu sync.Mutex // guards the counters
	var whole, rebuilt, died int
	seeds := make(chan uint64)
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for seed := range seeds {
				dir := filepath.Join(t.TempDir(), "folder")
				copySparse(t, dir, []string{closed, killed}[seed%2])
				flip := seed%20 == 0 // damaged content only, which badger finds only when it reads all of it
				var what string
				if flip {
					what = flipContent(t, filepath.Join(dir, "index"), seed/20)
				} else {
					what = damage(t, rand.New(rand.NewPCG(seed, 1)), filepath.Join(dir, "index"))
				}
				starts, log := survive(t, dir, up.URL, blob.Digest, fmt.Sprint(seed, ": ", what))
				_ = os.RemoveAll(dir)
				mu.Lock()
				died += starts - 1
				if strings.Contains(log, "starting an empty index") {
					rebuilt++
				} else {
					whole++
					if flip && !strings.Contains(log, "Ignoring table") {
						t.Errorf("%d: %s: not found: %s", seed, what, log)
					}
				}
				mu.Unlock()
			}
		})
	}
	up.Forget()
	for seed := range uint64(count(t, "CACHALOT_TEST_DAMAGES", 12)) {
		seeds <- seed
	}
	close(seeds)
	wg.Wait()
	t.Logf("%d opened, %d rebuilt; %d starts died", whole, rebuilt, died)
	for _, q := range up.Requests() {
		if q.Sent > 0 && q.Op == upstreamtest.GetBlob {
			t.Errorf("fetched again: %+v", q)
		}
	}
}

// survive starts the mirror with a damaged folder until it serves. It returns the number of
// starts and the last one's log.
func survive(t *testing.T, dir, upstream string, d digest.Digest, what string) (starts int, log string) {
	t.Helper()
	for starts = 1; ; starts++ {
		s := run(t, dir, upstream)
		if s.URL == "" && starts < 3 {
			continue
		}
		if s.URL == "" {
			t.Errorf("%s: dead after %d starts: %s", what, starts, s.Log)
			return starts, s.Log.String()
		}
		if err := s.fetch(http.DefaultClient, d); err != nil {
			t.Errorf("%s: %v: %s", what, err, s.Log)
		}
		s.Interrupt(t)
		for _, bad := range []string{"stay in memory", "cannot write index", "panic", "fatal error"} {
			if strings.Contains(s.Log.String(), bad) {
				t.Errorf("%s: %s", what, s.Log)
			}
		}
		return starts, s.Log.String()
	}
}

// copySparse copies a storage folder without its reserve, and without the many zeroes at
// the end of badger's files.
func copySparse(t *testing.T, to, from string) {
	t.Helper()
	err := filepath.WalkDir(from, func(path string, e fs.DirEntry, err error) error {
		name := filepath.Join(to, strings.TrimPrefix(path, from))
		switch {
		case err != nil:
			return err
		case e.IsDir():
			return os.MkdirAll(name, 0o700)
		case e.Name() == "reserve":
			return nil
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return errors.Join(os.WriteFile(name, bytes.TrimRight(b, "\x00"), 0o600), os.Truncate(name, int64(len(b))))
	})
	if err != nil {
		t.Error(err)
	}
}

// flipContent flips a bit of an index's largest table. n selects a twelfth of the table.
func flipContent(t *testing.T, dir string, n uint64) string {
	t.Helper()
	var largest string
	var content []byte
	tables, err := filepath.Glob(filepath.Join(dir, "*.sst"))
	for _, name := range tables {
		b, rerr := os.ReadFile(name)
		err = errors.Join(err, rerr)
		if len(b) > len(content) {
			largest, content = name, b
		}
	}
	if err != nil || len(content) < 1<<20 {
		t.Errorf("the largest table has %d bytes, %v", len(content), err)
		return ""
	}
	at := len(content) / 12 * (int(n)%11 + 1)
	content[at] ^= 1
	if err := os.WriteFile(largest, content, 0o600); err != nil {
		t.Error(err)
	}
	return fmt.Sprintf("%s: bit flipped at %d of %d", filepath.Base(largest), at, len(content))
}

// damage damages one of an index's files, and returns how.
func damage(t *testing.T, random *rand.Rand, dir string) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(files) == 0 {
		t.Error("no index: ", err)
		return ""
	}
	kinds := map[string][]string{} // each kind has the same chance, although one has many files
	var names []string
	for _, f := range files {
		kind := filepath.Ext(f) + filepath.Base(f)[:1]
		if kinds[kind] == nil {
			names = append(names, kind)
		}
		kinds[kind] = append(kinds[kind], f)
	}
	kind := kinds[names[random.IntN(len(names))]]
	name := kind[random.IntN(len(kind))]
	b, err := os.ReadFile(name)
	if err != nil {
		t.Error(err)
	}
	var how string
	switch random.IntN(7) {
	case 0, 1:
		n := random.IntN(len(b) + 1)
		how, err = fmt.Sprintf("truncated at %d of %d", n, len(b)), os.Truncate(name, int64(n))
	case 2, 3, 4:
		reach := len(b)
		if random.IntN(2) == 0 {
			reach = min(reach, 100) // headers are more critical
		}
		n := 1 + random.IntN(20)
		for range n {
			if reach > 0 {
				b[random.IntN(reach)] ^= byte(1 + random.IntN(255))
			}
		}
		how, err = fmt.Sprintf("%d bytes flipped below %d", n, reach), os.WriteFile(name, b, 0o600)
	case 5:
		how, err = "a folder", os.Remove(name)
		if err == nil {
			err = os.Mkdir(name, 0o700)
		}
	case 6:
		how, err = "zeroes", os.WriteFile(name, make([]byte, len(b)), 0o600)
	}
	if err != nil {
		t.Error(err)
	}
	return filepath.Base(name) + ": " + how
}
