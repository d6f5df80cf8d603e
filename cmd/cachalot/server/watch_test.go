package server

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// TestWatchFile changes a file as the kubelet changes that of a ConfigMap.
func TestWatchFile(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "cachalot.yml")
	put := func(folder, content string) {
		t.Helper()
		if err := os.Mkdir(filepath.Join(dir, folder), 0o755); err != nil {
			t.Fatal(err)
		}
		name := filepath.Join(dir, folder, "cachalot.yml")
		if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		// The same times and size: only the content tells.
		if err := os.Chtimes(name, time.Unix(0, 0), time.Unix(0, 0)); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(folder, filepath.Join(dir, "..new")); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(dir, "..new"), filepath.Join(dir, "..data")); err != nil {
			t.Fatal(err)
		}
	}
	put("..1", "log: {level: info}")
	if err := os.Symlink(filepath.Join("..data", "cachalot.yml"), file); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		signals := make(chan os.Signal, 4)
		defer Watch(t.Context(), file, signals)()
		after := func(what string, want int) {
			t.Helper()
			time.Sleep(3 * watchEvery)
			synctest.Wait()
			if len(signals) != want {
				t.Errorf("%s: %d signals, want %d", what, len(signals), want)
			}
			for range len(signals) {
				if s := <-signals; s != syscall.SIGHUP {
					t.Errorf("%s: %v", what, s)
				}
			}
		}
		after("no change", 0)
		put("..2", "log: {level: warn}")
		after("another content", 1)
		put("..3", "log: {level: warn}")
		after("the same content", 0)
		if err := os.Remove(filepath.Join(dir, "..data")); err != nil {
			t.Fatal(err)
		}
		after("no file", 0)
		put("..4", "log: {level: warn}")
		after("the same file is back", 0)
		put("..5", "log: {level: info}")
		after("the first content", 1)
	})
}
