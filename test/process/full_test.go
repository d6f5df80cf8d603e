package process

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cachalot-registry/cachalot/test/cachalotd"
	"github.com/cachalot-registry/cachalot/test/smalldisk"
	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// TestFullDisk fills the disk to the last byte under a running mirror. The mirror still
// serves stored content, also in other repositories, and passes new content through. It
// survives kill -9 and a normal end, with and without its reserve, and stores blobs again
// when there is space.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	dir := smalldisk.New(t, 256)
	folder := filepath.Join(dir, "cachalot")
	up := upstreamtest.New(t, upstreamtest.Options{})
	blob := func(seed uint64, size int) upstreamtest.Content {
		b := upstreamtest.NewContent("", upstreamtest.Random(seed, size))
		up.AddBlob("library/app", b)
		return b
	}
	get := func(s *server, b upstreamtest.Content) {
		t.Helper()
		if err := s.fetch(http.DefaultClient, b.Digest); err != nil {
			t.Errorf("%v: %s", err, s.Log)
		}
	}
	kept := blob(1, 300_000)
	s := start(t, folder, up.URL)
	s.awaitWalk(t) // afterwards, blobs would be evicted for the index if that frees enough
	get(s, kept)
	s.awaitMetric(t, "cachalot_storage_blobs", 1) // the blob is durable shortly after its last byte,
	get(s, kept)                                  // and linked shortly after that
	other := smalldisk.Fill(t, dir)
	for i := range 300 {
		repository := fmt.Sprintf("library/other-%d", i)
		up.AddBlob(repository, kept)
		resp, err := http.Get(s.URL + "/v2/" + repository + "/blobs/" + kept.Digest.String()) //nolint:noctx // loopback
		if err != nil {
			t.Fatalf("%v: %s", err, s.Log)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			t.Fatalf("%s: %s", resp.Status, s.Log)
		}
	}
	get(s, blob(2, 100<<20)) // larger than all stored content, so eviction does not help

	// Links are still known after a kill and after a normal end, with the disk still full.
	up.Forget()
	for _, end := range []func(*server){(*server).Kill, func(s *server) { s.Interrupt(t) }, (*server).Kill} {
		end(s)
		s = start(t, folder, up.URL)
		get(s, kept)
		if asked := up.Requests(); len(asked) != 0 {
			t.Errorf("asked upstream for what is kept: %+v\n%s", asked, s.Log)
		}
	}
	get(s, blob(3, 100<<20))

	// Without the reserve the mirror also ends and starts. It sends one more upstream
	// request, for the link.
	if err := os.Remove(filepath.Join(folder, "reserve")); err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	_ = os.Remove(other)
	other = smalldisk.Fill(t, dir)
	s.Interrupt(t)
	s = start(t, folder, up.URL)
	up.Forget()
	get(s, kept)
	if n := up.Sent(kept.Digest); n != 0 || !strings.Contains(s.Log.String(), "changes stay in memory") {
		t.Errorf("%d bytes fetched again: %s", n, s.Log)
	}
	s.Interrupt(t)
	if err := os.Remove(other); err != nil {
		t.Fatal(err)
	}
	s = start(t, folder, up.URL)
	up.Forget()
	get(s, kept)
	if asked := up.Requests(); len(asked) != 0 {
		t.Errorf("asked upstream for what was known before the disk was full: %+v", asked)
	}
	again := blob(4, 1<<20)
	get(s, again)
	s.Interrupt(t)
	if _, err := os.Stat(filepath.Join(folder, "blobs", "sha256", again.Digest.Encoded()[:2], again.Digest.Encoded())); err != nil {
		t.Error(err)
	}
	if strings.Contains(s.Log.String(), "changes stay in memory") {
		t.Errorf("the index was not read: %s", s.Log)
	}
}

// TestWriteFails: if writes fail, clients still get the blob. If all fail, nothing is
// stored. If some fail, nothing wrong is stored.
func TestWriteFails(t *testing.T) {
	t.Parallel()
	strace := straceOrSkip(t)
	for _, inject := range []string{
		"pwrite64:error=ENOSPC", "pwrite64:error=EIO", "pwrite64:error=EIO:when=2+", "renameat:error=EIO",
	} {
		t.Run(inject, func(t *testing.T) {
			t.Parallel()
			up := upstreamtest.New(t, upstreamtest.Options{})
			blob := upstreamtest.NewContent("", upstreamtest.Random(6, 900_000))
			up.AddBlob("library/app", blob)
			folder := t.TempDir()
			call, _, _ := strings.Cut(inject, ":")
			s := start(t, folder, up.URL, strace, "-f", "-qq", "-e", "trace="+call, "-e", "inject="+inject, "-o", "/dev/null")
			for range 3 {
				if err := s.fetch(http.DefaultClient, blob.Digest); err != nil {
					t.Error(err)
				}
			}
			s.Interrupt(t)
			checkBlobs(t, folder, map[string]time.Time{})
			if strings.Contains(inject, "when") { // strace counts per thread, so a later blob may be stored
				if !strings.Contains(s.Log.String(), "passed through and not stored") {
					t.Error("no write failed")
				}
				return
			}
			nothingKept(t, folder)
		})
	}
}

// TestSecondProcess: a second process on the same folder logs that and ends. The first
// continues, and after its end another can start.
func TestSecondProcess(t *testing.T) {
	t.Parallel()
	up := upstreamtest.New(t, upstreamtest.Options{})
	blob := upstreamtest.NewContent("", upstreamtest.Random(7, 10_000))
	up.AddBlob("library/app", blob)
	folder := t.TempDir()
	first := start(t, folder, up.URL)
	for range 3 {
		second := run(t, folder, up.URL)
		if second.URL != "" || !strings.Contains(second.Log.String(), "another process uses this folder") {
			t.Errorf("the second process: %s", second.Log)
		}
		if err := first.fetch(http.DefaultClient, blob.Digest); err != nil {
			t.Error(err)
		}
	}
	first.Kill()
	if err := start(t, folder, up.URL).fetch(http.DefaultClient, blob.Digest); err != nil {
		t.Error(err)
	}
}

// awaitDescriptors waits until ok accepts the number of open descriptors.
func (s *server) awaitDescriptors(t *testing.T, what string, ok func(open int) bool) {
	t.Helper()
	s.await(t, what, func() bool {
		_, open := s.descriptors(t)
		return ok(len(open))
	})
}

// TestDescriptors: clients take all descriptors of the process. It survives, and serves
// again when they leave.
func TestDescriptors(t *testing.T) {
	t.Parallel()
	up := upstreamtest.New(t, upstreamtest.Options{})
	blob := func(seed uint64) upstreamtest.Content {
		b := upstreamtest.NewContent("", upstreamtest.Random(seed, 100_000))
		up.AddBlob("library/app", b)
		return b
	}
	kept := blob(1)
	const limit = 64
	s := start(t, t.TempDir(), up.URL, "sh", "-c", fmt.Sprintf(`ulimit -n %d; exec "$@"`, limit), "sh")
	client := &http.Client{Transport: &http.Transport{MaxConnsPerHost: 1}} // it is already connected
	if err := s.fetch(client, kept.Digest); err != nil {
		t.Fatal(err)
	}
	var idle []net.Conn
	for range 2 * limit {
		c, err := net.Dial("tcp", strings.TrimPrefix(s.URL, "http://")) //nolint:noctx // loopback
		if err != nil {
			t.Fatal(err)
		}
		idle = append(idle, c)
	}
	s.awaitDescriptors(t, "want of descriptors", func(open int) bool { return open >= limit })
	for _, b := range []upstreamtest.Content{blob(10), kept} { // all descriptors are taken: an error, but never wrong bytes
		if err := s.fetch(client, b.Digest); errors.Is(err, errWrongBytes) {
			t.Error(err)
		}
	}
	for _, c := range idle {
		_ = c.Close()
	}
	// This connection is accepted after all others.
	resp, err := cachalotd.Client().Get(s.URL + "/v2/") //nolint:noctx // loopback
	if err != nil {
		t.Fatalf("%v: %s", err, s.Log)
	}
	_ = resp.Body.Close()
	s.awaitDescriptors(t, "descriptors to spare", func(open int) bool { return open < limit*3/4 })
	for _, b := range []upstreamtest.Content{kept, blob(2), blob(10)} {
		if err := s.fetch(http.DefaultClient, b.Digest); err != nil {
			t.Errorf("%v: %s", err, s.Log)
		}
	}
	s.Interrupt(t)
}

// TestDescriptorsOfDownloads: downloads take all descriptors of the process, each a
// connection to the registry and a file. It survives, clients get no wrong bytes, and it
// serves all when they end.
func TestDescriptorsOfDownloads(t *testing.T) {
	t.Parallel()
	up := upstreamtest.New(t, upstreamtest.Options{})
	kept := upstreamtest.NewContent("", upstreamtest.Random(1, 100_000))
	up.AddBlob("library/app", kept)
	const limit = 100
	s := start(t, t.TempDir(), up.URL, "sh", "-c", fmt.Sprintf(`ulimit -n %d; exec "$@"`, limit), "sh")
	client := &http.Client{Transport: &http.Transport{MaxConnsPerHost: 1}} // it is already connected
	if err := s.fetch(client, kept.Digest); err != nil {
		t.Fatal(err)
	}
	s.awaitMetric(t, "cachalot_storage_blobs", 1) // else its file could not get its name any more
	release := make(chan struct{})
	var blobs []upstreamtest.Content
	var wg sync.WaitGroup
	for i := range 50 {
		b := upstreamtest.NewContent("", upstreamtest.Random(uint64(100+i), 100_000))
		up.AddBlob("library/app", b)
		up.Fault(upstreamtest.Match{Op: upstreamtest.GetBlob, Reference: b.Digest.String(), Times: 1}, upstreamtest.StallAfter(50_000, release))
		blobs = append(blobs, b)
		wg.Go(func() {
			if err := s.fetch(&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}, b.Digest); errors.Is(err, errWrongBytes) {
				t.Error(err)
			}
		})
	}
	s.await(t, "want of descriptors", func() bool { return strings.Contains(s.Log.String(), "too many open files") })
	if err := s.fetch(client, kept.Digest); errors.Is(err, errWrongBytes) {
		t.Error(err)
	}
	close(release)
	wg.Wait()
	up.Forget()
	for _, b := range append(blobs, kept) {
		s.awaitMetric(t, "cachalot_fills_in_progress", 0) // a client has all bytes before they are on disk
		if err := s.fetch(http.DefaultClient, b.Digest); err != nil {
			t.Errorf("%v: %s", err, s.Log)
		}
	}
	if n := up.Sent(kept.Digest); n != 0 {
		t.Errorf("%d bytes of what is kept were fetched", n)
	}
	s.Interrupt(t)
	if strings.Contains(s.Log.String(), "panic") {
		t.Error(s.Log)
	}
}
