package storage

import (
	"os"
	"testing"
)

// TestTruncated: a kept blob that was cut on the disk is downloaded again.
func TestTruncated(t *testing.T) {
	s := openStore(t, t.TempDir())
	o := &origin{content: content(1, 100_000)}
	mustFetch(t, s, o, Miss)
	settle(t, s)
	if err := os.Truncate(s.disk.blob(o.digest()), 99_999); err != nil {
		t.Fatal(err)
	}
	if got, _, err := fetch(t, s, o.digest(), o.source); err != nil || len(got) != 100_000 {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}
