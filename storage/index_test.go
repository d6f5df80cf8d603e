package storage

import (
	"errors"
	"maps"
	"math"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

func TestTags(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := openStore(t, dir)
	k := TagKey{Upstream: "docker.io", Repository: "library/a", Name: "latest"}
	if _, ok := s.Tag(k); ok {
		t.Error("unknown tag found")
	}
	want := Tag{Digest: digest.FromString("x"), Checked: time.Now().Round(0)}
	if err := s.PutTag(k, want, time.Hour); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, dir)
	got, ok := s.Tag(k)
	if !ok || got.Digest != want.Digest || !got.Checked.Equal(want.Checked) {
		t.Errorf("got %v %v, want %v", got, ok, want)
	}
	for _, other := range []TagKey{
		{"docker.io", "library/a", "lates"},
		{"docker.io", "library", "a/latest"},
		{"docker.iolibrary", "a", "latest"},
	} {
		if _, ok := s.Tag(other); ok {
			t.Errorf("%v found", other)
		}
	}
	if err := s.DeleteTag(k); err != nil {
		t.Fatal(err)
	}
	if _, ok := s.Tag(k); ok {
		t.Error("deleted tag found")
	}
}

// TestAllTags: every pointer is visited once, and what is not one is passed over.
func TestAllTags(t *testing.T) {
	t.Parallel()
	s := openStore(t, t.TempDir())
	want := map[TagKey]digest.Digest{
		{"docker.io", "library/a", "latest"}:      digest.FromString("1"),
		{"docker.io", "library/a", "tags/list"}:   digest.FromString("2"),
		{"docker.io", "library/b", "latest"}:      digest.FromString("1"),
		{"localhost:5000", "library/a", "latest"}: digest.FromString("3"),
	}
	for k, d := range want {
		if err := s.PutTag(k, Tag{Digest: d, Checked: time.Unix(5, 6)}, time.Hour); err != nil {
			t.Fatal(err)
		}
	}
	put(t, s, 1, 100, 1, true)
	for key, value := range map[string][]byte{
		string(tagKey(TagKey{"u", "r", "short"})): {1},
		string(tagKey(TagKey{"u", "r", "lie"})):   append(make([]byte, 8), pack(nil, digest.FromString("x"))[1:]...),
		"t":                                       Tag{Digest: digest.FromString("x")}.encode(),
		"tu\x00r":                                 Tag{Digest: digest.FromString("x")}.encode(),
		"tu\x00r\x00n\x00m":                       Tag{Digest: digest.FromString("x")}.encode(),
	} {
		if err := s.index.put([]byte(key), value, 0); err != nil {
			t.Fatal(err)
		}
	}
	got := map[TagKey]digest.Digest{}
	if err := s.Tags(func(k TagKey, tag Tag) bool {
		if _, twice := got[k]; twice || !tag.Checked.Equal(time.Unix(5, 6)) {
			t.Errorf("%v again, or not as put: %v", k, tag)
		}
		got[k] = tag.Digest
		return true
	}); err != nil || !maps.Equal(got, want) {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
	visits := 0
	if err := s.Tags(func(TagKey, Tag) bool { visits++; return visits < 2 }); err != nil || visits != 2 {
		t.Errorf("%d visits after a stop at 2, %v", visits, err)
	}
}

// TestSpoiltRecords: a record that cannot be decoded is written anew from the disk.
func TestSpoiltRecords(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := openStore(t, dir)
	good, spoilt, lost := put(t, s, 1, 1000, 7, true), put(t, s, 2, 4000, 3, false), put(t, s, 3, 8000, 3, false)
	for _, d := range []digest.Digest{spoilt, lost} {
		if err := s.index.put(blobKey(d), []byte("no record"), 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(s.Close(), os.Remove(s.disk.blob(lost))); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, dir)
	s.reconcile()
	info, err := os.Stat(s.disk.blob(spoilt))
	if err != nil {
		t.Fatal(err)
	}
	for d, want := range map[digest.Digest]record{
		good:   {size: 1000, accessed: 7, manifest: true},
		spoilt: {size: 4000, accessed: info.ModTime().Unix()},
	} {
		if r, ok, err := s.index.record(d); err != nil || !ok || r != want {
			t.Errorf("record %+v %v %v, want %+v", r, ok, err, want)
		}
	}
	checkDisk(t, s)

	// One whose file is gone too was never counted.
	s.forget(lost)
	checkDisk(t, s)
	if keys(t, s, blobKey(lost)) != 0 {
		t.Error("record of a blob that is gone")
	}
}

func TestParseSize(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]Size{
		"0": {}, "1024": {Bytes: 1024}, "50GiB": {Bytes: 50 << 30}, "500MB": {Bytes: 500e6},
		"5%": {Percent: 5}, "0.5 %": {Percent: .5}, " 1 KiB ": {Bytes: 1024}, "0%": {},
	} {
		got, err := ParseSize(in)
		if err != nil || got != want {
			t.Errorf("%q: %v %v, want %v", in, got, err, want)
		}
	}
	for _, in := range []string{"", "x", "-1", "-5%", "101%", "NaN%", "5 apples", "99999999999999TiB", "%"} {
		if got, err := ParseSize(in); err == nil {
			t.Errorf("%q: %v, want an error", in, got)
		}
	}
}

func FuzzParseSize(f *testing.F) {
	for _, s := range []string{"50GiB", "5%", "0", "1.5MiB", "1e300%"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		v, err := ParseSize(s)
		if err != nil {
			return
		}
		if v.Bytes < 0 || v.Percent < 0 || v.Percent > 100 || math.IsNaN(v.Percent) {
			t.Fatalf("%q: %+v", s, v)
		}
		again, err := ParseSize(v.String())
		if err != nil || again != v {
			t.Errorf("%q: %+v is written as %q and read as %+v, %v", s, v, v.String(), again, err)
		}
	})
}

func FuzzParseDigest(f *testing.F) {
	for _, s := range []string{string(digest.FromString("x")), "sha512:../..", "sha256:ABC", "md5:d41d8cd98f00b204e9800998ecf8427e", ""} {
		f.Add(s)
	}
	k := disk{root: "/r"}
	f.Fuzz(func(t *testing.T, s string) {
		d, err := ParseDigest(s)
		if parsed, perr := digest.Parse(s); (err == nil) != (perr == nil && slices.Contains(algorithms(), parsed.Algorithm())) {
			t.Errorf("%q: %v, the library says %v", s, err, perr)
		}
		if err != nil {
			return
		}
		hex := d.Encoded()
		if want := "/r/blobs/" + d.Algorithm().String() + "/" + hex[:2] + "/" + hex; k.blob(d) != want {
			t.Errorf("%q is kept in %q", s, k.blob(d))
		}
	})
}
