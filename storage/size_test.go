package storage

import (
	"math"
	"slices"
	"testing"

	"github.com/opencontainers/go-digest"
)

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
