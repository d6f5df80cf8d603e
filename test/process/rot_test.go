package process

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/cachalot-registry/cachalot/test/cachalotd"
	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

func blobFile(folder string, d digest.Digest) string {
	return filepath.Join(folder, "blobs", "sha256", d.Encoded()[:2], d.Encoded())
}

func quarantineFile(folder string, d digest.Digest) string {
	return filepath.Join(folder, "quarantine", "sha256-"+d.Encoded())
}

// rotten are ways in which a stored blob is damaged.
func rotten() map[string]func([]byte) []byte {
	return map[string]func([]byte) []byte{
		"flipped":  func(b []byte) []byte { b[len(b)/2] ^= 1; return b },
		"zeroed":   func(b []byte) []byte { return make([]byte, len(b)) },
		"too long": func(b []byte) []byte { return append(b, 'x') },
		"cut":      func(b []byte) []byte { return b[:len(b)/2] },
		"emptied":  func([]byte) []byte { return nil },
	}
}

// rot damages a stored blob in place.
func rot(t *testing.T, folder string, d digest.Digest, change func([]byte) []byte) (damaged []byte) {
	t.Helper()
	b, err := os.ReadFile(blobFile(folder, d))
	if err != nil {
		t.Fatal(err)
	}
	damaged = change(b)
	if err := os.WriteFile(blobFile(folder, d), damaged, 0o600); err != nil {
		t.Fatal(err)
	}
	return damaged
}

// fetchedOnce sends requests of ten clients at once. Each gets the right bytes, with one download.
func (s *server) fetchedOnce(t *testing.T, up *upstreamtest.Registry, blob upstreamtest.Content) {
	t.Helper()
	up.Forget()
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			if err := s.fetch(http.DefaultClient, blob.Digest); err != nil {
				t.Errorf("%v: %s", err, s.Log)
			}
		})
	}
	wg.Wait()
	if n := up.Count(upstreamtest.GetBlob); n != 1 || up.Sent(blob.Digest) != blob.Size {
		t.Errorf("%d downloads, %d bytes of a blob of %d", n, up.Sent(blob.Digest), blob.Size)
	}
}

// verify runs `cachalot verify`, wrapped or not, and returns its exit code.
func (s *server) verify(t *testing.T, flags string, wrap ...string) (code int, stdout string) {
	t.Helper()
	args := append(append(wrap, cachalotd.Binary(t), "verify", "--config", s.Config), strings.Fields(flags)...)
	cmd := exec.CommandContext(t.Context(), args[0], args[1:]...)
	out, err := cmd.Output()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		t.Logf("verify: %s", exit.Stderr)
	} else if err != nil {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), string(out)
}

// TestRot damages stored blobs of a running mirror in several ways. The next request, the
// scrub or `cachalot verify` finds them. Each is downloaded again once, and the damaged
// file is in quarantine.
func TestRot(t *testing.T) {
	t.Parallel()
	for _, finder := range []string{"request", "scrub", "verify", "request after a start"} {
		t.Run(finder, func(t *testing.T) {
			t.Parallel()
			up := upstreamtest.New(t, upstreamtest.Options{})
			ways, blobs := rotten(), map[string]upstreamtest.Content{}
			for name := range ways {
				if strings.HasPrefix(finder, "request") && (name == "flipped" || name == "zeroed") {
					continue // the length is right: served until a full read finds the damage
				}
				blobs[name] = upstreamtest.NewContent("", upstreamtest.Random(uint64(len(blobs)), 300_000))
				up.AddBlob("library/app", blobs[name])
			}
			folder := t.TempDir()
			config := basicConfig(folder, up.URL, "scrub_every: 0s")
			if finder == "scrub" {
				config = basicConfig(folder, up.URL, "scrub_every: 1s")
			}
			s := startConfig(t, config)
			for _, blob := range blobs {
				if err := s.fetch(http.DefaultClient, blob.Digest); err != nil {
					t.Fatalf("%v: %s", err, s.Log)
				}
			}
			s.Interrupt(t) // waits for the end of the downloads
			s = startConfig(t, config)
			s.awaitWalk(t)
			damaged := map[string][]byte{}
			for name, blob := range blobs {
				damaged[name] = rot(t, folder, blob.Digest, ways[name])
			}
			switch finder {
			case "verify":
				if code, out := s.verify(t, "--dry-run"); code != 1 || strings.Count(out, "left where it is") != len(blobs) {
					t.Errorf("verify --dry-run ends with %d: %s", code, out)
				}
				code, out := s.verify(t, "")
				for name, blob := range blobs {
					if code != 1 || !strings.Contains(out, quarantineFile(folder, blob.Digest)) {
						t.Errorf("%s: verify ends with %d: %s", name, code, out)
					}
				}
			case "request after a start":
				s.Interrupt(t)
				s = startConfig(t, config)
			}
			for name, blob := range blobs {
				if finder == "scrub" {
					s.awaitFile(t, quarantineFile(folder, blob.Digest))
				}
				s.fetchedOnce(t, up, blob)
				if b, err := os.ReadFile(quarantineFile(folder, blob.Digest)); err != nil || !bytes.Equal(b, damaged[name]) {
					t.Errorf("%s: in quarantine %d bytes of %d, %v", name, len(b), len(damaged[name]), err)
				}
				s.awaitFile(t, blobFile(folder, blob.Digest))
			}
			if code, out := s.verify(t, ""); code != 0 {
				t.Errorf("verify ends with %d after all: %s", code, out)
			}
			up.Forget()
			for name, blob := range blobs {
				if err := s.fetch(http.DefaultClient, blob.Digest); err != nil || len(up.Requests()) > 0 {
					t.Errorf("%s: %v, %+v", name, err, up.Requests())
				}
			}
			if got := s.Metrics(t)["cachalot_quarantined_blobs_total"]; finder != "verify" && got != float64(len(blobs)) {
				t.Errorf("quarantined_blobs_total %v", got)
			}
			s.Interrupt(t)
			checkBlobs(t, folder, map[string]time.Time{})
		})
	}
}

// await waits until ok returns true.
func (s *server) await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	late := time.NewTimer(time.Minute)
	defer late.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-late.C:
			t.Fatalf("no %s: %s", what, s.Log)
		}
	}
}

// awaitWalk waits until the check of the disk after the start is done.
func (s *server) awaitWalk(t *testing.T) {
	t.Helper()
	s.await(t, "walk of the disk", func() bool { return strings.Contains(s.Log.String(), "index checked against the disk") })
}

func (s *server) awaitFile(t *testing.T, name string) {
	t.Helper()
	s.await(t, name, func() bool { _, err := os.Stat(name); return err == nil })
}

// injected counts the calls that strace failed. Its "when" counts per thread.
func injected(t *testing.T, trace string) int {
	t.Helper()
	b, err := os.ReadFile(trace)
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Count(b, []byte("(INJECTED)"))
}

// failingRead describes the reads of a blob's file that strace fails.
type failingRead struct {
	calls string
	when  string
	stays bool // the file is intact
}

// TestReadFails: if the disk cannot read a stored blob, the response breaks off, and the
// next request downloads the blob again once. A blob that is readable after all stays.
func TestReadFails(t *testing.T) {
	t.Parallel()
	strace := straceOrSkip(t)
	for name, tc := range map[string]failingRead{
		"at the start":    {calls: "sendfile,read"},
		"in the midst":    {calls: "sendfile,read", when: ":when=2+"},
		"once":            {calls: "sendfile", stays: true},
		"once on opening": {calls: "openat", when: ":when=1", stays: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			// strace counts per thread: if several threads opened the file, the first call
			// of each failed.
			for tries := 1; !readFails(t, strace, tc) && !t.Failed(); tries++ {
				if tries == 20 {
					t.Errorf("not once in %d tries did one call alone fail", tries)
				}
			}
		})
	}
}

// keptBlob is a blob of a registry, and the folder of a stopped mirror that stores it.
func keptBlob(t *testing.T, size int) (up *upstreamtest.Registry, blob upstreamtest.Content, folder string) {
	t.Helper()
	up, blob, folder = upstreamtest.New(t, upstreamtest.Options{}), upstreamtest.NewContent("", upstreamtest.Random(9, size)), t.TempDir()
	up.AddBlob("library/app", blob)
	s := start(t, folder, up.URL)
	if err := s.fetch(http.DefaultClient, blob.Digest); err != nil {
		t.Fatal(err)
	}
	s.Interrupt(t)
	return up, blob, folder
}

// readFails reports whether only the intended calls failed.
func readFails(t *testing.T, strace string, tc failingRead) bool {
	t.Helper()
	up, blob, folder := keptBlob(t, 32<<20)
	file, trace := blobFile(folder, blob.Digest), filepath.Join(t.TempDir(), "trace")
	s := start(t, folder, up.URL, strace, "-f", "-qq", "-P", file, "-e", "trace="+tc.calls,
		"-e", fmt.Sprintf("inject=%s:error=EIO%s", tc.calls, tc.when), "-o", trace)
	up.Forget()
	err := s.fetch(http.DefaultClient, blob.Digest)
	if errors.Is(err, errWrongBytes) || (err == nil) != (tc.calls == "openat") {
		t.Errorf("%v: %s", err, s.Log)
	}
	if tc.when == ":when=2+" {
		// strace counts per thread: the check at the break may succeed, and then the whole
		// file is read in the background.
		s.awaitFile(t, quarantineFile(folder, blob.Digest))
	}
	if !tc.stays {
		// The new file has the same name, and strace fails its reads too. A reader of the
		// fill uses pread64.
		if err := s.fetch(http.DefaultClient, blob.Digest); err != nil {
			t.Errorf("%v: %s", err, s.Log)
		}
	}
	if tc.when == ":when=1" && injected(t, trace) > 1 {
		s.Interrupt(t)
		return false
	}
	want := 1
	if tc.stays {
		want = 0
	}
	if n := up.Count(upstreamtest.GetBlob); n != want || up.Sent(blob.Digest) != int64(want)*blob.Size {
		t.Errorf("%d downloads, %d bytes: %s", n, up.Sent(blob.Digest), s.Log)
	}
	s.Interrupt(t)
	if _, err := os.Stat(quarantineFile(folder, blob.Digest)); (err == nil) == tc.stays {
		t.Errorf("quarantine: %v; %s", err, s.Log)
	}
	up.Forget()
	s = start(t, folder, up.URL)
	if err := s.fetch(http.DefaultClient, blob.Digest); err != nil || len(up.Requests()) > 0 {
		t.Errorf("%v, %+v: %s", err, up.Requests(), s.Log)
	}
	s.Interrupt(t)
	return true
}

// TestVerifyReadFails: a file that verify cannot read is damaged. If it cannot bypass the
// page cache, verify reads through it.
func TestVerifyReadFails(t *testing.T) {
	t.Parallel()
	strace := straceOrSkip(t)
	for _, tc := range []struct {
		inject string
		code   int
	}{{"read:error=EINVAL:when=1", 0}, {"read:error=EIO", 1}, {"read:error=EIO:when=2+", 1}, {"openat:error=EACCES", 2}} {
		t.Run(tc.inject, func(t *testing.T) {
			t.Parallel()
			up := upstreamtest.New(t, upstreamtest.Options{})
			blob := upstreamtest.NewContent("", upstreamtest.Random(9, 3_000_000))
			up.AddBlob("library/app", blob)
			folder := filepath.Join(t.TempDir(), "cache")
			s := start(t, folder, up.URL)
			if err := s.fetch(http.DefaultClient, blob.Digest); err != nil {
				t.Fatal(err)
			}
			s.Interrupt(t)
			call, _, _ := strings.Cut(tc.inject, ":")
			trace := filepath.Join(t.TempDir(), "trace")
			code, out := s.verify(t, "", strace, "-f", "-qq", "-P", blobFile(folder, blob.Digest),
				"-e", "trace="+call, "-e", "inject="+tc.inject, "-o", trace)
			if n := injected(t, trace); strings.HasSuffix(tc.inject, ":when=1") && n > 1 {
				t.Skipf("%d threads read it, and the first time of each has failed", n)
			}
			if code != tc.code {
				t.Errorf("verify ends with %d, want %d: %s", code, tc.code, out)
			}
			if _, err := os.Stat(quarantineFile(folder, blob.Digest)); (err == nil) != (tc.code == 1) {
				t.Errorf("quarantine: %v", err)
			}
		})
	}
}
