// Package smalldisk gives a test a disk that can be filled to its last byte.
package smalldisk

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// New mounts a new file system of this many MiB. Files and processes that use it must be
// closed before the test ends. Without root the test is skipped.
func New(t *testing.T, mib int) (dir string) {
	t.Helper()
	dir = t.TempDir()
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

// Fill writes a file of another program that fills the disk.
func Fill(t *testing.T, dir string) (name string) {
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
