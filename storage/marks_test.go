package storage

import (
	"io"
	"io/fs"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/cachalot-registry/cachalot/storage/index"
	"github.com/cachalot-registry/cachalot/test/smalldisk"
	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// TestMostVictims: a picker picks at most mostVictims, and those are the least recently used.
func TestMostVictims(t *testing.T) {
	t.Parallel()
	p := picker{bytes: 3 * mostVictims * block}
	for i := range 2 * mostVictims {
		p.offer(victim{Record: index.Record{Size: 1, Accessed: int64((i * 7919) % (2 * mostVictims))}})
	}
	if len(p.picked) != mostVictims || p.sum != mostVictims*block {
		t.Fatalf("%d picked, of %d bytes", len(p.picked), p.sum)
	}
	for _, v := range p.picked {
		if v.Accessed >= mostVictims {
			t.Fatalf("picked one used at %d", v.Accessed)
		}
	}
}

// TestSpace_AgreesWithDu: the totals agree with the blocks that the file system reports, for
// blobs and partials of all sizes around a block.
func TestSpace_AgreesWithDu(t *testing.T) {
	t.Parallel()
	s := openStore(t, smalldisk.New(t, 256))
	sizes := []int{0, 1, block - 1, block, block + 1, 3*block - 1, 100_000, 1 << 20}
	for i, size := range sizes {
		mustFetch(t, s, &origin{content: upstreamtest.Random(uint64(i), size)}, Miss)
	}
	settle(t, s)
	for i, size := range sizes[2:] { // downloads that stop at half
		stuck := &origin{content: upstreamtest.Random(uint64(100+i), size), hold: make(chan struct{})}
		b := open(t, s, scope(), stuck.digest(), stuck.source)
		if _, err := io.ReadFull(b.Content, make([]byte, size/2)); err != nil {
			t.Fatal(err)
		}
		b.Close()
	}
	s.ledger.loaded(t.Context())
	du := func(folder string) (bytes int64) {
		err := filepath.WalkDir(folder, func(_ string, e fs.DirEntry, err error) error {
			if err != nil || e.IsDir() {
				return err
			}
			info, err := e.Info()
			if err == nil {
				bytes += info.Sys().(*syscall.Stat_t).Blocks * 512
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
		return bytes
	}
	if got, want := s.ledger.total(), du(filepath.Join(s.disk.root, "blobs")); got != want {
		t.Errorf("books say %d bytes in blobs/, du %d", got, want)
	}
	if got, want := s.space.filling(), du(s.disk.fills()); got != want || got == 0 {
		t.Errorf("books say %d bytes in fills/, du %d", got, want)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	checkDisk(t, s)
	again := openStore(t, s.disk.root)
	again.ledger.loaded(t.Context())
	if again.ledger.total() != s.ledger.total() || again.space.filling() != s.space.filling() {
		t.Errorf("books say %d and %d bytes after a restart, and %d and %d before",
			again.ledger.total(), again.space.filling(), s.ledger.total(), s.space.filling())
	}
	if err := again.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestIsDigest compares the quick check with the library's.
func TestIsDigest(t *testing.T) {
	t.Parallel()
	for _, good := range []digest.Digest{digest.FromString("x"), digest.SHA512.FromString("x")} {
		tries := []string{string(good), string(good[1:]), string(good) + "0", string(good[:len(good)-1]), " " + string(good[1:]), "", ":"}
		for i := range good {
			for _, c := range "/09:`afgAF\x00-" {
				tries = append(tries, string(good[:i])+string(c)+string(good[i+1:]))
			}
		}
		for _, s := range tries {
			d, err := digest.Parse(s)
			want := err == nil && (d.Algorithm() == digest.SHA256 || d.Algorithm() == digest.SHA512)
			if got := isDigest(s); got != want {
				t.Errorf("%q is a digest: %v, the library says %v", s, got, err)
			}
		}
	}
}
