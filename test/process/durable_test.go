package process

import (
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

func straceOrSkip(t *testing.T) string {
	t.Helper()
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Skip("strace watches and injects system calls, and is not installed: ", err)
	}
	if out, err := exec.CommandContext(t.Context(), strace, "-f", "-o", "/dev/null", "true").CombinedOutput(); err != nil {
		t.Skipf("strace may trace nothing here: %v: %s", err, out)
	}
	return strace
}

// TestDurable traces the system calls for a blob: the file is synced before it gets its
// name, and its folder afterwards (I2).
func TestDurable(t *testing.T) {
	t.Parallel()
	strace := straceOrSkip(t)
	up := upstreamtest.New(t, upstreamtest.Options{})
	blob := upstreamtest.NewContent("", upstreamtest.Random(3, 300_000))
	up.AddBlob("library/app", blob)
	folder, trace := t.TempDir(), filepath.Join(t.TempDir(), "trace")
	s := start(t, folder, up.URL, strace, "-f", "-qq", "-y", "-e", "trace=fsync,fdatasync,rename,renameat,renameat2", "-o", trace)
	if err := s.fetch(http.DefaultClient, blob.Digest); err != nil {
		t.Fatal(err)
	}
	// It is in blobs/ before the process ends: a normal end waits for commits.
	s.Interrupt(t)
	b, err := os.ReadFile(trace)
	if err != nil {
		t.Fatal(err)
	}
	hex := blob.Digest.Encoded()
	var order []string
	for line := range strings.Lines(string(b)) {
		switch {
		case regexp.MustCompile(`fsync\(\d+<\S*/fills/sha256-` + hex).MatchString(line):
			order = append(order, "sync file")
		case strings.Contains(line, "rename") && strings.Contains(line, hex):
			order = append(order, "rename")
		case regexp.MustCompile(`fsync\(\d+<\S*/blobs/sha256/` + hex[:2] + `>`).MatchString(line):
			order = append(order, "sync folder")
		case regexp.MustCompile(`fsync\(\d+<\S*/blobs/sha256>`).MatchString(line):
			order = append(order, "sync parent")
		}
	}
	if got := strings.Join(order, ", "); got != "sync file, sync parent, rename, sync folder" {
		t.Errorf("%s\n%s", got, b)
	}
}

// TestSyncFails: if the disk cannot sync a blob, clients get the blob and it is not stored.
func TestSyncFails(t *testing.T) {
	t.Parallel()
	strace := straceOrSkip(t)
	up := upstreamtest.New(t, upstreamtest.Options{})
	blob := upstreamtest.NewContent("", upstreamtest.Random(4, 300_000))
	up.AddBlob("library/app", blob)
	folder := t.TempDir()
	s := start(t, folder, up.URL, strace, "-f", "-qq", "-e", "trace=fsync", "-e", "inject=fsync:error=EIO", "-o", "/dev/null")
	for range 3 {
		if err := s.fetch(http.DefaultClient, blob.Digest); err != nil {
			t.Error(err)
		}
	}
	s.Interrupt(t)
	nothingKept(t, folder)
	if !strings.Contains(s.Log.String(), "cannot store blob") {
		t.Error("the log does not say so")
	}
}

// TestSyncFailsOnce: a file whose sync failed is removed. A second sync proves nothing: the
// kernel may have dropped the dirty pages.
func TestSyncFailsOnce(t *testing.T) {
	t.Parallel()
	strace := straceOrSkip(t)
	up := upstreamtest.New(t, upstreamtest.Options{})
	blob := upstreamtest.NewContent("", upstreamtest.Random(8, 300_000))
	up.AddBlob("library/app", blob)
	folder := t.TempDir()
	partial := partialFile(folder, blob.Digest)
	s := start(t, folder, up.URL, strace, "-f", "-qq", "-P", partial, "-e", "trace=fsync", "-e", "inject=fsync:error=EIO:when=1", "-o", "/dev/null")
	if err := s.fetch(http.DefaultClient, blob.Digest); err != nil {
		t.Error(err)
	}
	s.Interrupt(t)
	nothingKept(t, folder)
	if !strings.Contains(s.Log.String(), "cannot store blob") {
		t.Error("the sync did not fail")
	}
}

// nothingKept checks that a storage folder has no blobs and no downloads.
func nothingKept(t *testing.T, folder string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(folder, "*", "sha256*", "*", "*"))
	if left, rerr := os.ReadDir(filepath.Join(folder, "fills")); len(files)+len(left) > 0 || err != nil || rerr != nil {
		t.Errorf("kept: %v %v, %v %v", files, left, err, rerr)
	}
}
