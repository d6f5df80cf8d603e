package upstreamtest

import (
	"os"

	"golang.org/x/sys/unix"
)

// Folder returns a folder for a store: in memory, if there is enough, because a file system on
// disk takes a third of the time.
func Folder(tb TB) string {
	tb.Helper()
	const memory, enough = "/dev/shm", 1 << 30
	var fs unix.Statfs_t
	if unix.Statfs(memory, &fs) != nil || fs.Bavail*uint64(fs.Bsize) < enough { //nolint:gosec // no block has a negative size
		return tb.TempDir()
	}
	dir, err := os.MkdirTemp(memory, "cachalot-test-")
	if err != nil {
		return tb.TempDir()
	}
	tb.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}
