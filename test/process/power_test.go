package process

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// TestPowerCut copies the disk of a mirror at a random moment of a storm, 4 times
// (CACHALOT_TEST_CUTS), and checks the copy: after the journal's replay every file in
// blobs/ matches its digest (I2). On every tenth copy, and the last, the mirror starts,
// serves stored blobs and resumes broken downloads.
//
// The disk is an ext4 image behind a loop device, and a cut is a clone of that image. Dirty
// pages, unallocated blocks and an open transaction are lost, as in a power cut.
// Acknowledged writes are not lost, synced or not: this disk has no volatile cache, and the
// test does not check that ext4 flushes one.
func TestPowerCut(t *testing.T) {
	t.Parallel()
	cuts := count(t, "CACHALOT_TEST_CUTS", 4)
	image, live := reflinkedDisk(t)
	random := rand.New(rand.NewPCG(1, 2))
	up, later := upstreamtest.New(t, upstreamtest.Options{}), upstreamtest.New(t, upstreamtest.Options{})
	all := map[digest.Digest]upstreamtest.Content{}
	add := func(seed uint64, size int) digest.Digest {
		b := upstreamtest.NewContent("", upstreamtest.Random(seed, size))
		all[b.Digest] = b
		up.AddBlob("library/app", b)
		later.AddBlob("library/app", b)
		return b.Digest
	}
	var blobs []digest.Digest
	for i := range 200 {
		size := 1000 + random.IntN(100_000)
		if i%4 == 0 {
			size = 1000 + random.IntN(2<<20)
		}
		blobs = append(blobs, add(uint64(i), size))
	}
	s := startConfig(t, fmt.Sprintf(
		"storage: {path: %s, min_free: 0, max_size: 24MiB}\ntimeouts: {progress: 1h}\nupstreams: {docker.io: {url: %s}}\n", filepath.Join(live, "cachalot"), up.URL))

	// The load: fast pulls that evict each other, and four that stop at half. It pauses
	// while a copy is checked.
	ended, release := make(chan struct{}), make(chan struct{})
	var resting sync.RWMutex
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 8}}
	var load sync.WaitGroup
	for i := range 4 {
		d := add(uint64(1000+i), 1<<20)
		up.Fault(upstreamtest.Match{Op: upstreamtest.GetBlob, Reference: d.String()}, upstreamtest.StallAfter(1<<19, release))
		load.Go(func() { _ = s.fetch(client, d) }) // it ends with the test
	}
	for i := range 4 {
		mine := rand.New(rand.NewPCG(3, uint64(i)))
		load.Go(func() {
			for {
				select {
				case <-ended:
					return
				default:
				}
				resting.RLock()
				if err := s.fetch(client, blobs[mine.IntN(len(blobs))]); err != nil {
					t.Errorf("under load: %v", err)
				}
				resting.RUnlock()
			}
		})
	}
	stop := sync.OnceFunc(func() {
		close(ended)
		close(release)
		load.Wait()
	})
	t.Cleanup(stop) // before the cleanup that kills the mirror

	s.await(t, "eviction", func() bool { return strings.Contains(s.Log.String(), "msg=evicted") }) // the cache is full
	c := cut{upstream: later, contents: all}
	for i := range cuts {
		if i%3 == 0 { // the kernel's writeback, otherwise after 30 s
			load.Go(func() { syncFS(t, live) })
		}
		wait := time.NewTimer(time.Duration(random.IntN(int(60 * time.Millisecond))))
		<-wait.C // the random moment
		clone := filepath.Join(filepath.Dir(image), "clone")
		reflink(t, clone, image)
		resting.Lock()
		c.look(t, clone, i%10 == 9 || i == cuts-1)
		resting.Unlock()
	}
	stop()
	if c.files < cuts || c.partials == 0 || c.resumed == 0 {
		t.Errorf("too little happened: %d files in blobs/, %d partials, %d resumed", c.files, c.partials, c.resumed)
	}
	t.Logf("%d cuts, %d of them spoilt blobs; %d files in blobs/; after %d starts %d kept blobs served, %d partials, %d resumed",
		cuts, c.spoilt, c.files, c.starts, c.served, c.partials, c.resumed)
}

// cut counts what the copies of a disk contain.
type cut struct {
	upstream *upstreamtest.Registry
	contents map[digest.Digest]upstreamtest.Content

	spoilt, files     int
	starts, served    int
	partials, resumed int
}

// look mounts a clone, checks it and removes it. With again it also starts the mirror there.
func (c *cut) look(t *testing.T, clone string, again bool) {
	t.Helper()
	dir := t.TempDir()
	mount(t, command, dir, "ext4", clone)
	folder := filepath.Join(dir, "cachalot")
	checked := map[string]time.Time{}
	if !checkBlobs(t, folder, checked) {
		c.spoilt++
	}
	c.files += len(checked)
	if again {
		c.start(t, folder, checked)
	}
	unmount(t, dir)
	if err := os.Remove(clone); err != nil {
		t.Error(err)
	}
}

func (c *cut) start(t *testing.T, folder string, kept map[string]time.Time) {
	t.Helper()
	partials := map[digest.Digest][]byte{}
	files, err := filepath.Glob(filepath.Join(folder, "fills", "*"))
	for _, f := range files {
		b, rerr := os.ReadFile(f)
		err = errors.Join(err, rerr)
		flat, _, _ := strings.Cut(filepath.Base(f), ".")
		algorithm, hex, _ := strings.Cut(flat, "-")
		partials[digest.Digest(algorithm+":"+hex)] = b
	}
	if err != nil {
		t.Error(err)
	}
	c.upstream.Forget()
	s := start(t, folder, c.upstream.URL)
	c.starts++
	for path := range kept {
		d := digest.NewDigestFromEncoded(digest.Algorithm(filepath.Base(filepath.Dir(filepath.Dir(path)))), filepath.Base(path))
		if err := s.fetch(http.DefaultClient, d); err != nil || c.upstream.Sent(d) != 0 {
			t.Errorf("kept blob %s: %v, %d bytes fetched: %s", d, err, c.upstream.Sent(d), s.Log)
		}
		c.served++
	}
	for d, b := range partials {
		err := s.fetch(http.DefaultClient, d)
		if bytes.HasPrefix(c.contents[d].Bytes, b) {
			c.partials++
			if sent, rest := c.upstream.Sent(d), c.contents[d].Size-int64(len(b)); err != nil || sent != rest {
				t.Errorf("partial of %d bytes: %v, %d fetched, want %d: %s", len(b), err, sent, rest, s.Log)
			}
			if len(b) > 0 {
				c.resumed++
			}
			continue
		}
		// The end may be zeroes, which the check of the whole blob finds. It is fetched again then.
		if errors.Is(err, errWrongBytes) {
			t.Error(err)
		}
	}
	s.Interrupt(t)
}

// reflinkedDisk mounts an ext4 image that can be cloned at any moment: it is a file on
// btrfs, on a loop device.
func reflinkedDisk(t *testing.T) (image, dir string) {
	t.Helper()
	outer, dir := t.TempDir(), t.TempDir()
	file := filepath.Join(t.TempDir(), "btrfs")
	sparse(t, file, 8<<30)
	tryCommand(t, "mkfs.btrfs", "-q", file)
	mount(t, tryCommand, outer, "btrfs", file)
	image = filepath.Join(outer, "ext4")
	sparse(t, image, 512<<20)
	tryCommand(t, "mkfs.ext4", "-q", image)
	mount(t, tryCommand, dir, "ext4", image)
	return image, dir
}

func sparse(t *testing.T, name string, size int64) {
	t.Helper()
	if err := errors.Join(os.WriteFile(name, nil, 0o600), os.Truncate(name, size)); err != nil {
		t.Fatal(err)
	}
}

// tryCommand is command, but skips the test if this machine lacks or refuses something:
// privileges, loop devices, a file system, a program.
func tryCommand(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), args[0], args[1:]...).CombinedOutput(); err != nil {
		t.Skipf("a disk of its own needs root, loop devices, and e2fsprogs or btrfs-progs: %s: %v: %s", strings.Join(args, " "), err, out)
	}
}

func command(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil { //nolint:noctx // short
		t.Fatalf("%s: %v: %s", strings.Join(args, " "), err, out)
	}
}

// mount mounts an image until unmount or the end of the test, with command, or with
// tryCommand if this machine may refuse it.
func mount(t *testing.T, by func(*testing.T, ...string), dir, kind, image string) {
	t.Helper()
	by(t, "mount", "-t", kind, "-o", "loop", image, dir)
	t.Cleanup(func() {
		if err := unmountOnceIdle(dir); err != nil && !errors.Is(err, unix.EINVAL) { // EINVAL: already unmounted
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
}

func unmount(t *testing.T, dir string) {
	t.Helper()
	if err := unmountOnceIdle(dir); err != nil {
		t.Errorf("unmount %s: %v", dir, err)
	}
}

// unmountOnceIdle unmounts, and waits while the disk is busy: a process that another
// test just forked has our open files too, until its exec.
func unmountOnceIdle(dir string) error {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	err := unix.Unmount(dir, 0)
	for try := 0; errors.Is(err, unix.EBUSY) && try < 60_000; try++ {
		<-tick.C
		err = unix.Unmount(dir, 0)
	}
	return err
}

// reflink makes a copy of a file at one moment that shares its blocks (FICLONE).
func reflink(t *testing.T, to, from string) {
	t.Helper()
	src, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = src.Close() }()
	dst, err := os.Create(to)
	if err != nil {
		t.Fatal(err)
	}
	err = errors.Join(unix.IoctlFileClone(int(dst.Fd()), int(src.Fd())), dst.Close())
	if err != nil {
		t.Fatal("clone the disk: ", err)
	}
}

func syncFS(t *testing.T, dir string) {
	t.Helper()
	f, err := os.Open(dir)
	if err == nil {
		err = errors.Join(unix.Syncfs(int(f.Fd())), f.Close())
	}
	if err != nil {
		t.Error(err)
	}
}
