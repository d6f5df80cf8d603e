package storage

import (
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// TestClockJumps opens one folder at times a year apart. A bubble's clock begins at 2000, so
// the next bubble is a jump back. A blob without a limit is never lost. After a jump forward,
// blobs with a limit and tags expire, as after a real year.
func TestClockJumps(t *testing.T) {
	t.Parallel()
	const year = 365 * 24 * time.Hour
	few := keeping(Retention{For: 10 * time.Minute})
	dir := t.TempDir()
	at := func(jump time.Duration, do func(t *testing.T, s *Store)) {
		synctest.Test(t, func(t *testing.T) {
			time.Sleep(jump)
			do(t, openStore(t, dir))
		})
	}
	var origins []*origin
	add := func(t *testing.T, s *Store, sc Scope) *origin {
		t.Helper()
		o := &origin{content: upstreamtest.Random(uint64(400+len(origins)), 1000)}
		origins = append(origins, o)
		want(t, s, sc, o)
		return o
	}
	tag := func(name string) TagKey { return TagKey{Upstream: "docker.io", Repository: "library/a", Name: name} }
	put := func(t *testing.T, s *Store, name string, o *origin) {
		t.Helper()
		if err := s.PutTag(tag(name), Tag{Digest: o.digest(), Checked: time.Now()}, 60*24*time.Hour); err != nil {
			t.Fatal(err)
		}
	}
	known := func(t *testing.T, s *Store, name string, want bool) {
		t.Helper()
		if _, ok := s.Tag(tag(name)); ok != want {
			t.Errorf("tag %s is known: %v", name, ok)
		}
	}
	pass := func(d time.Duration) {
		time.Sleep(d)
		synctest.Wait()
	}

	var ever, limited, later, laterLimited *origin
	at(0, func(t *testing.T, s *Store) {
		t.Helper()
		ever, limited = add(t, s, scope()), add(t, s, few)
		put(t, s, "old", ever)
	})
	at(year, func(t *testing.T, s *Store) { // forward
		t.Helper()
		want(t, s, scope(), ever)
		known(t, s, "old", false)
		pass(2 * maintenance)
		if s.exists(limited.digest()) || !s.exists(ever.digest()) {
			t.Errorf("a year later there is what has a limit: %v, what has none: %v", s.exists(limited.digest()), s.exists(ever.digest()))
		}
		later, laterLimited = add(t, s, scope()), add(t, s, few)
		put(t, s, "new", later)
	})
	at(0, func(t *testing.T, s *Store) { // back
		t.Helper()
		pass(20 * time.Minute)
		want(t, s, scope(), ever)
		want(t, s, scope(), later)
		want(t, s, few, laterLimited) // its limit is a year ahead
		known(t, s, "new", true)
		checkDisk(t, s)
	})
	for i, o := range origins {
		if n := o.opens.Load(); n != 1 {
			t.Errorf("blob %d was downloaded %d times", i, n)
		}
	}
}

// want fetches a blob and checks its content.
func want(t *testing.T, s *Store, sc Scope, o *origin) {
	t.Helper()
	b := open(t, s, sc, o.digest(), o.source)
	defer b.Close()
	if got, err := io.ReadAll(b.Content); err != nil || string(got) != string(o.content) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	settle(t, s)
}
