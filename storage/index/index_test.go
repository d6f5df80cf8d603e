package index

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

func TestTags(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	x := openIndex(t, dir, Config{})
	k := TagKey{Upstream: "docker.io", Repository: "library/a", Name: "latest"}
	if _, ok, err := x.Tag(k); ok || err != nil {
		t.Error("unknown tag found")
	}
	want := Tag{Digest: digest.FromString("x"), Checked: time.Now().Round(0)}
	if err := x.PutTag(k, want, time.Hour); err != nil {
		t.Fatal(err)
	}
	if err := x.Close(); err != nil {
		t.Fatal(err)
	}
	x = openIndex(t, dir, Config{})
	got, ok, err := x.Tag(k)
	if err != nil || !ok || got.Digest != want.Digest || !got.Checked.Equal(want.Checked) {
		t.Errorf("got %v %v, want %v", got, ok, want)
	}
	for _, other := range []TagKey{
		{"docker.io", "library/a", "lates"},
		{"docker.io", "library", "a/latest"},
		{"docker.iolibrary", "a", "latest"},
	} {
		if _, ok, err := x.Tag(other); ok || err != nil {
			t.Errorf("%v found", other)
		}
	}
	if err := x.RemoveTag(k); err != nil {
		t.Fatal(err)
	}
	if _, ok, err := x.Tag(k); ok || err != nil {
		t.Error("deleted tag found")
	}
}

// TestAllTags: every tag is visited once, and malformed entries are skipped.
func TestAllTags(t *testing.T) {
	t.Parallel()
	x := openIndex(t, t.TempDir(), Config{})
	want := map[TagKey]digest.Digest{
		{"docker.io", "library/a", "latest"}:      digest.FromString("1"),
		{"docker.io", "library/a", "tags/list"}:   digest.FromString("2"),
		{"docker.io", "library/b", "latest"}:      digest.FromString("1"),
		{"localhost:5000", "library/a", "latest"}: digest.FromString("3"),
	}
	for k, d := range want {
		if err := x.PutTag(k, Tag{Digest: d, Checked: time.Unix(5, 6)}, time.Hour); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(x.PutRecords(map[digest.Digest]Record{digest.FromString("1"): {Size: 100}}), x.PutLink(library(), digest.FromString("1"), Link{})); err != nil {
		t.Fatal(err)
	}
	for key, value := range map[string][]byte{
		string(tagKey(TagKey{"u", "r", "short"})): {1},
		string(tagKey(TagKey{"u", "r", "lie"})):   append(make([]byte, 8), pack(nil, digest.FromString("x"))[1:]...),
		"t":                                       Tag{Digest: digest.FromString("x")}.encode(),
		"tu\x00r":                                 Tag{Digest: digest.FromString("x")}.encode(),
		"tu\x00r\x00n\x00m":                       Tag{Digest: digest.FromString("x")}.encode(),
	} {
		if err := x.put([]byte(key), value, 0); err != nil {
			t.Fatal(err)
		}
	}
	got := map[TagKey]digest.Digest{}
	if err := x.Tags(func(k TagKey, tag Tag) bool {
		if _, twice := got[k]; twice || !tag.Checked.Equal(time.Unix(5, 6)) {
			t.Errorf("%v again, or not as put: %v", k, tag)
		}
		got[k] = tag.Digest
		return true
	}); err != nil || !maps.Equal(got, want) {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
	visits := 0
	if err := x.Tags(func(TagKey, Tag) bool { visits++; return visits < 2 }); err != nil || visits != 2 {
		t.Errorf("%d visits after a stop at 2, %v", visits, err)
	}
}

// TestScan_Ordered: a walk in order visits stored and waiting entries from any start, each key
// once, with its newer value.
func TestScan_Ordered(t *testing.T) {
	t.Parallel()
	x := openIndex(t, t.TempDir(), Config{})
	name := func(n int) string { return fmt.Sprintf("v%02d", n) }
	for n := range 30 {
		k := TagKey{"docker.io", "library/a", name(n)}
		if err := x.PutTag(k, Tag{digest.FromString("old"), time.Now()}, time.Hour); err != nil {
			t.Fatal(err)
		}
	}
	// As on a full disk, these entries wait.
	x.mu.Lock()
	for n := 0; n < 40; n += 3 {
		k := string(tagKey(TagKey{"docker.io", "library/a", name(n)}))
		x.waiting[k] = entry{value: Tag{digest.FromString("new"), time.Now()}.encode(), deleted: n%2 == 1}
	}
	x.waits.Store(int64(len(x.waiting)))
	x.mu.Unlock()
	var want []string
	for n := range 40 {
		waits := n%3 == 0
		if waits && n%2 == 0 || !waits && n < 30 {
			want = append(want, name(n))
		}
	}
	for _, size := range []int{1, 2, 7, 100} {
		var got []string
		for after := ""; ; {
			page, next, err := x.TagsAfter("docker.io", "library/a", after, size)
			if err != nil || len(page) > size {
				t.Fatal(len(page), err)
			}
			for _, tag := range page {
				got = append(got, tag.Name)
				var n int
				_, _ = fmt.Sscanf(tag.Name, "v%d", &n)
				if fresh := tag.Digest == digest.FromString("new"); fresh != (n%3 == 0) {
					t.Errorf("%s is %s", tag.Name, tag.Digest)
				}
			}
			if after = next; next == "" {
				break
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("pages of %d: %v\nwant %v", size, got, want)
		}
	}
	x.mu.Lock()
	clear(x.waiting)
	x.waits.Store(0)
	x.mu.Unlock()
}

// TestForget_MalformedRecord: a malformed record is not read, but can be forgotten. Forget writes
// nothing if there is no record.
func TestForget_MalformedRecord(t *testing.T) {
	t.Parallel()
	x := openIndex(t, t.TempDir(), Config{})
	d := digest.FromString("x")
	if err := errors.Join(x.PutRecords(map[digest.Digest]Record{d: {Size: -1}}), x.PutLink(library(), d, Link{Size: -1})); err != nil {
		t.Fatal(err)
	}
	if _, ok, err := x.Record(d); ok || err != nil {
		t.Errorf("a negative size is read: %v", err)
	}
	for _, writes := range []uint64{1, 0} {
		before := x.Writes()
		if err := x.Forget(d); err != nil || x.Writes() != before+writes {
			t.Errorf("%d writes, want %d; %v", x.Writes()-before, writes, err)
		}
		for _, prefix := range [][]byte{blobKey(d), linkPrefix(d)} {
			if err := x.scan(prefix, func(key, _ []byte) bool { t.Errorf("%q is left", key); return true }); err != nil {
				t.Error(err)
			}
		}
	}
}

// TestBlobs: a walk visits each valid record once, with its own links, whether the caller reads
// them or not.
func TestBlobs(t *testing.T) {
	t.Parallel()
	x := openIndex(t, t.TempDir(), Config{})
	records, places := map[digest.Digest]Record{}, map[int64]int{}
	for n := range int64(50) {
		d := digest.FromString(fmt.Sprint(n))
		if n%10 != 9 { // others have links only
			records[d] = Record{Size: n - 1} // the first is malformed
		}
		for p := range n % 5 {
			if err := x.PutLink(Place{Upstream: "u", Repository: fmt.Sprint(n, "/", p), Manifest: p == 0}, d, Link{MediaType: "m/t", Size: n}); err != nil {
				t.Fatal(err)
			}
		}
		if n > 0 && n%10 != 9 {
			places[n-1] = int(n % 5)
		}
	}
	if err := x.PutRecords(records); err != nil {
		t.Fatal(err)
	}
	for _, every := range []int64{1, 2, 3} {
		want, got := maps.Clone(places), map[int64]int{}
		maps.DeleteFunc(want, func(size int64, _ int) bool { return size%every != 0 })
		for b, err := range x.Blobs() {
			if err != nil {
				t.Fatal(err)
			}
			if b.Size%every != 0 {
				continue
			}
			got[b.Size] += 0
			for l := range b.Links {
				got[b.Size]++
				place := l.Place()
				if place.Upstream != "u" || place.Repository[:len(fmt.Sprint(b.Size+1))+1] != fmt.Sprint(b.Size+1, "/") || l.MediaType() != "m/t" || l.Digest() != digest.FromString(fmt.Sprint(b.Size+1)) {
					t.Errorf("blob %d has %+v", b.Size, place)
				}
			}
		}
		if !maps.Equal(got, want) {
			t.Errorf("%v, want %v", got, want)
		}
	}
	for b, err := range x.Blobs() { // a walk can be stopped
		for range b.Links {
			break
		}
		if err != nil || b.Size > 30 {
			break
		}
	}
}

// TestDigests: each digest is visited once, in order, from any start.
func TestDigests(t *testing.T) {
	t.Parallel()
	x := openIndex(t, t.TempDir(), Config{})
	var all, linked []digest.Digest
	for n := range 20 {
		d := digest.FromString(fmt.Sprint(n))
		all = append(all, d)
		if err := x.PutRecords(map[digest.Digest]Record{d: {Size: 1}}); err != nil {
			t.Fatal(err)
		}
		for _, p := range []Place{{"u", "r", false}, {"u", "r", true}, {"u", "other", false}, {"v", fmt.Sprint("r", n%2), false}} {
			if err := x.PutLink(p, d, Link{}); err != nil {
				t.Fatal(err)
			}
		}
		if n%2 == 1 {
			linked = append(linked, d)
		}
	}
	slices.Sort(all)
	slices.Sort(linked)
	for name, tc := range map[string]struct {
		walk func(after digest.Digest) (got []digest.Digest)
		want []digest.Digest
	}{
		"recorded": {func(after digest.Digest) (got []digest.Digest) {
			for d, err := range x.Digests(after) {
				got = append(got, d)
				if err != nil {
					t.Error(err)
				}
			}
			return got
		}, all},
		"linked": {func(after digest.Digest) (got []digest.Digest) {
			for d, err := range x.LinkedDigests("v", "r1", after) {
				got = append(got, d)
				if err != nil {
					t.Error(err)
				}
			}
			return got
		}, linked},
		"linked anywhere": {func(after digest.Digest) (got []digest.Digest) {
			for d, err := range x.LinkedDigests("", "", after) {
				got = append(got, d)
				if err != nil {
					t.Error(err)
				}
			}
			return got
		}, all},
	} {
		if got := tc.walk(""); !slices.Equal(got, tc.want) {
			t.Errorf("%s: %v, want %v", name, got, tc.want)
		}
		for i, d := range tc.want {
			if got := tc.walk(d); !slices.Equal(got, tc.want[i+1:]) {
				t.Errorf("%s after the %dth: %v", name, i, got)
			}
		}
	}
}
