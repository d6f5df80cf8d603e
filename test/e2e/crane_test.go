//go:build e2e

package e2e

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// crane pulls to an OCI layout. It knows no mirrors, so it is given the
// mirror's own name.
type crane struct {
	program, dir string
	mirror       *mirror
}

func newCrane(t *testing.T, m *mirror) crane {
	t.Helper()
	return crane{installed(t, "crane"), filepath.Join(t.TempDir(), "image"), m}
}

func (c crane) pull(t *testing.T, image string) error {
	t.Helper()
	image = strings.Replace(image, "docker.io", c.mirror.listen, 1)
	_, err := try(t, nil, c.program, "pull", "--format", "oci", "--platform", "linux/"+runtime.GOARCH, image, c.dir)
	return err
}

func (c crane) remove(t *testing.T, _ string) { t.Helper(); check(t, os.RemoveAll(c.dir)) }

func (c crane) holds(t *testing.T, _ string, want upstreamtest.Image) {
	t.Helper()
	for _, b := range append(want.Blobs(), want.Manifest) {
		same(t, filepath.Join(c.dir, "blobs", "sha256", b.Digest.Encoded()), b)
	}
}
