package process

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cachalot-registry/cachalot/test/cachalotd"
	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// spoilt is a running mirror whose disk the test breaks.
type spoilt struct {
	up     *upstreamtest.Registry
	folder string
	server *server
	kept   upstreamtest.Content
	seed   uint64
}

func newSpoilt(t *testing.T, folder string) *spoilt {
	t.Helper()
	p := &spoilt{up: upstreamtest.New(t, upstreamtest.Options{}), folder: folder}
	p.kept = p.blob(300_000)
	p.server = start(t, folder, p.up.URL)
	p.get(t, p.kept)
	p.server.awaitMetric(t, "cachalot_storage_blobs", 1)
	return p
}

// blob adds another blob to the registry.
func (p *spoilt) blob(size int) upstreamtest.Content {
	p.seed++
	b := upstreamtest.NewContent("", upstreamtest.Random(p.seed, size))
	p.up.AddBlob("library/app", b)
	return b
}

func (p *spoilt) get(t *testing.T, b upstreamtest.Content) {
	t.Helper()
	if err := p.server.fetch(http.DefaultClient, b.Digest); err != nil {
		t.Errorf("%v: %s", err, p.server.Log)
	}
}

// serves checks that the mirror serves stored content, also in other repositories, and
// passes new content through.
func (p *spoilt) serves(t *testing.T) {
	t.Helper()
	p.up.Forget()
	p.get(t, p.kept)
	if asked := p.up.Requests(); len(asked) != 0 {
		t.Errorf("asked upstream for what is kept: %+v", asked)
	}
	for i := range 20 {
		repository := fmt.Sprintf("library/other-%d-%d", p.seed, i)
		p.up.AddBlob(repository, p.kept)
		if err := p.server.fetchPath("/v2/"+repository+"/blobs/"+p.kept.Digest.String(), p.kept); err != nil {
			t.Fatalf("%v: %s", err, p.server.Log)
		}
	}
	if n := p.up.Sent(p.kept.Digest); n != 0 {
		t.Errorf("%d bytes of what is kept were fetched", n)
	}
	for range 5 {
		b := p.blob(300_000)
		p.get(t, b)
		p.get(t, b)
	}
	p.get(t, p.blob(8<<20))
}

// keeps checks that the mirror stores new content, and has lost nothing.
func (p *spoilt) keeps(t *testing.T) {
	t.Helper()
	p.up.Forget()
	p.get(t, p.kept)
	if n := p.up.Sent(p.kept.Digest); n != 0 {
		t.Errorf("%d bytes of what was kept were fetched", n)
	}
	b := p.blob(300_000)
	p.get(t, b)
	p.server.Interrupt(t)
	if _, err := os.Stat(filepath.Join(p.folder, "blobs", "sha256", b.Digest.Encoded()[:2], b.Digest.Encoded())); err != nil {
		t.Errorf("not kept: %v: %s", err, p.server.Log)
	}
	checkBlobs(t, p.folder, map[string]time.Time{})
}

// fetchPath fetches and compares content on its own connection.
func (s *server) fetchPath(path string, want upstreamtest.Content) error {
	return compare(context.Background(), cachalotd.Client(), s.URL+path, want.Bytes, 0, -1)
}

// TestDiskTurnsReadOnly: ext4 finds an error and turns read-only under a running mirror.
// The mirror still serves, ends normally or by kill -9, logs why it cannot start, and has
// all content again after a repair.
func TestDiskTurnsReadOnly(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*testing.T, *server){
		"end":  func(t *testing.T, s *server) { t.Helper(); s.Interrupt(t) },
		"kill": func(_ *testing.T, s *server) { s.Kill() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			image, dir := filepath.Join(t.TempDir(), "ext4"), t.TempDir()
			sparse(t, image, 512<<20)
			tryCommand(t, "mkfs.ext4", "-q", "-e", "remount-ro", image)
			mount(t, tryCommand, dir, "ext4", image)
			p := newSpoilt(t, filepath.Join(dir, "cachalot"))

			breakExt4(t, dir)
			p.serves(t)
			end(t, p.server)
			failed := run(t, p.folder, p.up.URL)
			if failed.URL != "" || !strings.Contains(failed.Log.String(), "read-only file system") {
				t.Errorf("a start on a read-only disk: %s", failed.Log)
			}

			unmount(t, dir)
			// It exits with 1 after a repair.
			if out, err := exec.Command("e2fsck", "-fy", image).CombinedOutput(); err != nil && !strings.Contains(string(out), "MODIFIED") { //nolint:noctx // short
				t.Fatalf("e2fsck: %v: %s", err, out)
			}
			mount(t, command, dir, "ext4", image)
			p.server = start(t, p.folder, p.up.URL)
			p.keeps(t)
		})
	}
}

// breakExt4 makes ext4 find an error, so that it turns read-only at the next write.
func breakExt4(t *testing.T, dir string) {
	t.Helper()
	mounts, err := os.ReadFile("/proc/mounts")
	if err != nil {
		t.Fatal(err)
	}
	device := ""
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); f[1] == dir {
			device = filepath.Base(f[0])
		}
	}
	if err := os.WriteFile(filepath.Join("/sys/fs/ext4", device, "trigger_fs_error"), []byte("cachalot's test\n"), 0o600); err != nil {
		t.Skip("ext4 fails on demand by /sys/fs/ext4/*/trigger_fs_error: ", err)
	}
	if f, err := os.Create(filepath.Join(dir, "x")); !errors.Is(err, unix.EROFS) {
		t.Fatalf("the disk is not read-only: %v, %v", f, err)
	}
}

// TestOutOfInodes: the file system has space but no free inodes.
func TestOutOfInodes(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=512m,nr_inodes=1000"); err != nil {
		t.Skip("a disk with few inodes needs a file system of its own, and so root: mount: ", err)
	}
	t.Cleanup(func() { unmount(t, dir) })
	p := newSpoilt(t, filepath.Join(dir, "cachalot"))
	var others []string
	for i := 0; ; i++ {
		name := filepath.Join(dir, fmt.Sprint("other-", i))
		err := os.WriteFile(name, nil, 0o600)
		if errors.Is(err, unix.ENOSPC) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		others = append(others, name)
	}
	p.serves(t)
	for _, end := range []func(*server){(*server).Kill, func(s *server) { s.Interrupt(t) }} {
		end(p.server)
		p.server = start(t, p.folder, p.up.URL)
		p.get(t, p.kept)
		if n := p.up.Sent(p.kept.Digest); n != 0 {
			t.Errorf("%d bytes of what is kept were fetched: %s", n, p.server.Log)
		}
		p.get(t, p.blob(300_000))
	}
	for _, name := range others {
		if err := os.Remove(name); err != nil {
			t.Error(err)
		}
	}
	p.keeps(t)
}
