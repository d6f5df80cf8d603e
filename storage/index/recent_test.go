package index

import (
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// TestRecentWrites: a read after a write returns that value or a newer one, with concurrent
// readers.
func TestRecentWrites(t *testing.T) {
	t.Parallel()
	x := openIndex(t, t.TempDir(), Config{})
	key := TagKey{Upstream: "u", Repository: "r", Name: "1"}
	var written atomic.Int64
	var done atomic.Bool
	var wg sync.WaitGroup
	for range 2 { // more readers would slow the writer
		wg.Go(func() {
			for !done.Load() {
				least := written.Load()
				tag, ok, err := x.Tag(key)
				if err != nil || least > 0 && (!ok || tag.Checked.UnixNano() < least) {
					t.Errorf("read %d, %t after %d was written; %v", tag.Checked.UnixNano(), ok, least, err)
					return
				}
			}
		})
	}
	for i := int64(1); i <= 500; i++ {
		if err := x.PutTag(key, Tag{Digest: digest.FromString(strconv.FormatInt(i, 10)), Checked: time.Unix(0, i)}, time.Hour); err != nil {
			t.Fatal(err)
		}
		written.Store(i)
	}
	done.Store(true)
	wg.Wait()
	if err := x.RemoveTag(key); err != nil {
		t.Fatal(err)
	}
	if tag, ok, err := x.Tag(key); ok || err != nil {
		t.Errorf("%v after it was deleted, %v", tag, err)
	}
}

// TestRecent_OldReadIsNotAdded: a value that was read before a write is not added after it.
func TestRecent_OldReadIsNotAdded(t *testing.T) {
	t.Parallel()
	x := openIndex(t, t.TempDir(), Config{})
	key := []byte("t some tag")
	if err := x.put(key, []byte("old"), 0); err != nil {
		t.Fatal(err)
	}
	_, _, writes := x.recent.get(key)
	old, _, err := x.read(key)
	if err != nil {
		t.Fatal(err)
	}
	if err := x.put(key, []byte("new"), 0); err != nil {
		t.Fatal(err)
	}
	x.recent.add(key, old, writes)
	if _, err := x.get(key, func(b []byte) error {
		if string(b) != "new" {
			t.Errorf("%q", b)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// TestRecentExpires: an entry in memory expires when it does in the index.
func TestRecentExpires(t *testing.T) {
	t.Parallel()
	x := openIndex(t, t.TempDir(), Config{})
	key := []byte("t some tag")
	_, _, writes := x.recent.get(key)
	x.recent.add(key, entry{value: []byte("old"), expires: uint64(time.Now().Add(-time.Minute).Unix())}, writes)
	if ok, err := x.get(key, func([]byte) error { return nil }); ok || err != nil {
		t.Errorf("%t, %v: it has expired", ok, err)
	}
}
