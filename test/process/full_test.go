package process

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// smallDisk is a file system of so many MiB of its own. It is unmounted once
// what the test starts after it has ended.
func smallDisk(t *testing.T, mib int) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%dm", mib)); err != nil {
		t.Skipf("a full disk needs a file system of its own, and so root: mount: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// fillDisk is somebody else's file, which takes the last byte.
func fillDisk(t *testing.T, dir string) (name string) {
	t.Helper()
	name = filepath.Join(dir, "other")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	for chunk := make([]byte, 1<<20); err == nil; {
		_, err = f.Write(chunk)
	}
	var fs unix.Statfs_t
	if serr := unix.Statfs(dir, &fs); !errors.Is(err, unix.ENOSPC) || serr != nil || fs.Bavail != 0 {
		t.Fatalf("the disk is not full: %v, %v, %d blocks free", err, serr, fs.Bavail)
	}
	return name
}

// TestFullDisk fills the disk to the last byte under a running mirror. It goes
// on serving what it has and passing on what is new, records where what it has
// was seen as long as its log has room, survives kill -9 and an orderly end,
// and keeps blobs again when there is space.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	dir := smallDisk(t, 400)
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
			t.Errorf("%v: %s", err, s.log)
		}
	}
	kept := blob(1, 300_000)
	s := start(t, folder, up.URL)
	get(s, kept)
	other := fillDisk(t, dir)
	for i := range 300 {
		repository := fmt.Sprintf("library/other-%d", i)
		up.AddBlob(repository, kept)
		resp, err := http.Get(s.url + "/v2/" + repository + "/blobs/" + kept.Digest.String()) //nolint:noctx // loopback
		if err != nil {
			t.Fatalf("%v: %s", err, s.log)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			t.Fatalf("%s: %s", resp.Status, s.log)
		}
	}
	get(s, blob(2, 200<<20)) // all of what is kept would go in vain

	// What is known of where blobs were seen is still known after a kill, and
	// after an orderly end, with the disk as full.
	up.Forget()
	for _, end := range []func(*server){(*server).kill, func(s *server) { s.interrupt(t) }, (*server).kill} {
		end(s)
		s = start(t, folder, up.URL)
		get(s, kept)
		if asked := up.Requests(); len(asked) != 0 {
			t.Errorf("asked upstream for what is kept: %+v\n%s", asked, s.log)
		}
	}
	get(s, blob(3, 200<<20))
	if err := os.Remove(other); err != nil {
		t.Fatal(err)
	}
	again := blob(4, 1<<20)
	get(s, again)
	s.interrupt(t)
	if _, err := os.Stat(filepath.Join(folder, "blobs", "sha256", again.Digest.Encoded()[:2], again.Digest.Encoded())); err != nil {
		t.Error(err)
	}
	if strings.Contains(s.log.String(), "kept in memory") {
		t.Errorf("the index was not read: %s", s.log)
	}
}
