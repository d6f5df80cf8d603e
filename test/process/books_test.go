package process

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// TestKillBooks kills mirrors 10 times (CACHALOT_TEST_KILLS) at a random moment of
// concurrent pulls, evictions and resumed downloads. After each restart, and at the end of
// every tenth storm, the metrics match the disk to the byte, and every file matches its
// digest.
func TestKillBooks(t *testing.T) {
	t.Parallel()
	rounds := count(t, "CACHALOT_TEST_KILLS", 10)
	mirrors := min(4, max(1, rounds/10)) // a start waits mostly for its disk
	for i := range mirrors {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			killBooks(t, uint64(i), rounds/mirrors)
		})
	}
}

func killBooks(t *testing.T, seed uint64, rounds int) {
	t.Helper()
	const limit = 2 << 20
	up := upstreamtest.New(t, upstreamtest.Options{})
	random := rand.New(rand.NewPCG(3, seed))
	var blobs []upstreamtest.Content
	for i := range 60 { // about three times the limit
		b := upstreamtest.NewContent("", upstreamtest.Random(uint64(i), 1+random.IntN(200<<10)))
		up.AddBlob("library/app", b)
		blobs = append(blobs, b)
	}
	folder := t.TempDir()
	checked := map[string]time.Time{}
	var evictions, partials, most int
	for round := range rounds {
		s := startConfig(t, basicConfig(folder, up.URL, fmt.Sprintf("max_size: %d", limit)))
		books := s.books(t, folder)
		if books.bytes+books.partial > limit {
			t.Errorf("round %d: %+v is more than max_size", round, books)
		}
		if books.partial > 0 {
			partials++
		}
		most = max(most, books.blobs)
		checkBlobs(t, folder, checked)

		// Two downloads stop at half. A later round resumes them.
		release := make(chan struct{})
		order := random.Perm(len(blobs))
		stuck, others := order[:2], order[2:]
		var faults []*upstreamtest.Scripted
		for _, i := range stuck {
			faults = append(faults, up.Fault(upstreamtest.Match{Op: upstreamtest.GetBlob, Reference: blobs[i].Digest.String()},
				upstreamtest.StallAfter(len(blobs[i].Bytes)/2, release)))
		}
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		var wg sync.WaitGroup
		fetched := make(chan struct{}, len(blobs))
		fetch := func(list []int) {
			for _, i := range list {
				if err := s.fetch(client, blobs[i].Digest); errors.Is(err, errWrongBytes) {
					t.Error(err)
				}
				fetched <- struct{}{}
			}
		}
		for _, i := range stuck {
			wg.Go(func() { fetch([]int{i}) })
		}
		for list := range slices.Chunk(others, 15) {
			wg.Go(func() { fetch(list) })
		}
		for range random.IntN(len(others) / 2) { // the random moment; all would take twice as long
			<-fetched
		}
		if round%10 == 9 { // a start recounts: this checks the counts since the start
			close(release)
			wg.Wait()
			s.books(t, folder)
			s.Kill()
		} else {
			s.Kill()
			close(release)
			wg.Wait()
		}
		for _, f := range faults {
			f.Remove()
		}
		evictions += strings.Count(s.Log.String(), "msg=evicted") + strings.Count(s.Log.String(), `msg="evicted for a download"`)
		if t.Failed() {
			t.Fatalf("round %d: %s", round, s.Log)
		}
	}
	if evictions < rounds/4 || partials < rounds/10 || most < 10 {
		t.Errorf("%d evictions, %d starts with partials, %d blobs at most: too little was tested", evictions, partials, most)
	}
	t.Logf("%d rounds, %d evictions, %d starts with partials, %d blobs at most", rounds, evictions, partials, most)

	s := run(t, folder, up.URL)
	for _, b := range blobs {
		if err := s.fetch(http.DefaultClient, b.Digest); err != nil {
			t.Errorf("%s: %v", b.Digest, err)
		}
	}
	s.await(t, "sync of the last blobs", func() bool { return s.books(t, folder).blobs == len(blobs) })
	if got := s.books(t, folder); got.partial != 0 {
		t.Errorf("in the end %+v", got)
	}
	checkBlobs(t, folder, checked)
	s.Kill()
	if err := os.RemoveAll(filepath.Join(folder, "index")); err != nil {
		t.Fatal(err)
	}
	s = run(t, folder, up.URL)
	s.books(t, folder)
	s.Interrupt(t)
}

// books are the contents of blobs/ and fills/, in bytes of whole blocks.
type books struct {
	blobs          int
	bytes, partial int64
}

// books waits until the metrics match the disk, and returns the values.
func (s *server) books(t *testing.T, folder string) books {
	t.Helper()
	limit := time.After(20 * time.Second)
	for tick := time.NewTicker(10 * time.Millisecond); ; {
		disk, metrics := diskBooks(t, folder), s.metricBooks(t)
		if disk == metrics {
			return disk
		}
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("the disk holds %+v, the metrics say %+v: %s", disk, metrics, s.Log)
		}
	}
}

func diskBooks(t *testing.T, folder string) (b books) {
	t.Helper()
	for name, count := range map[string]func(int64){
		"blobs": func(n int64) { b.blobs++; b.bytes += n },
		"fills": func(n int64) { b.partial += n },
	} {
		err := filepath.WalkDir(filepath.Join(folder, name), func(_ string, e fs.DirEntry, err error) error {
			if err != nil || e.IsDir() {
				return err
			}
			info, err := e.Info()
			if err == nil {
				count((info.Size() + 4095) &^ 4095)
			}
			return err
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // it may be removed in between
			t.Fatal(err)
		}
	}
	return b
}

func (s *server) metricBooks(t *testing.T) books {
	t.Helper()
	m := s.Metrics(t)
	return books{int(m["cachalot_storage_blobs"]), int64(m["cachalot_storage_bytes"]), int64(m["cachalot_storage_partial_bytes"])}
}
