//go:build e2e

package e2e

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// all is what an image consists of.
func all(img upstreamtest.Image) []upstreamtest.Content {
	return append(img.Blobs(), img.Manifest, img.Index)
}

// content is the folder of a content store, containerd's or BuildKit's.
type content string

// holds compares what is in the store with what was pushed.
func (c content) holds(t *testing.T, want ...upstreamtest.Content) {
	t.Helper()
	for _, b := range want {
		same(t, filepath.Join(string(c), "blobs", "sha256", b.Digest.Encoded()), b)
	}
}

// same compares a file with what was pushed.
func same(t *testing.T, file string, want upstreamtest.Content) {
	t.Helper()
	if got, err := os.ReadFile(file); err != nil || !bytes.Equal(got, want.Bytes) {
		t.Errorf("%s: %d bytes that differ from the %d of %s (%v)", file, len(got), want.Size, want.Digest, err)
	}
}

// unpacked reads all of an archive that a client has saved of an image, and wants
// the image's config and each of its layers, uncompressed.
func unpacked(t *testing.T, archive string, want upstreamtest.Image) {
	t.Helper()
	f, err := os.Open(archive)
	check(t, err)
	defer f.Close()
	files := map[digest.Digest]bool{}
	for r := tar.NewReader(f); ; {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		check(t, err)
		if header.Typeflag != tar.TypeReg {
			continue
		}
		d, err := digest.FromReader(r)
		check(t, err)
		files[d] = true
	}
	var config ocispec.Image
	check(t, json.Unmarshal(want.Config.Bytes, &config))
	for _, d := range append(config.RootFS.DiffIDs, want.Config.Digest) {
		if !files[d] {
			t.Errorf("no file of the archive has the digest %s", d)
		}
	}
}
