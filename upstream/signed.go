package upstream

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"

	"github.com/opencontainers/go-digest"
)

// ErrSigned: a manifest of Docker's schema 1 has the right digest, but that is not the
// digest of its bytes: it excludes the signatures. [Registry.Manifest] returns such a
// manifest.
var ErrSigned = errors.New("a signed manifest of schema 1, whose digest is not that of its bytes")

// mediaTypeSigned is the media type of schema 1 with signatures (distribution 2.8,
// docs/spec/manifest-v2-1.md).
const mediaTypeSigned = "application/vnd.docker.distribution.manifest.v1+prettyjws"

// signedPayload returns the bytes of a signed manifest that its digest covers: its first
// bytes and a tail, which each signature repeats. It returns nil if b is not signed.
func signedPayload(b []byte) []byte {
	var m struct {
		Signatures [1]struct { // the others repeat it
			Protected string `json:"protected"`
		} `json:"signatures"`
	}
	if json.Unmarshal(b, &m) != nil {
		return nil
	}
	header, err := base64.RawURLEncoding.DecodeString(m.Signatures[0].Protected)
	if err != nil {
		return nil
	}
	var format struct {
		Length int    `json:"formatLength"`
		Tail   string `json:"formatTail"`
	}
	if json.Unmarshal(header, &format) != nil || format.Length < 0 || format.Length > len(b) {
		return nil
	}
	tail, err := base64.RawURLEncoding.DecodeString(format.Tail)
	if err != nil {
		return nil
	}
	return append(bytes.Clone(b[:format.Length]), tail...)
}

// isSigned reports whether d is the digest of a signed manifest's payload.
func isSigned(b []byte, d digest.Digest) bool {
	payload := signedPayload(b)
	return payload != nil && d.Algorithm().Available() && d.Algorithm().FromBytes(payload) == d
}
