package index

import (
	"encoding/hex"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"golang.org/x/sys/unix"
)

// tagsIn returns the ledger of tags of an index. No goroutine trims it.
func tagsIn(tb testing.TB, dir string, bound int64, pinned ...string) *tagLedger {
	tb.Helper()
	return openIndex(tb, dir, Config{Max: bound, Pinned: func(_, repository string) bool { return slices.Contains(pinned, repository) }}).tags
}

// ago returns a tag that was checked so many minutes ago.
func ago(minutes int) Tag {
	return Tag{Digest: digest.FromString("x"), Checked: time.Now().Add(-time.Duration(minutes) * time.Minute)}
}

// putTag records a tag and, if kept, the link that a pull leaves.
func putTag(tb testing.TB, l *tagLedger, k TagKey, t Tag, kept bool) {
	tb.Helper()
	if kept {
		if err := l.index.put(linkKey(Place{Upstream: k.Upstream, Repository: k.Repository, Manifest: !k.IsList()}, t.Digest), Link{MediaType: "m", Size: 1}.encode(), 0); err != nil {
			tb.Fatal(err)
		}
	}
	if err := l.put(k, t, time.Hour); err != nil {
		tb.Fatal(err)
	}
	if bytes, _ := l.totals(); l.max > 0 && bytes > l.max {
		tb.Fatalf("tags take %d bytes of %d", bytes, l.max)
	}
}

// names returns the tags by repository, and checks the ledger's totals.
func (l *tagLedger) names(tb testing.TB) map[string][]string {
	tb.Helper()
	names := map[string][]string{}
	var bytes, count int64
	err := l.index.scan([]byte{'t'}, func(key, value []byte) bool {
		k, err := decodeTagKey(key)
		if err != nil {
			tb.Error(err)
		}
		names[k.Upstream+"/"+k.Repository] = append(names[k.Upstream+"/"+k.Repository], k.Name)
		bytes, count = bytes+recordBytes(key, value), count+1
		return true
	})
	if err != nil {
		tb.Fatal(err)
	}
	if b, n := l.totals(); b != bytes || n != count {
		tb.Errorf("the ledger says %d bytes of %d tags, there are %d of %d", b, n, bytes, count)
	}
	if n := testutil.ToFloat64(l.metrics.tags); n != float64(count) {
		tb.Errorf("the metric says %v tags, there are %d", n, count)
	}
	return names
}

func trimmed(tb testing.TB, l *tagLedger) {
	tb.Helper()
	if enough, err := l.trim(tb.Context()); err != nil || !enough {
		tb.Errorf("trim: %v %v", enough, err)
	}
}

// oneTag returns the size of a record of putTag with a repository and a name of 3 letters.
func oneTag() int64 {
	return recordBytes(tagKey(TagKey{"docker.io", "rep", "100"}), Tag{Digest: digest.FromString("x")}.encode())
}

// TestTagLedger_Evicts: tags that only HEADs requested are evicted first, the least recently
// checked before others. Then tags with stored content. Pinned tags stay.
func TestTagLedger_Evicts(t *testing.T) {
	t.Parallel()
	const room = 400
	l := tagsIn(t, t.TempDir(), room*oneTag(), "pin")
	for n := range 100 {
		putTag(t, l, TagKey{"docker.io", "old", fmt.Sprint(100 + n)}, ago(1000), true)
		putTag(t, l, TagKey{"docker.io", "pin", fmt.Sprint(100 + n)}, ago(2000), false)
	}
	for n := range 600 { // more than there is room for, each checked later than the one before
		putTag(t, l, TagKey{"docker.io", "hea", fmt.Sprint(100 + n)}, ago(900-n), false)
		if len(l.wanted) > 0 {
			<-l.wanted
			trimmed(t, l)
		}
	}
	names := l.names(t)
	if a, b := len(names["docker.io/old"]), len(names["docker.io/pin"]); a != 100 || b != 100 {
		t.Errorf("%d of 100 that are kept, and %d of 100 that are pinned", a, b)
	}
	heads := names["docker.io/hea"]
	slices.Sort(heads)
	if n := len(heads); n < room*recordsLow/100-200 || n > room-200 || heads[0] != fmt.Sprint(700-n) || heads[n-1] != "699" {
		t.Errorf("%d heads, of %s to %s", n, heads[0], heads[n-1])
	}
	if n := testutil.ToFloat64(l.metrics.evictedTags); n != float64(600-len(heads)) {
		t.Errorf("the metric says %v evicted", n)
	}

	// If all other tags have stored content, the least recently checked are evicted, lists too.
	for n := range 300 {
		name := fmt.Sprint(100 + n)
		if n%3 == 0 {
			name = fmt.Sprintf("tags/list?n=%d", n)
		}
		putTag(t, l, TagKey{"docker.io", "new", name}, ago(0), true)
		if len(l.wanted) > 0 {
			<-l.wanted
			trimmed(t, l)
		}
	}
	names = l.names(t)
	if n := len(names["docker.io/pin"]); n != 100 {
		t.Errorf("%d of 100 that are pinned", n)
	}
	if n := len(names["docker.io/hea"]) + len(names["docker.io/old"]); n != 0 && len(names["docker.io/new"]) < 300 {
		t.Errorf("%d older ones are left, and %d of 300 newer ones", n, len(names["docker.io/new"]))
	}
}

// TestTagLedger_Shares: a registry that fills the index loses its own tags, also under many
// names.
func TestTagLedger_Shares(t *testing.T) {
	t.Parallel()
	for name, upstream := range map[string]func(n int) string{
		"a registry": func(int) string { return "evil.test" },
		"many names": func(n int) string { return fmt.Sprintf("evil%d.test", n) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := tagsIn(t, t.TempDir(), 500*oneTag())
			listed := func(upstream string) bool { return !strings.HasPrefix(upstream, "evil") || upstream == "evil.test" }
			l.listed.Store(&listed)
			for n := range 100 {
				putTag(t, l, TagKey{"docker.io", "rep", fmt.Sprint(100 + n)}, ago(1000), true)
			}
			for n := range 90 {
				putTag(t, l, TagKey{"quay.io", "rep", fmt.Sprint(100 + n)}, ago(1000), true)
			}
			for n := range 700 {
				putTag(t, l, TagKey{upstream(n), "rep", fmt.Sprint(100 + n)}, ago(0), true)
				putTag(t, l, TagKey{upstream(n), "hea", fmt.Sprint(100 + n)}, ago(0), false)
				if len(l.wanted) > 0 {
					<-l.wanted
					trimmed(t, l)
				}
			}
			names := l.names(t)
			if n, q := len(names["docker.io/rep"]), len(names["quay.io/rep"]); n != 100 || q != 90 {
				t.Errorf("%d of docker.io's 100 tags are left, and %d of quay.io's 90", n, q)
			}
		})
	}
}

func TestParts(t *testing.T) {
	t.Parallel()
	head := func(group string) cell { return cell{false, group} }
	kept := func(group string) cell { return cell{true, group} }
	for _, tc := range []struct {
		sizes map[cell]int64
		take  int64
		want  map[cell]int64
	}{
		{map[cell]int64{head("a"): 10}, 4, map[cell]int64{head("a"): 4}},
		{map[cell]int64{head("a"): 10, kept("a"): 90}, 4, map[cell]int64{head("a"): 4}},
		{map[cell]int64{head("a"): 10, kept("a"): 90}, 40, map[cell]int64{head("a"): 10, kept("a"): 30}},
		{map[cell]int64{head("a"): 100, head("b"): 30}, 50, map[cell]int64{head("a"): 50}},
		{map[cell]int64{head("a"): 100, head("b"): 30}, 80, map[cell]int64{head("a"): 75, head("b"): 5}},
		{map[cell]int64{head("a"): 5, head("b"): 5}, 20, map[cell]int64{head("a"): 5, head("b"): 5}},
		{map[cell]int64{kept("a"): 5}, 0, map[cell]int64{}},
		{nil, 10, map[cell]int64{}},
	} {
		if got := parts(tc.sizes, tc.take); !maps.Equal(got, tc.want) {
			t.Errorf("%d of %v: %v, want %v", tc.take, tc.sizes, got, tc.want)
		}
	}
}

// TestTagLedger_Full: above the bound, a new tag is not recorded, but a known one can change.
// If all tags are pinned, none is evicted.
func TestTagLedger_Full(t *testing.T) {
	t.Parallel()
	l := tagsIn(t, t.TempDir(), 100*oneTag(), "pin")
	for n := range 200 {
		putTag(t, l, TagKey{"docker.io", "pin", fmt.Sprint(100 + n)}, ago(10), true)
	}
	if enough, err := l.trim(t.Context()); enough || err != nil {
		t.Errorf("trimmed what is pinned: %v %v", enough, err)
	}
	if n := len(l.names(t)["docker.io/pin"]); n != 100 {
		t.Errorf("%d tags, want 100", n)
	}
	if n := testutil.ToFloat64(l.metrics.unrecordedTags); n != 100 {
		t.Errorf("the metric says %v were not recorded, want 100", n)
	}
	k, moved := TagKey{"docker.io", "pin", "100"}, ago(0)
	putTag(t, l, k, moved, true)
	_ = l.names(t)
	if err := l.index.scan(tagKey(k), func(_, value []byte) bool {
		if got, err := decodeTag(value); err != nil || !got.Checked.Equal(moved.Checked.Round(0)) {
			t.Errorf("got %v %v", got, err)
		}
		return true
	}); err != nil {
		t.Error(err)
	}
	if err := l.remove(tagKey(k), tagKey(TagKey{"docker.io", "pin", "absent"})); err != nil {
		t.Error(err)
	}
	putTag(t, l, TagKey{"docker.io", "pin", "999"}, ago(0), true)
	if names := l.names(t)["docker.io/pin"]; len(names) != 100 || !slices.Contains(names, "999") || slices.Contains(names, "100") {
		t.Errorf("%d tags: %v", len(names), names)
	}
}

// TestTagLedger_CheckedSince: a tag that is checked after it was picked is not evicted.
func TestTagLedger_CheckedSince(t *testing.T) {
	t.Parallel()
	l := tagsIn(t, t.TempDir(), 100*oneTag())
	for n := range 10 {
		putTag(t, l, TagKey{"docker.io", "rep", fmt.Sprint(100 + n)}, ago(100-n), false)
	}
	picked, err := l.pick(t.Context(), 3*oneTag())
	if err != nil || len(picked) != 3 {
		t.Fatalf("%d picked, %v", len(picked), err)
	}
	putTag(t, l, TagKey{"docker.io", "rep", "101"}, ago(0), false)
	if _, n, err := l.evict(picked); n != 2 || err != nil {
		t.Errorf("%d evicted, %v", n, err)
	}
	if names := l.names(t)["docker.io/rep"]; len(names) != 8 || !slices.Contains(names, "101") {
		t.Errorf("left are %v", names)
	}
}

// TestTagLedger_Recount: after a start, and after tags have expired, the totals are those of
// the index.
func TestTagLedger_Recount(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l := tagsIn(t, dir, 1<<20)
	for n := range 50 {
		putTag(t, l, TagKey{"docker.io", "rep", fmt.Sprint(n)}, ago(0), false)
	}
	want, _ := l.totals()
	if err := l.index.Close(); err != nil {
		t.Fatal(err)
	}
	l = tagsIn(t, dir, 1<<20)
	l.index.Recount(t.Context())
	if bytes, count := l.totals(); bytes != want || count != 50 {
		t.Errorf("after a start: %d bytes of %d tags, want %d of 50", bytes, count, want)
	}

	l = tagsIn(t, t.TempDir(), 0)
	putTag(t, l, TagKey{"docker.io", "rep", "100"}, ago(0), false)
	if err := l.put(TagKey{"docker.io", "rep", "101"}, ago(0), time.Nanosecond); err != nil {
		t.Fatal(err)
	}
	if err := l.recount(t.Context()); err != nil {
		t.Fatal(err)
	}
	if bytes, count := l.totals(); bytes != oneTag() || count != 1 {
		t.Errorf("with one that has expired: %d bytes of %d tags, want %d of 1", bytes, count, oneTag())
	}
	_ = l.names(t)
}

// TestTagLedger_RecountTwice: concurrent recounts, as by maintenance and an eviction, count
// each record once.
func TestTagLedger_RecountTwice(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l := tagsIn(t, dir, 1<<20)
	for n := range 1000 {
		putTag(t, l, TagKey{"docker.io", "rep", fmt.Sprint(n)}, ago(0), false)
	}
	if err := l.index.Close(); err != nil {
		t.Fatal(err)
	}
	l = tagsIn(t, dir, 1<<20)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if err := l.recount(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	_ = l.names(t)
}

// TestTagLedger_OnDisk: after far more tags than the bound allows, and a compaction by badger,
// the disk has about the bound.
func TestTagLedger_OnDisk(t *testing.T) {
	t.Parallel()
	const bound, starts, records, length = 1 << 20, 12, 1500, 800 // 15 MB in all
	dir := t.TempDir()
	random := rand.NewChaCha8([32]byte{1})
	name := make([]byte, length/2)
	run := func(n int) { // each run leaves one badger table
		l := tagsIn(t, dir, bound)
		x := l.index
		x.confirmOpened()
		entries := map[string]entry{}
		for range records { // as [tagLedger] does one by one
			_, _ = random.Read(name) // random names do not compress
			entries[string(tagKey(TagKey{"docker.io", "library/app", hex.EncodeToString(name)}))] = entry{value: ago(2*starts - n).encode()}
		}
		if err := x.write(entries); err != nil {
			t.Fatal(err)
		}
		trimmed(t, l)
		if err := x.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for n := range starts { // badger compacts some of their tables in between
		run(n)
	}
	// On a slow machine badger has moved some tables together. Flatten leaves those as they are
	// until there are more.
	for n := starts; flattened(t, dir) > 2*bound && n < 2*starts; n++ {
		run(n)
	}
	if after := flattened(t, dir); after < bound/2 || after > 2*bound {
		t.Errorf("%d bytes on disk, want some %d", after, bound)
	}
	l := tagsIn(t, dir, bound)
	if err := l.recount(t.Context()); err != nil {
		t.Fatal(err)
	}
	_ = l.names(t)
}

// flattened makes badger compact level by level, and returns the size of its tables in bytes.
func flattened(t *testing.T, dir string) (size int64) {
	t.Helper()
	x := openIndex(t, dir, Config{})
	x.confirmOpened()
	db := x.db.Load()
	if err := db.Flatten(1); err != nil {
		t.Fatal(err)
	}
	for _, table := range db.Tables() {
		size += int64(table.OnDiskSize)
	}
	t.Logf("tables of %d bytes", size)
	if err := x.Close(); err != nil {
		t.Fatal(err)
	}
	return size
}

// BenchmarkTrimMillionTags measures the eviction of an eighth of a million tags.
func BenchmarkTrimMillionTags(b *testing.B) {
	const n = 1_000_000
	l := tagsIn(b, b.TempDir(), 0)
	entries := map[string]entry{}
	for i := range n {
		k := TagKey{"docker.io", fmt.Sprintf("library/app%d", i%1000), fmt.Sprint("v", i)}
		entries[string(tagKey(k))] = entry{value: ago(i % 10_000).encode()}
		if len(entries) == batch {
			if err := l.index.write(entries); err != nil {
				b.Fatal(err)
			}
			clear(entries)
		}
	}
	if err := l.recount(b.Context()); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		bytes, _ := l.totals()
		l.max = bytes // full: it does not rest
		begun := cpuSeconds(b)
		if enough, err := l.trim(b.Context()); !enough || err != nil {
			b.Fatal(enough, err)
		}
		b.ReportMetric(cpuSeconds(b)-begun, "cpu-s/op")
	}
}

func cpuSeconds(tb testing.TB) float64 {
	tb.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		tb.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()).Seconds()
}
