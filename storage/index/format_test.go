package index

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// TestFormat: a change that fails this test makes an index that earlier versions misread. It
// must increment format.
func TestFormat(t *testing.T) {
	t.Parallel()
	d, e := digest.FromString("x"), digest.SHA512.FromString("x")
	for want, got := range map[string][]byte{
		"b\x01" + raw(t, d):                             blobKey(d),
		"b\x02" + raw(t, e):                             blobKey(e),
		"l\x01" + raw(t, d) + "bdocker.io\x00library/a": linkKey(Place{Upstream: "docker.io", Repository: "library/a"}, d),
		"l\x02" + raw(t, e) + "mdocker.io\x00library/a": linkKey(Place{Upstream: "docker.io", Repository: "library/a", Manifest: true}, e),
		"tdocker.io\x00library/a\x00latest":             tagKey(TagKey{"docker.io", "library/a", "latest"}),
		"c":                                             scrubKey(),

		"\x01\xe8\x07\x80\xa8\xd6\xb9\x07\x00\x00":         Record{Size: 1000, Accessed: 1_000_000_000, Manifest: true}.encode(),
		"\x06\x00\x02\x81\x94\xeb\xdc\x03\xac\x02":         Record{Accessed: 1, Until: 1_000_000_001, Orphaned: true, Again: true, Uses: 300}.encode(),
		"\x00\x00\x00\x01\x2a\x05\xf2\x07\x01" + raw(t, d): Tag{Digest: d, Checked: time.Unix(5, 7)}.encode(),
		"\xe9\x07a/b": Link{MediaType: "a/b", Size: 1000}.encode(),
		"\x00a/b":     Link{MediaType: "a/b", Size: -1}.encode(),
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
	good := Record{Size: 1000, Accessed: 7, Until: 8, Again: true}.encode()
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

// TestKeyOrder: keys sort as their digests, so that the scrub can continue where it was, and
// the records of a folder are adjacent.
func TestKeyOrder(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(1, 2))
	var digests []digest.Digest
	for range 2000 {
		b := make([]byte, 64)
		for i := range b {
			b[i] = byte(random.Uint32()) & 0x81 // many have equal prefixes
		}
		digests = append(digests, digest.NewDigestFromBytes(digest.SHA256, b[:32]), digest.NewDigestFromBytes(digest.SHA512, b))
	}
	slices.Sort(digests)
	if !slices.IsSortedFunc(digests, func(d, e digest.Digest) int { return bytes.Compare(blobKey(d), blobKey(e)) }) {
		t.Error("keys have another order than their digests")
	}
}

// TestKeys_EqualPrefixes: an operation on a digest or a folder does not affect others with the same
// prefix, of sha512 too. An invalid digest affects nothing.
func TestKeys_EqualPrefixes(t *testing.T) {
	t.Parallel()
	x := openIndex(t, t.TempDir(), Config{})
	b := make([]byte, 64)
	short, long := digest.NewDigestFromBytes(digest.SHA256, b[:32]), digest.NewDigestFromBytes(digest.SHA512, b)
	b[31], b[63] = 1, 1
	all := map[digest.Digest]Record{
		short: {Size: 1, Accessed: 1}, long: {Size: 2, Accessed: 2},
		digest.NewDigestFromBytes(digest.SHA256, b[:32]): {Size: 3, Accessed: 3},
		digest.NewDigestFromBytes(digest.SHA512, b):      {Size: 4, Accessed: 4},
		digest.FromString("x"):                           {Size: 5, Accessed: 5},
	}
	if err := x.PutRecords(all); err != nil {
		t.Fatal(err)
	}
	for d := range all {
		if err := x.put(linkKey(library(), d), nil, 0); err != nil {
			t.Fatal(err)
		}
	}
	got := func(prefix string) map[digest.Digest]Record {
		t.Helper()
		found := map[digest.Digest]Record{}
		if err := x.Records(prefix, func(d []byte, r Record) bool { found[digest.Digest(d)] = r; return true }); err != nil {
			t.Fatal(err)
		}
		return found
	}
	for _, none := range []digest.Digest{"", "sha256:0", "sha512:x", "md5:00"} {
		if err := x.Forget(none); err != nil {
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
	if err := x.Forget(short); err != nil {
		t.Fatal(err)
	}
	for d := range all {
		_, recorded, err := x.Record(d)
		if linked, lerr := x.get(linkKey(library(), d), func([]byte) error { return nil }); recorded != (d != short) || linked != (d != short) || err != nil || lerr != nil {
			t.Errorf("%s: recorded %v, linked %v, %v %v", d, recorded, linked, err, lerr)
		}
	}
}

func FuzzRecords(f *testing.F) {
	f.Add(Record{Size: 5, Accessed: 7, Manifest: true}.encode())
	f.Add(Record{Size: 1 << 40, Accessed: -7, Until: 8, Orphaned: true}.encode())
	f.Add(Record{Size: 5, Accessed: 7}.encode()[:3])
	f.Add(Record{Size: 5, Accessed: 7, Again: true}.encode())
	f.Add(tagKey(TagKey{"u", "r", "n"}))
	f.Add(Tag{Digest: digest.FromString("x"), Checked: time.Unix(1, 2)}.encode())
	f.Add(Link{MediaType: "a/b", Size: 1000}.encode())
	f.Add(pack(nil, digest.FromString("x")))
	f.Add(pack(nil, digest.SHA512.FromString("x")))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		if r, err := decodeRecord(b); err == nil {
			if again, err := decodeRecord(r.encode()); err != nil || again != r || r.Size < 0 || r.Until < 0 {
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
		if l := decodeLink(b); l.Size < -1 || decodeLink(l.encode()) != l {
			t.Errorf("%+v became %+v", l, decodeLink(l.encode()))
		}
		if d, err := decodeDigest(b); err == nil && (d.Validate() != nil || !isPacked(b) || !bytes.Equal(pack(nil, d), b)) {
			t.Errorf("%q was read as %s", b, d)
		}
	})
}

// FuzzLinkKey: links are decoded as they were encoded. Each decoded key has a valid digest.
func FuzzLinkKey(f *testing.F) {
	f.Add([]byte{}, "docker.io", "library/app", "x", true)
	f.Add(linkKey(library(), digest.SHA512.FromString("x"))[1:], "", "", "", false)
	f.Fuzz(func(t *testing.T, raw []byte, upstream, repository, content string, manifest bool) {
		if l, ok := decodeLinkAt(append([]byte{'l'}, raw...), nil); ok && l.Digest().Validate() != nil {
			t.Errorf("%q is a link of %q", raw, l.Digest())
		}
		if strings.Contains(upstream+repository, "\x00") || upstream == "" {
			return // no parsed name has these
		}
		d := digest.FromString(content)
		p := Place{Upstream: upstream, Repository: repository, Manifest: manifest}
		l, ok := decodeLinkAt(linkKey(p, d), Link{MediaType: "m/t"}.encode())
		if !ok || l.Digest() != d || string(l.Upstream()) != upstream || string(l.Repository()) != repository || l.Place() != p || l.MediaType() != "m/t" {
			t.Errorf("%+v became %+v, %v", p, l, ok)
		}
		if !l.In(upstream, repository) || l.In(upstream+"x", "") || l.In("", repository+"x") {
			t.Errorf("%+v is not where it is", l)
		}
	})
}
