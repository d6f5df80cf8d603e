package index

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
)

// linksIn returns the ledger of links of a new index. No goroutine trims it.
func linksIn(tb testing.TB, bound int64) *linkLedger {
	tb.Helper()
	x := openIndex(tb, tb.TempDir(), Config{Max: bound, Pinned: func(_, repository string) bool { return repository == "pinned" }})
	x.SetListed(func(upstream string) bool { return !strings.HasPrefix(upstream, "named") }) // clients name those
	return x.links
}

// putLinkAt records a place of the blob with this number.
func putLinkAt(tb testing.TB, l *linkLedger, upstream, repository string, blob int) {
	tb.Helper()
	p := Place{Upstream: upstream, Repository: repository}
	if err := l.put(linkKey(p, digest.FromString(fmt.Sprint(blob))), Link{Size: 1}.encode()); err != nil {
		tb.Fatal(err)
	}
	if n, _ := l.totals(); n > l.max {
		tb.Fatalf("links take %d bytes of %d", n, l.max)
	}
	if len(l.wanted) > 0 {
		<-l.wanted
		if _, err := l.trim(tb.Context()); err != nil {
			tb.Fatal(err)
		}
	}
}

// places counts links by upstream, and checks the ledger's total.
func (l *linkLedger) places(tb testing.TB) map[string]int {
	tb.Helper()
	found := map[string]int{}
	var sum int64
	err := l.index.scan([]byte{'l'}, func(key, value []byte) bool {
		at, _ := decodeLinkAt(key, value)
		found[string(at.Upstream())]++
		sum += recordBytes(key, value)
		return true
	})
	if n, _ := l.totals(); err != nil || n != sum {
		tb.Errorf("the ledger says %d bytes, there are %d, %v", n, sum, err)
	}
	return found
}

// oneLink returns the size of a record of putLinkAt with names of so many letters.
func oneLink(letters int) int64 {
	return recordBytes(linkKey(Place{Upstream: strings.Repeat("x", letters)}, digest.FromString("x")), Link{Size: 1}.encode())
}

// TestLinkLedger_Claims: one registry, or many that clients name, claim a blob in thousands of
// repositories. Only they lose links.
func TestLinkLedger_Claims(t *testing.T) {
	t.Parallel()
	for name, upstream := range map[string]func(n int) string{
		"a registry": func(int) string { return "evil.test" },
		"many names": func(n int) string { return fmt.Sprintf("named%d", n%500) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := linksIn(t, 1000*oneLink(20))
			for n := range 400 { // an image is in a few places, and its base layer in more
				putLinkAt(t, l, "docker.io", "library/app", n)
				putLinkAt(t, l, "docker.io", fmt.Sprint("app", n%20), -1)
			}
			for n := range 5000 {
				putLinkAt(t, l, upstream(n), fmt.Sprint("r", n), 7)
			}
			if found := l.places(t); found["docker.io"] != 420 {
				t.Errorf("docker.io has %d of 420 places", found["docker.io"])
			}
		})
	}
}

// TestLinkLedger_FirstPlaces: if a registry has too many links, blobs with many places lose
// some. Each blob keeps its first places, and pinned links stay.
func TestLinkLedger_FirstPlaces(t *testing.T) {
	t.Parallel()
	l := linksIn(t, 1000*oneLink(20))
	putLinkAt(t, l, "docker.io", "pinned", 3)
	for n := range 300 {
		putLinkAt(t, l, "docker.io", "library/app", n)
	}
	for n := range 5000 {
		putLinkAt(t, l, "docker.io", fmt.Sprint("r", n), 3)
	}
	if found := l.places(t); found["docker.io"] < 300+fewPlaces {
		t.Errorf("%d places", found["docker.io"])
	}
	for n := range 300 {
		if err := l.index.scan(linkPrefix(digest.FromString(fmt.Sprint(n))), func([]byte, []byte) bool { n = -1; return false }); err != nil || n >= 0 {
			t.Errorf("blob %d has no place, %v", n, err)
		}
	}
	key := linkKey(Place{Upstream: "docker.io", Repository: "pinned"}, digest.FromString("3"))
	if _, ok, err := l.index.read(key); !ok || err != nil {
		t.Errorf("what was pinned is gone, %v", err)
	}
}

// TestLinkLedger_Full: if all links are pinned, a new one is not recorded, and a recorded one
// can change.
func TestLinkLedger_Full(t *testing.T) {
	t.Parallel()
	l := linksIn(t, 100*oneLink(20))
	for n := range 200 {
		putLinkAt(t, l, fmt.Sprintf("registry-%d.test", n), "pinned", 1)
	}
	before := l.places(t)
	if n := len(before); n < 80 || n > 110 {
		t.Errorf("%d places", n)
	}
	p := Place{Upstream: "registry-1.test", Repository: "pinned"}
	if err := l.put(linkKey(p, digest.FromString("1")), Link{MediaType: "m/t", Size: 5}.encode()); err != nil {
		t.Fatal(err)
	}
	e, ok, err := l.index.read(linkKey(p, digest.FromString("1")))
	if !ok || err != nil || decodeLink(e.value).MediaType != "m/t" {
		t.Errorf("%v, %v, %v", e, ok, err)
	}
}

// TestLinkLedger_ForgottenBlobs: links that are removed with their blobs count until the next recount.
func TestLinkLedger_ForgottenBlobs(t *testing.T) {
	t.Parallel()
	l := linksIn(t, 100*oneLink(20))
	for n := range 1000 {
		putLinkAt(t, l, "docker.io", "library/app", n)
		if err := l.index.Forget(digest.FromString(fmt.Sprint(n))); err != nil {
			t.Fatal(err)
		}
	}
	putLinkAt(t, l, "docker.io", "library/app", 2000)
	if _, err := l.trim(t.Context()); err != nil {
		t.Fatal(err)
	}
	if found := l.places(t); found["docker.io"] != 1 {
		t.Errorf("%d places", found["docker.io"])
	}
}

// TestLinkLedger_Unrecorded: a link that does not fit can be read for passingFor.
func TestLinkLedger_Unrecorded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := linksIn(t, 1)
		key := linkKey(Place{Upstream: "docker.io", Repository: "app"}, digest.FromString("x"))
		if err := l.put(key, Link{MediaType: "m/t", Size: 5}.encode()); err != nil {
			t.Fatal(err)
		}
		for _, want := range []bool{true, false} {
			mediaType := ""
			ok, err := l.get(key, func(b []byte) error { mediaType = decodeLink(b).MediaType; return nil })
			if ok != want || err != nil || want && mediaType != "m/t" {
				t.Errorf("%v %q, %v, want %v", ok, mediaType, err, want)
			}
			time.Sleep(passingFor)
		}
	})
}
