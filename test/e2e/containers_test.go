//go:build e2e

package e2e

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// registriesConf tells podman, buildah and skopeo of the mirror.
func registriesConf(t *testing.T, m *mirror) (file string) {
	t.Helper()
	file = filepath.Join(t.TempDir(), "registries.conf")
	check(t, os.WriteFile(file, m.configuration(t, "podman", "/etc/containers/registries.conf.d/cachalot.conf"), 0o600))
	return file
}

// store is where podman and buildah keep images.
type store struct {
	dir     string
	command []string
	env     []string
}

func newStore(t *testing.T, m *mirror, program string) store {
	t.Helper()
	dir := t.TempDir()
	t.Cleanup(func() { leave(t, dir) })
	return store{dir: dir, env: []string{"CONTAINERS_REGISTRIES_CONF=" + registriesConf(t, m)}, command: []string{
		program, "--storage-driver", "overlay",
		"--root", filepath.Join(dir, "root"), "--runroot", filepath.Join(dir, "run"),
	}}
}

func (s store) must(t *testing.T, args ...string) string {
	t.Helper()
	return must(t, s.env, append(s.command, args...)...)
}

func (s store) pull(t *testing.T, image string) error {
	t.Helper()
	_, err := try(t, s.env, append(s.command, "pull", "--quiet", image)...)
	return err
}

func (s store) remove(t *testing.T, image string) { t.Helper(); s.must(t, "rmi", "--force", image) }

// podman and buildah name an image by its config.
func (s store) holds(t *testing.T, image string, want upstreamtest.Image) {
	t.Helper()
	if got := s.must(t, "images", "--quiet", "--no-trunc", image); got != want.Config.Digest.String() {
		t.Errorf("the image's id is %s, want %s", got, want.Config.Digest)
	}
}

type podman struct{ store }

func newPodman(t *testing.T, m *mirror) podman {
	t.Helper()
	s := newStore(t, m, "podman")
	s.command = append(s.command, "--tmpdir", filepath.Join(s.dir, "tmp"), "--cgroup-manager", "cgroupfs", "--events-backend", "file")
	return podman{s}
}

func (p podman) run(t *testing.T, image string, command ...string) string {
	t.Helper()
	// Its own default limits are more than a root without CAP_SYS_RESOURCE may set.
	return p.must(t, append([]string{
		"run", "--rm", "--network", "none", "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024", image,
	}, command...)...)
}

type buildah struct{ store }

func newBuildah(t *testing.T, m *mirror) buildah {
	t.Helper()
	return buildah{newStore(t, m, "buildah")}
}

func (b buildah) run(t *testing.T, image string, command ...string) string {
	t.Helper()
	container := b.must(t, "from", "--pull-never", image)
	defer b.must(t, "rm", container)
	return b.must(t, append([]string{"run", "--isolation", "chroot", container, "--"}, command...)...)
}

// skopeo copies an image to a folder.
type skopeo struct{ conf, dir string }

func newSkopeo(t *testing.T, m *mirror) skopeo {
	t.Helper()
	return skopeo{registriesConf(t, m), filepath.Join(t.TempDir(), "image")}
}

func (s skopeo) pull(t *testing.T, image string) error {
	t.Helper()
	_, err := try(t, nil, "skopeo", "--registries-conf", s.conf, "copy", "--quiet", "docker://"+image, "dir:"+s.dir)
	return err
}

func (s skopeo) remove(t *testing.T, _ string) { t.Helper(); check(t, os.RemoveAll(s.dir)) }

func (s skopeo) holds(t *testing.T, _ string, want upstreamtest.Image) {
	t.Helper()
	same(t, filepath.Join(s.dir, "manifest.json"), want.Manifest)
	for _, b := range want.Blobs() {
		same(t, filepath.Join(s.dir, b.Digest.Encoded()), b)
	}
}

// same compares a file with what was pushed.
func same(t *testing.T, file string, want upstreamtest.Content) {
	t.Helper()
	if got, err := os.ReadFile(file); err != nil || !bytes.Equal(got, want.Bytes) {
		t.Errorf("%s: %d bytes that differ from the %d of %s (%v)", file, len(got), want.Size, want.Digest, err)
	}
}
