package index

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
)

// format is the version of the index's keys and values. Increment it with each change of
// them: an index of another format is removed, and rebuilt from the disk.
//
//	b <digest>                                   Record
//	l <digest> <m|b> <upstream> 00 <repository>  Link
//	t <upstream> 00 <repository> 00 <name>       Tag
//	c                                            the last digest that the scrub has read
//
// A digest is a byte for its algorithm, which also gives its length, and its bytes. So
// digests have the order of their text, and none is a prefix of another. No name or tag has
// a NUL: they are parsed before.
const format = 2

// The algorithms' bytes in keys, in the order of their names.
const (
	sha256Key = 1 + iota
	sha512Key
)

// pack appends a digest, or a prefix of one, in its form in keys. A text that is no digest
// is appended after a 0 byte; unpack refuses it.
func pack(b []byte, d digest.Digest) []byte {
	var key byte
	algorithm, digits, _ := strings.Cut(string(d), ":")
	switch algorithm {
	case "sha256":
		key = sha256Key
	case "sha512":
		key = sha512Key
	default:
		return append(append(b, 0), d...)
	}
	packed, err := hex.AppendDecode(append(b, key), []byte(digits))
	if err != nil {
		return append(append(b, 0), d...)
	}
	return packed
}

// unpack appends the text of a packed digest. It returns false if packed is none.
func unpack(b, packed []byte) ([]byte, bool) {
	switch {
	case len(packed) == 1+32 && packed[0] == sha256Key:
		b = append(b, "sha256:"...)
	case len(packed) == 1+64 && packed[0] == sha512Key:
		b = append(b, "sha512:"...)
	default:
		return b, false
	}
	return hex.AppendEncode(b, packed[1:]), true
}

// isPacked reports whether unpack accepts b.
func isPacked(b []byte) bool {
	_, rest, ok := cutDigest(b)
	return ok && len(rest) == 0
}

// cutDigest splits b after a packed digest.
func cutDigest(b []byte) (packed, rest []byte, ok bool) {
	n := 0
	switch {
	case len(b) > 32 && b[0] == sha256Key:
		n = 1 + 32
	case len(b) > 64 && b[0] == sha512Key:
		n = 1 + 64
	default:
		return nil, nil, false
	}
	return b[:n], b[n:], true
}

func decodeDigest(packed []byte) (digest.Digest, error) {
	var text [len("sha512:") + 2*64]byte
	d, ok := unpack(text[:0], packed)
	if !ok {
		return "", fmt.Errorf("digest of %d bytes is malformed", len(packed))
	}
	return digest.Digest(d), nil
}

func blobKey(d digest.Digest) []byte { return pack([]byte{'b'}, d) }

func linkPrefix(d digest.Digest) []byte { return pack([]byte{'l'}, d) }

func linkKey(p Place, d digest.Digest) []byte {
	kind := byte('b')
	if p.Manifest {
		kind = 'm'
	}
	k := make([]byte, 0, 1+1+64+1+len(p.Upstream)+1+len(p.Repository))
	k = append(pack(append(k, 'l'), d), kind)
	k = append(append(k, p.Upstream...), 0)
	return append(k, p.Repository...)
}

func tagKey(k TagKey) []byte {
	b := append([]byte{'t'}, k.Upstream...)
	b = append(append(b, 0), k.Repository...)
	return append(append(b, 0), k.Name...)
}

func scrubKey() []byte { return []byte{'c'} }

// Flags of a record.
const (
	flagManifest = 1 << iota
	flagOrphaned
	flagAgain
	flagsEnd
)

// encode has the flags, then size, accessed, until and uses as varints: mostly 11 bytes.
func (r Record) encode() []byte {
	var flags byte
	if r.Manifest {
		flags |= flagManifest
	}
	if r.Orphaned {
		flags |= flagOrphaned
	}
	if r.Again {
		flags |= flagAgain
	}
	b := binary.AppendUvarint([]byte{flags}, uint64(r.Size))
	b = binary.AppendVarint(b, r.Accessed) // a file may be older than 1970
	return binary.AppendUvarint(binary.AppendUvarint(b, uint64(r.Until)), uint64(r.Uses))
}

func decodeRecord(b []byte) (Record, error) {
	if len(b) == 0 || b[0] >= flagsEnd {
		return Record{}, fmt.Errorf("blob record of %d bytes is malformed", len(b))
	}
	flags, rest := b[0], b[1:]
	size, n := binary.Uvarint(rest)
	accessed, m := binary.Varint(rest[max(n, 0):])
	until, k := binary.Uvarint(rest[max(n, 0)+max(m, 0):])
	uses, l := binary.Uvarint(rest[max(n, 0)+max(m, 0)+max(k, 0):])
	if min(n, m, k, l) <= 0 || n+m+k+l != len(rest) || max(size, until) > math.MaxInt64 || uses > math.MaxUint32 {
		return Record{}, fmt.Errorf("blob record of %d bytes is malformed", len(b))
	}
	return Record{
		Size:     int64(size),
		Accessed: accessed,
		Until:    int64(until),
		Manifest: flags&flagManifest != 0,
		Orphaned: flags&flagOrphaned != 0,
		Again:    flags&flagAgain != 0,
		Uses:     uint32(uses),
	}, nil
}

func decodeTagKey(b []byte) (TagKey, error) {
	parts := strings.Split(string(b), "\x00")
	if len(parts) != 3 || !strings.HasPrefix(parts[0], "t") {
		return TagKey{}, fmt.Errorf("tag key of %d parts is malformed", len(parts))
	}
	return TagKey{Upstream: parts[0][1:], Repository: parts[1], Name: parts[2]}, nil
}

func (t Tag) encode() []byte {
	return pack(binary.BigEndian.AppendUint64(nil, uint64(t.Checked.UnixNano())), t.Digest)
}

func decodeTag(b []byte) (Tag, error) {
	if len(b) < 8 {
		return Tag{}, fmt.Errorf("tag record of %d bytes is malformed", len(b))
	}
	d, err := decodeDigest(b[8:])
	if err != nil {
		return Tag{}, fmt.Errorf("decode tag record: %w", err)
	}
	return Tag{Digest: d, Checked: time.Unix(0, int64(binary.BigEndian.Uint64(b)))}, nil
}

// encode writes the size plus one as a varint (0: not known), then the media type.
func (l Link) encode() []byte {
	return append(binary.AppendUvarint(nil, uint64(l.Size+1)), l.MediaType...)
}

// decodeLink returns a Size of -1 if the size is missing or invalid.
func decodeLink(b []byte) Link {
	size, n := binary.Uvarint(b)
	if n <= 0 || size > math.MaxInt64 {
		return Link{Size: -1}
	}
	return Link{MediaType: string(b[n:]), Size: int64(size) - 1}
}
