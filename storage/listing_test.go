package storage

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/cachalot-registry/cachalot/storage/index"
)

// TestSummary: a summary counts a blob once for each upstream, and once for each repository
// that has it.
func TestSummary(t *testing.T) {
	t.Parallel()
	s := openStore(t, t.TempDir())
	shared := put(t, s, 1, 10_000, 100, false)
	put(t, s, 2, 5000, 200, false)
	lost := put(t, s, 3, 100, 300, true)
	for _, sc := range []Scope{{Upstream: "u", Repository: "other"}, {Upstream: "v", Repository: "r"}} {
		if err := s.PutLink(sc, shared, ""); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.index.RemoveLinks(lost, []index.Place{{Upstream: "u", Repository: "r", Manifest: true}}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"1", "2", "tags/list"} {
		if err := s.PutTag(TagKey{Upstream: "u", Repository: "r", Name: name}, Tag{Digest: shared, Checked: time.Now()}, time.Hour); err != nil {
			t.Fatal(err)
		}
	}
	sum, err := s.Summary(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range sum.Repositories {
		got = append(got, fmt.Sprintf("%s/%s: %d tags, %d blobs, %d bytes, used %d", r.Upstream, r.Repository, r.Tags, r.Blobs, r.DiskBytes, r.Used.Unix()))
	}
	for _, u := range append(sum.Upstreams, sum.Unlinked) {
		got = append(got, fmt.Sprintf("%s: %d repositories, %d tags, %d blobs, %d bytes", u.Upstream, u.Repositories, u.Tags, u.Blobs, u.DiskBytes))
	}
	want := []string{
		"u/other: 0 tags, 1 blobs, 12288 bytes, used 100", "u/r: 2 tags, 2 blobs, 20480 bytes, used 200", "v/r: 0 tags, 1 blobs, 12288 bytes, used 100",
		"u: 2 repositories, 2 tags, 2 blobs, 20480 bytes", "v: 1 repositories, 0 tags, 1 blobs, 12288 bytes", ": 0 repositories, 0 tags, 1 blobs, 4096 bytes",
	}
	if !slices.Equal(got, want) {
		t.Errorf("%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	// A Summary is cached until InvalidateSummary, as after a purge.
	put(t, s, 4, 100, 400, false)
	if again, err := s.Summary(t.Context()); err != nil || !again.Taken.Equal(sum.Taken) {
		t.Errorf("taken again: %v %v", again.Taken, err)
	}
	s.InvalidateSummary()
	if again, err := s.Summary(t.Context()); err != nil || again.Upstreams[0].Blobs != 3 {
		t.Errorf("%+v %v", again.Upstreams, err)
	}
	s.InvalidateSummary()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Summary(ctx); err == nil {
		t.Error("summed up for a caller that has left")
	}
}

// TestAccess_CountsHits: hits are counted in memory, and are in the record after a restart. A
// download, a look and a request with NoStore are not hits.
func TestAccess_CountsHits(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := openStore(t, dir)
	d := put(t, s, 1, 100_000, 100, false)
	small := put(t, s, 2, 100, 100, false)
	for range 3 {
		for _, d := range []digest.Digest{d, small} {
			b := open(t, s, Scope{Upstream: "u", Repository: "r"}, d, nil)
			b.Close()
			b = open(t, s, Scope{Upstream: "u", Repository: "r", Keep: Retention{NoStore: true}}, d, nil)
			b.Close()
		}
	}
	writes := s.index.Waiting()
	for _, d := range []digest.Digest{d, small} {
		if b, err := s.Blob(d); err != nil || b.Uses != 3 {
			t.Errorf("%+v, %v; want 3 uses", b, err)
		}
		if r, _, err := s.index.Record(d); err != nil || r.Uses != 0 || writes != 0 {
			t.Errorf("a hit has written: %+v %v", r, err)
		}
	}
	s.access.flush()
	b := open(t, s, Scope{Upstream: "u", Repository: "r"}, d, nil)
	b.Close()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, dir)
	if b, err := s.Blob(d); err != nil || b.Uses != 4 {
		t.Errorf("%+v, %v; want 4 uses", b, err)
	}
}

func TestTopBlobs(t *testing.T) {
	t.Parallel()
	s := openStore(t, t.TempDir())
	sizes := []int{100, 90_000, 5000, 70_000, 300}
	digests := make([]digest.Digest, len(sizes))
	for n, size := range sizes {
		digests[n] = put(t, s, uint64(n), size, int64(1000-n), false)
	}
	for _, test := range []struct {
		order Order
		query BlobQuery
		want  []int
	}{
		{BySize, BlobQuery{}, []int{1, 3, 2}},
		{ByUse, BlobQuery{}, []int{4, 3, 2}},
		{ByUse, BlobQuery{MinSize: 5000}, []int{3, 2, 1}},
		{ByUse, BlobQuery{Upstream: "u", UnusedSince: time.Unix(997, 0)}, []int{4}},
		{ByUse, BlobQuery{UnusedSince: time.Unix(998, 0)}, []int{4, 3}},
		{BySize, BlobQuery{Upstream: "u", Repository: "none"}, nil},
	} {
		page, err := s.TopBlobs(t.Context(), test.query, test.order, 3)
		if err != nil {
			t.Fatal(err)
		}
		var got []int
		for _, b := range page {
			got = append(got, slices.Index(digests, b.Digest))
		}
		if !slices.Equal(got, test.want) {
			t.Errorf("%+v: %v, want %v", test, got, test.want)
		}
	}
}

// TestTop: of many records, top has those that sort first.
func TestTop(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(1, 2))
	all := make([]victim, 1000)
	for i := range all {
		n := random.Uint32N(300) // some records are equal
		all[i] = victim{digest.FromBytes(tiny(i)), index.Record{Size: int64(n), Accessed: int64(n), Uses: n}}
	}
	for _, order := range []Order{ByDigest, BySize, ByUse, ByUses} {
		for _, most := range []int{0, 1, 2, 7, 300, 600, 900, len(all), len(all) + 1} {
			random.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
			got := top{order: order, most: most}
			for _, v := range all {
				if got.wants(v.Record) {
					got.offer(v)
				}
			}
			got.sort()
			want := slices.SortedFunc(slices.Values(all), got.compare)
			if want = want[:min(most, len(all))]; !slices.Equal(got.picked, want) {
				t.Errorf("order %d, %d of %d: %d others", order, most, len(all), len(got.picked))
			}
		}
	}
}
