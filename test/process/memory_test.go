package process

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cachalot-registry/cachalot/test/cachalotd"
	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// TestStorm: 20 clients (CACHALOT_TEST_CLIENTS) pull one cold image of 64 MiB. A third of
// them leaves half-way, another third requests ranges, and the registry breaks off three
// times. Each byte is fetched once, and the process stays below 100 MiB (I6, I7).
func TestStorm(t *testing.T) {
	t.Parallel()
	up := upstreamtest.New(t, upstreamtest.Options{Auth: upstreamtest.Bearer})
	s := start(t, t.TempDir(), up.URL)
	storm(t, s, up)
	peak := s.status(t, "VmHWM")
	if peak > 100<<20 {
		t.Errorf("peak memory %d MiB", peak>>20)
	}
	t.Logf("peak memory %d MiB", peak>>20)
}

// TestMemoryLimit is the same storm in a cgroup of 100 MiB, page cache included. Memory is
// reclaimed, and no process is killed.
func TestMemoryLimit(t *testing.T) {
	t.Parallel()
	const limit = 100 << 20
	folder := t.TempDir()
	var fs unix.Statfs_t
	if err := unix.Statfs(folder, &fs); err != nil || fs.Type == unix.TMPFS_MAGIC {
		t.Skip("the files of a tmpfs are memory that cannot be reclaimed; set TMPDIR to a folder on a disk")
	}
	g := cachalotd.NewCgroup(t, limit)
	up := upstreamtest.New(t, upstreamtest.Options{Auth: upstreamtest.Bearer})
	s := start(t, folder, up.URL, g.Wrap()...)
	storm(t, s, up)
	peak, killed := g.Read(t)
	// A peak below 64 MiB: it ran elsewhere. The kernel may exceed the limit slightly.
	if killed != 0 || peak < 64<<20 || peak > limit*105/100 {
		t.Errorf("%d processes killed, peak of the cgroup %d MiB", killed, peak>>20)
	}
	t.Logf("peak of the cgroup %d MiB, of the process %d MiB", peak>>20, s.status(t, "VmHWM")>>20)
	s.Interrupt(t)
}

func storm(t *testing.T, s *server, up *upstreamtest.Registry) {
	t.Helper()
	img := up.AddImage("library/app", "1", upstreamtest.NewImage(2, 64<<20, 1000))
	layer := img.Layers[0]
	for i, cut := range []int{5 << 20, 1 << 19, 1 << 18} { // the shortest part has 1 MiB
		up.Fault(upstreamtest.Match{Op: upstreamtest.GetBlob, Reference: layer.Digest.String(), After: i, Times: 1}, upstreamtest.CutAfter(cut))
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	get := func(path string, want []byte, n int) {
		if err := compare(t.Context(), client, s.URL+"/v2/library/app/"+path, want, 0, n); err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
	blob := func(c upstreamtest.Content) string { return "blobs/" + c.Digest.String() }
	var wg sync.WaitGroup
	clients := count(t, "CACHALOT_TEST_CLIENTS", 20)
	for i := range clients {
		wg.Go(func() {
			get("manifests/1", img.Index.Bytes, -1)
			get("manifests/"+img.Manifest.Digest.String(), img.Manifest.Bytes, -1)
			get(blob(img.Config), img.Config.Bytes, -1)
			get(blob(img.Layers[1]), img.Layers[1].Bytes, -1)
			switch i % 3 {
			case 0:
				get(blob(layer), layer.Bytes, len(layer.Bytes)/2)
			case 1:
				from := i * len(layer.Bytes) / clients
				if err := compare(t.Context(), client, s.URL+"/v2/library/app/"+blob(layer), layer.Bytes, from, -1); err != nil {
					t.Errorf("from %d: %v", from, err)
				}
			default:
				get(blob(layer), layer.Bytes, -1)
			}
		})
	}
	wg.Wait()
	if times := float64(up.SentAll()) / float64(img.Size()); times < 0.9995 || times > 1.0005 {
		t.Errorf("%.4f x the image fetched", times)
	}
	got := up.Counts()
	if got[upstreamtest.Token] != 1 || got[upstreamtest.HeadManifest] > 1 || got[upstreamtest.GetManifest] != 2 || got[upstreamtest.GetBlob] < 6 {
		t.Errorf("upstream requests: %v", got)
	}
}

// compare requests a URL and compares n bytes of the body with want from the offset on; -1:
// all. Then it leaves.
func compare(ctx context.Context, client *http.Client, url string, want []byte, from, n int) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return err
	}
	status := http.StatusOK
	if from > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", from))
		status = http.StatusPartialContent
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != status {
		return fmt.Errorf("status %d", resp.StatusCode)
	}
	want = want[from:]
	buf := make([]byte, 32<<10)
	for n < 0 || len(want) > 0 && n > 0 {
		got, err := resp.Body.Read(buf)
		if got > len(want) || !bytes.Equal(buf[:got], want[:got]) {
			return errWrongBytes
		}
		want = want[got:]
		if n > 0 {
			n = max(0, n-got)
		}
		switch {
		case err == io.EOF && len(want) == 0:
			return nil
		case err != nil:
			return fmt.Errorf("%d bytes before the end: %w", len(want), err)
		}
	}
	return nil
}
