package storage

import (
	"log/slog"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"
)

// TestMarkGoes: a process that has lived for three seconds did not die of opening
// its index, though not all records are read yet.
func TestMarkGoes(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "index")
	synctest.Test(t, func(t *testing.T) {
		x := openIndex(dir, slog.New(slog.DiscardHandler))
		time.Sleep(3 * time.Second)
		synctest.Wait()
		if fileExists(x.mark()) {
			t.Error("still marked: two kills in a row cost the index")
		}
		if err := x.close(); err != nil {
			t.Error(err)
		}
	})
}
