package storage

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"log/slog"
	"maps"
	"math"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// TestFormat: whoever makes this fail makes an index that earlier versions would
// misread, and counts format up.
func TestFormat(t *testing.T) {
	t.Parallel()
	d, e := digest.FromString("x"), digest.SHA512.FromString("x")
	for want, got := range map[string][]byte{
		"b\x01" + raw(t, d):                             blobKey(d),
		"b\x02" + raw(t, e):                             blobKey(e),
		"l\x01" + raw(t, d) + "bdocker.io\x00library/a": linkKey(Scope{Upstream: "docker.io", Repository: "library/a"}, d),
		"l\x02" + raw(t, e) + "mdocker.io\x00library/a": linkKey(Scope{Upstream: "docker.io", Repository: "library/a", Manifest: true}, e),
		"tdocker.io\x00library/a\x00latest":             tagKey(TagKey{"docker.io", "library/a", "latest"}),
		"c":                                             scrubKey(),

		"\x01\xe8\x07\x80\xa8\xd6\xb9\x07\x00\x00":         record{size: 1000, accessed: 1_000_000_000, manifest: true}.encode(),
		"\x06\x00\x02\x81\x94\xeb\xdc\x03\xac\x02":         record{accessed: 1, until: 1_000_000_001, orphaned: true, again: true, uses: 300}.encode(),
		"\x00\x00\x00\x01\x2a\x05\xf2\x07\x01" + raw(t, d): Tag{Digest: d, Checked: time.Unix(5, 7)}.encode(),
		"\xe9\x07a/b": link{"a/b", 1000}.encode(),
		"\x00a/b":     link{"a/b", -1}.encode(),
	} {
		if string(got) != want || format != 2 {
			t.Errorf("%q, want %q in format %d", got, want, format)
		}
	}
}

func raw(t *testing.T, d digest.Digest) string {
	t.Helper()
	b, err := hex.DecodeString(d.Encoded())
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestMalformedRecords(t *testing.T) {
	t.Parallel()
	good := record{size: 1000, accessed: 7, until: 8, again: true}.encode()
	huge := binary.AppendUvarint([]byte{0}, math.MaxUint64)
	for name, b := range map[string][]byte{
		"nothing": nil, "unknown mark": append([]byte{flagsEnd}, good[1:]...), "longer": append(slices.Clone(good), 0),
		"only marks": good[:1], "only a size": good[:3], "no limit": good[:len(good)-1],
		"half a size": {0, 0x80}, "huge": append(huge, 0, 0), "endless": append([]byte{0}, bytes.Repeat([]byte{0x80}, 20)...),
	} {
		if r, err := decodeRecord(b); err == nil {
			t.Errorf("%s: read as %+v", name, r)
		}
	}
}

// TestKeyOrder: keys have the order of their digests, so that the scrub goes on
// where it was, and a folder's records stand together.
func TestKeyOrder(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(1, 2))
	var digests []digest.Digest
	for range 2000 {
		b := make([]byte, 64)
		for i := range b {
			b[i] = byte(random.Uint32()) & 0x81 // many begin alike
		}
		digests = append(digests, digest.NewDigestFromBytes(digest.SHA256, b[:32]), digest.NewDigestFromBytes(digest.SHA512, b))
	}
	slices.Sort(digests)
	if !slices.IsSortedFunc(digests, func(d, e digest.Digest) int { return bytes.Compare(blobKey(d), blobKey(e)) }) {
		t.Error("keys have another order than their digests")
	}
}

// TestKeysApart: what is asked of one digest, or of one folder, leaves those that
// begin alike alone: sha512 ones too, and what is no digest at all.
func TestKeysApart(t *testing.T) {
	t.Parallel()
	x := openIndex(filepath.Join(t.TempDir(), "index"), slog.New(slog.DiscardHandler))
	t.Cleanup(func() {
		if err := x.close(); err != nil {
			t.Error(err)
		}
	})
	b := make([]byte, 64)
	short, long := digest.NewDigestFromBytes(digest.SHA256, b[:32]), digest.NewDigestFromBytes(digest.SHA512, b)
	b[31], b[63] = 1, 1
	all := map[digest.Digest]record{
		short: {size: 1, accessed: 1}, long: {size: 2, accessed: 2},
		digest.NewDigestFromBytes(digest.SHA256, b[:32]): {size: 3, accessed: 3},
		digest.NewDigestFromBytes(digest.SHA512, b):      {size: 4, accessed: 4},
		digest.FromString("x"):                           {size: 5, accessed: 5},
	}
	if err := x.putRecords(all); err != nil {
		t.Fatal(err)
	}
	for d := range all {
		if err := x.put(linkKey(scope(), d), nil, 0); err != nil {
			t.Fatal(err)
		}
	}
	got := func(prefix string) map[digest.Digest]record {
		t.Helper()
		found := map[digest.Digest]record{}
		if err := x.records(prefix, func(d []byte, r record) bool { found[digest.Digest(d)] = r; return true }); err != nil {
			t.Fatal(err)
		}
		return found
	}
	for _, none := range []digest.Digest{"", "sha256:0", "sha512:x", "md5:00"} {
		if err := x.forget(none); err != nil {
			t.Error(err)
		}
	}
	if found := got(""); !maps.Equal(found, all) {
		t.Errorf("%v, want %v", found, all)
	}
	for prefix, want := range map[string]int{"sha256:00": 2, "sha512:00": 2, "sha256:01": 0, string(digest.FromString("x"))[:9]: 1} {
		if found := got(prefix); len(found) != want {
			t.Errorf("%s: %v, want %d", prefix, found, want)
		}
	}
	if err := x.forget(short); err != nil {
		t.Fatal(err)
	}
	for d := range all {
		_, recorded, err := x.record(d)
		if linked, lerr := x.get(linkKey(scope(), d), func([]byte) error { return nil }); recorded != (d != short) || linked != (d != short) || err != nil || lerr != nil {
			t.Errorf("%s: recorded %v, linked %v, %v %v", d, recorded, linked, err, lerr)
		}
	}
}

func FuzzRecords(f *testing.F) {
	f.Add(record{size: 5, accessed: 7, manifest: true}.encode())
	f.Add(record{size: 1 << 40, accessed: -7, until: 8, orphaned: true}.encode())
	f.Add(record{size: 5, accessed: 7}.encode()[:3])
	f.Add(record{size: 5, accessed: 7, again: true}.encode())
	f.Add(tagKey(TagKey{"u", "r", "n"}))
	f.Add(Tag{Digest: digest.FromString("x"), Checked: time.Unix(1, 2)}.encode())
	f.Add(link{"a/b", 1000}.encode())
	f.Add(pack(nil, digest.FromString("x")))
	f.Add(pack(nil, digest.SHA512.FromString("x")))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		if r, err := decodeRecord(b); err == nil {
			if again, err := decodeRecord(r.encode()); err != nil || again != r || r.size < 0 || r.until < 0 {
				t.Errorf("%+v became %+v, %v", r, again, err)
			}
		}
		if k, err := decodeTagKey(b); err == nil && !bytes.Equal(tagKey(k), b) {
			t.Errorf("%q was read as %+v", b, k)
		}
		if tag, err := decodeTag(b); err == nil {
			if again, err := decodeTag(tag.encode()); err != nil || again.Digest != tag.Digest || !again.Checked.Equal(tag.Checked) {
				t.Errorf("%v became %v, %v", tag, again, err)
			}
		}
		if l := decodeLink(b); l.size < -1 || decodeLink(l.encode()) != l {
			t.Errorf("%+v became %+v", l, decodeLink(l.encode()))
		}
		if d, err := decodeDigest(b); err == nil && (!isDigest(string(d)) || !bytes.Equal(pack(nil, d), b)) {
			t.Errorf("%q was read as %s", b, d)
		}
	})
}
