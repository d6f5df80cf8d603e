package process

import (
	"errors"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// TestKill kills the mirror at a random moment of a storm, 6 times, or a twentieth of
// CACHALOT_TEST_KILLS. After each restart every file in blobs/ matches its digest, and a
// broken download is resumed, not fetched again (I2).
func TestKill(t *testing.T) {
	t.Parallel()
	up := upstreamtest.New(t, upstreamtest.Options{})
	folder := t.TempDir()
	checked := map[string]time.Time{}
	var all []upstreamtest.Content
	random := rand.New(rand.NewPCG(1, 2))
	resumable := 0
	for round := range max(6, count(t, "CACHALOT_TEST_KILLS", 1)/20) {
		s := start(t, folder, up.URL)
		checkBlobs(t, folder, checked)
		release := make(chan struct{})
		var blobs []upstreamtest.Content
		for i := range 6 {
			b := upstreamtest.NewContent("", upstreamtest.Random(uint64(round*100+i), 1000+random.IntN(2<<20)))
			up.AddBlob("library/app", b)
			blobs = append(blobs, b)
		}
		// One of them cannot finish before the kill.
		stuck := up.Fault(upstreamtest.Match{Op: upstreamtest.GetBlob, Reference: blobs[0].Digest.String()},
			upstreamtest.StallAfter(len(blobs[0].Bytes)/2, release))
		all = append(all, blobs...)

		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		var wg sync.WaitGroup
		fetched := make(chan struct{}, 4*len(blobs))
		for range 4 {
			for _, i := range random.Perm(len(blobs)) {
				wg.Go(func() {
					if err := s.fetch(client, blobs[i].Digest); errors.Is(err, errWrongBytes) {
						t.Error(err)
					}
					fetched <- struct{}{}
				})
			}
		}
		for range random.IntN(4 * (len(blobs) - 1)) { // the random moment
			<-fetched
		}
		s.Kill()
		close(release)
		stuck.Remove()
		wg.Wait()
		if info, err := os.Stat(partialFile(folder, blobs[0].Digest)); err == nil && info.Size() > 0 {
			resumable++
		}
	}
	s := start(t, folder, up.URL)
	checkBlobs(t, folder, checked)
	up.Forget()
	for _, b := range all {
		if err := s.fetch(http.DefaultClient, b.Digest); err != nil {
			t.Errorf("%s: %v", b.Digest, err)
		}
	}
	resumed := 0
	for _, q := range up.Requests() {
		if q.Header.Get("Range") != "" && q.Status == http.StatusPartialContent {
			resumed++
		}
	}
	if resumable == 0 || resumed < resumable {
		t.Errorf("%d partial downloads were left, %d were resumed", resumable, resumed)
	}
	t.Logf("%d blobs, %d partial downloads left by kills, %d resumed", len(all), resumable, resumed)
	checkBlobs(t, folder, checked)
	s.Kill()
}

// checkBlobs hashes the files that are not yet in checked, and reports whether they match
// their digests.
func checkBlobs(t *testing.T, folder string, checked map[string]time.Time) (whole bool) {
	t.Helper()
	whole = true
	err := filepath.WalkDir(filepath.Join(folder, "blobs"), func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		if checked[path].Equal(info.ModTime()) { // else it was evicted and stored again
			return nil
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer func() { _ = f.Close() }()
		d, err := digest.FromReader(f)
		if err != nil {
			return err
		}
		if d.Encoded() != e.Name() {
			t.Errorf("%s holds %s", path, d)
			whole = false
		}
		checked[path] = info.ModTime()
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	return whole && err == nil
}
