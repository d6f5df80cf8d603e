//go:build e2e

package e2e

import (
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// crane pulls to an OCI layout. It does not support mirrors, so the image's name starts
// with the mirror's.
type crane struct {
	program string
	into    folders
	mirror  *mirror
}

func newCrane(t *testing.T, m *mirror) crane {
	t.Helper()
	return crane{installed(t, "crane"), folders(t.TempDir()), m}
}

func (c crane) pull(t *testing.T, image string) error {
	t.Helper()
	_, err := try(t, c.mirror.environment(), c.program, "pull", "--format", "oci", "--platform", "linux/"+runtime.GOARCH, c.mirror.below(image), c.into.of(image))
	return err
}

func (c crane) remove(t *testing.T, image string) {
	t.Helper()
	check(t, os.RemoveAll(c.into.of(image)))
}

func (c crane) holds(t *testing.T, image string, want upstreamtest.Image) {
	t.Helper()
	for _, b := range append(want.Blobs(), want.Manifest) {
		same(t, filepath.Join(c.into.of(image), "blobs", "sha256", b.Digest.Encoded()), b)
	}
}
