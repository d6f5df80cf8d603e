package storage

import (
	"math"
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

func FuzzRecords(f *testing.F) {
	f.Add(record{size: 5, accessed: 7, manifest: true}.encode())
	f.Add(Tag{Digest: digest.FromString("x"), Checked: time.Unix(1, 2)}.encode())
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		if r, err := decodeRecord(b); err == nil && r.size < 0 {
			t.Errorf("negative size %d", r.size)
		}
		if tag, err := decodeTag(b); err == nil {
			if again, err := decodeTag(tag.encode()); err != nil || again.Digest != tag.Digest || !again.Checked.Equal(tag.Checked) {
				t.Errorf("%v became %v, %v", tag, again, err)
			}
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
		if err != nil {
			return
		}
		hex := d.Encoded()
		if want := "/r/blobs/" + d.Algorithm().String() + "/" + hex[:2] + "/" + hex; k.blob(d) != want {
			t.Errorf("%q is kept in %q", s, k.blob(d))
		}
	})
}
