package storage

import (
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// disk is the storage folder. Its paths are built from parsed digests only.
type disk struct {
	root string
	lock *os.File // nil: not taken
}

// algorithms are those of blobs' digests (OCI image-spec, descriptor.md).
func algorithms() []digest.Algorithm { return []digest.Algorithm{digest.SHA256, digest.SHA512} }

// block is the unit in which a file system allocates space: nearly always 4 KiB.
const block = 4 << 10

// blocks returns the disk space of a file of size bytes.
func blocks(size int64) int64 { return (size + block - 1) / block * block }

// ParseDigest accepts the digests that this package can store: sha256 and sha512.
func ParseDigest(s string) (digest.Digest, error) {
	if isDigest(s) {
		return digest.Digest(s), nil
	}
	d, err := digest.Parse(s)
	if err != nil {
		return "", err
	}
	if !slices.Contains(algorithms(), d.Algorithm()) {
		return "", digest.ErrDigestUnsupported
	}
	return d, nil
}

// isDigest reports whether [ParseDigest] accepts s. ParseDigest uses a regular expression
// for its error, which is too slow for a million names.
func isDigest(s string) bool {
	const prefix = len("sha256:")
	switch {
	case len(s) == prefix+2*32 && s[:prefix] == "sha256:":
	case len(s) == prefix+2*64 && s[:prefix] == "sha512:":
	default:
		return false
	}
	for i := prefix; i < len(s); i++ {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// openDisk makes the folders and takes the lock, until close.
func openDisk(root string) (disk, error) {
	k := disk{root: root}
	for _, dir := range []string{root, k.fills(), k.quarantine()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return k, fmt.Errorf("create storage folder: %w", err)
		}
	}
	for _, a := range algorithms() {
		if err := os.MkdirAll(filepath.Join(root, "blobs", a.String()), 0o700); err != nil {
			return k, fmt.Errorf("create storage folder: %w", err)
		}
	}
	lock, err := os.OpenFile(filepath.Join(root, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return k, fmt.Errorf("open lock file: %w", err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = lock.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return k, fmt.Errorf("%w: %s", ErrLocked, root)
		}
		return k, fmt.Errorf("lock storage folder: %w", err)
	}
	k.lock = lock
	if err := k.renames(); err != nil {
		return k, errors.Join(err, k.close())
	}
	return k, nil
}

// close releases the lock.
func (k disk) close() error { return k.lock.Close() }

// renames fails if a file cannot be renamed between the folders because they are on
// different file systems: no download could be stored. It does not fail on a disk that is
// full or read-only, which can still serve its blobs.
func (k disk) renames() error {
	folders := []string{k.fills(), k.quarantine()}
	for _, a := range algorithms() {
		folders = append(folders, filepath.Join(k.root, "blobs", a.String()))
	}
	const name = "rename"
	from := filepath.Join(folders[0], name)
	f, err := os.OpenFile(from, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return nil //nolint:nilerr // full or read-only
	}
	_ = f.Close() // nothing was written
	for _, dir := range folders[1:] {
		to := filepath.Join(dir, name)
		if err = os.Rename(from, to); err != nil {
			break
		}
		from = to
	}
	_ = os.Remove(from) // a file that stays is not taken for a blob
	if errors.Is(err, unix.EXDEV) {
		return fmt.Errorf("storage: the folders below %s are not on one file system: %w: mount one at %s, and nothing below it", k.root, err, k.root)
	}
	return nil
}

func (k disk) fills() string      { return filepath.Join(k.root, "fills") }
func (k disk) index() string      { return filepath.Join(k.root, "index") }
func (k disk) quarantine() string { return filepath.Join(k.root, "quarantine") }

// has reports whether the digest has a file.
func (k disk) has(d digest.Digest) bool {
	_, err := os.Stat(k.blob(d))
	return err == nil
}

func (k disk) blob(d digest.Digest) string {
	hex := d.Encoded()
	return filepath.Join(k.root, "blobs", d.Algorithm().String(), hex[:2], hex)
}

func (k disk) quarantined(d digest.Digest) string { return filepath.Join(k.quarantine(), flatName(d)) }

// flatName is a digest's name in quarantine/, and the first part of one in fills/.
func flatName(d digest.Digest) string { return d.Algorithm().String() + "-" + d.Encoded() }

// commit makes a verified partial a blob (I2). If it fails, the partial stays.
func (k disk) commit(f *os.File, p partial) error {
	final := k.blob(p.digest)
	named, err := nameDurably(f, final)
	if err != nil && named {
		return errors.Join(err, os.Rename(final, k.partial(p))) // the new name may not survive a power cut
	}
	return err
}

// WriteFile replaces a file. A power cut leaves either the old or the new content, whole.
func WriteFile(name string, content []byte) error {
	f, err := os.OpenFile(name+".new", os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	named := false
	if _, err = f.Write(content); err == nil {
		named, err = nameDurably(f, name)
	}
	err = errors.Join(err, f.Close())
	if err != nil && !named {
		err = errors.Join(err, os.Remove(f.Name()))
	}
	return err
}

// nameDurably renames a written file so that the name survives a power cut: fsync(file),
// mkdir and fsync of a new folder's parent, rename, fsync of the folder. With an error,
// named says whether the file was renamed.
func nameDurably(f *os.File, name string) (named bool, err error) {
	if err := f.Sync(); err != nil {
		return false, fmt.Errorf("sync file: %w", err)
	}
	dir := filepath.Dir(name)
	if err := os.Mkdir(dir, 0o700); err == nil {
		if err := syncDir(filepath.Dir(dir)); err != nil {
			return false, err
		}
	} else if !errors.Is(err, fs.ErrExist) {
		return false, fmt.Errorf("create folder: %w", err)
	}
	if err := os.Rename(f.Name(), name); err != nil {
		return false, fmt.Errorf("rename file: %w", err)
	}
	return true, syncDir(dir)
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync folder: %w", err)
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("sync folder: %w", err)
	}
	return nil
}

// moveToQuarantine moves a blob to quarantine/, and replaces an earlier file of it there.
// It ignores an error of the folders' sync: if a power cut brings the old name back, the
// blob is found damaged again.
func (k disk) moveToQuarantine(d digest.Digest) error {
	if err := os.Rename(k.blob(d), k.quarantined(d)); err != nil {
		return fmt.Errorf("move blob to quarantine: %w", err)
	}
	_ = errors.Join(syncDir(k.quarantine()), syncDir(filepath.Dir(k.blob(d))))
	return nil
}

// flat calls visit for each file in a folder that is named by flatName.
func flat(dir string, visit func(digest.Digest, fs.FileInfo)) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		d, ok := digestOf(e.Name())
		if !ok {
			continue
		}
		if info, err := e.Info(); err == nil {
			visit(d, info)
		}
	}
	return nil
}

// digestOf returns the digest of a flatName.
func digestOf(flat string) (digest.Digest, bool) {
	algorithm, hex, _ := strings.Cut(flat, "-")
	d, err := ParseDigest(algorithm + ":" + hex)
	return d, err == nil
}

// shards returns a function that lists one of the 256 folders of an algorithm: the regular
// files named by a digest that belongs there. A missing folder has none. shards looks up
// once which folders exist, because most are missing when there are few blobs.
func (k disk) shards(a digest.Algorithm) func(shard string) (map[digest.Digest]fs.DirEntry, error) {
	dir := filepath.Join(k.root, "blobs", a.String())
	folders, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return func(string) (map[digest.Digest]fs.DirEntry, error) {
			return nil, fmt.Errorf("read blob folder: %w", err)
		}
	}
	there := make(map[string]bool, len(folders))
	for _, e := range folders {
		there[e.Name()] = true
	}
	return func(shard string) (map[digest.Digest]fs.DirEntry, error) {
		if !there[shard] {
			return nil, nil
		}
		entries, err := os.ReadDir(filepath.Join(dir, shard))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("read blob folder: %w", err)
		}
		blobs := make(map[digest.Digest]fs.DirEntry, len(entries))
		for _, e := range entries {
			d := digest.Digest(a.String() + ":" + e.Name())
			if isDigest(string(d)) && strings.HasPrefix(e.Name(), shard) && e.Type().IsRegular() {
				blobs[d] = e
			}
		}
		return blobs, nil
	}
}

// blobs calls visit for each file in blobs/ that has a digest's name in the right folder,
// until visit returns false. It skips folders that it cannot read.
func (k disk) blobs(visit func(digest.Digest, fs.FileInfo) bool) {
	for d, err := range k.after("") {
		if err != nil {
			continue
		}
		if info, err := os.Lstat(k.blob(d)); err == nil && !visit(d, info) {
			return
		}
	}
}

// after walks the names in blobs/ that come after a digest, in their order, and
// the errors of folders that cannot be read. It lists one folder at a time.
func (k disk) after(last digest.Digest) iter.Seq2[digest.Digest, error] {
	return func(yield func(digest.Digest, error) bool) {
		for _, a := range algorithms() {
			list := k.shards(a)
			for shard := range shardNames {
				prefix := a.String() + ":" + shard
				if last != "" && prefix < string(last)[:min(len(prefix), len(last))] {
					continue
				}
				blobs, err := list(shard)
				if err != nil && !yield("", err) {
					return
				}
				for _, d := range slices.Sorted(maps.Keys(blobs)) {
					if d > last && !yield(d, nil) {
						return
					}
				}
			}
		}
	}
}

// shardNames are the names of the folders of an algorithm.
func shardNames(yield func(string) bool) {
	for n := range 256 {
		if !yield(fmt.Sprintf("%02x", n)) {
			return
		}
	}
}

// space returns the file system's free and total bytes.
func (k disk) space() (free, total int64, err error) {
	var s unix.Statfs_t
	if err := unix.Statfs(k.root, &s); err != nil {
		return 0, 0, fmt.Errorf("read free space: %w", err)
	}
	return int64(s.Bavail) * s.Bsize, int64(s.Blocks) * s.Bsize, nil
}
