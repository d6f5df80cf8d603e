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

// all returns all content of an image.
func all(img upstreamtest.Image) []upstreamtest.Content {
	return append(img.Blobs(), img.Manifest, img.Index)
}

// content is the folder of containerd's or BuildKit's content store.
type content string

// holds compares the store's content with the pushed content.
func (c content) holds(t *testing.T, want ...upstreamtest.Content) {
	t.Helper()
	for _, b := range want {
		same(t, filepath.Join(string(c), "blobs", "sha256", b.Digest.Encoded()), b)
	}
}

// same compares a file with the pushed content.
func same(t *testing.T, file string, want upstreamtest.Content) {
	t.Helper()
	if got, err := os.ReadFile(file); err != nil || !bytes.Equal(got, want.Bytes) {
		t.Errorf("%s: %d bytes that differ from the %d of %s (%v)", file, len(got), want.Size, want.Digest, err)
	}
}

// unpacked reads a saved archive of an image. It compares the config and each uncompressed layer.
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
