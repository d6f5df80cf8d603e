package storage

import (
	"errors"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestOpenedBeforeLinked: a client that finds the file of a download which has not
// yet linked it is not told that the blob is of another repository. A pipe in place
// of the file holds the client until the download has begun.
func TestOpenedBeforeLinked(t *testing.T) {
	s := openStore(t, t.TempDir())
	o := &origin{content: content(1, 1000)}
	name := s.disk.blob(o.digest())
	if err := errors.Join(os.MkdirAll(name, 0o700), os.Remove(name), unix.Mkfifo(name, 0o600)); err != nil {
		t.Fatal(err)
	}
	got := make(chan error)
	go func() {
		b, err := s.Get(t.Context(), scope(), o.digest(), o.source)
		if err == nil {
			b.Close()
		}
		got <- err
	}()
	for opening := false; !opening; time.Sleep(time.Millisecond) {
		s.mu.Lock()
		opening = s.open[o.digest()] > 0
		s.mu.Unlock()
	}
	f := begin(s, scope(), o)
	for opened := false; !opened; time.Sleep(time.Millisecond) {
		if pipe, err := os.OpenFile(name, os.O_WRONLY|unix.O_NONBLOCK, 0); err == nil {
			_ = pipe.Close()
			opened = true
		}
	}
	time.Sleep(100 * time.Millisecond) // it looks at its link
	f.run(t.Context())
	if err := <-got; err != nil {
		t.Error(err)
	}
}
