package storage

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestTwoFileSystems: a store whose downloads could never become blobs does not start.
func TestTwoFileSystems(t *testing.T) {
	dir := t.TempDir()
	elsewhere, err := os.MkdirTemp("/dev/shm", "cachalot-")
	if err != nil {
		t.Skip("a second file system is needed: ", err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(elsewhere) })
	var here, there unix.Stat_t
	if unix.Stat(dir, &here) != nil || unix.Stat(elsewhere, &there) != nil || here.Dev == there.Dev {
		t.Skip("a second file system is needed")
	}
	if err := os.Symlink(elsewhere, filepath.Join(dir, "blobs")); err != nil {
		t.Fatal(err)
	}
	if s, err := Open(Config{Path: dir, MaxFills: 1}, NewMetrics(), slog.New(slog.DiscardHandler)); err == nil {
		t.Error("it starts: ", s.Close())
	}
}
