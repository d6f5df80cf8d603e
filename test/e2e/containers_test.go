//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// registriesConf writes a registries.conf with the mirror for podman, buildah and skopeo.
func registriesConf(t *testing.T, m *mirror) (file string) {
	t.Helper()
	file = filepath.Join(t.TempDir(), "registries.conf")
	config := m.eachConfiguration(t, "podman", "/etc/containers/registries.conf.d/cachalot.conf")
	if m.fallback != "" {
		config = regexp.MustCompile(`(?m)(\[\[registry\]\]\n)location( = .*)$`).ReplaceAllString(config,
			fmt.Sprintf("${1}prefix${2}\nlocation = %q\ninsecure = true", m.fallback))
	}
	check(t, os.WriteFile(file, []byte(config), 0o600))
	return file
}

// store is the image store of podman and buildah.
type store struct {
	dir     string
	command []string
	env     []string
}

func newStore(t *testing.T, m *mirror, program string) store {
	t.Helper()
	dir, err := os.MkdirTemp("", "store") //nolint:usetesting // podman wants paths of at most 50 characters
	check(t, err)
	t.Cleanup(func() {
		leave(t, dir)
		check(t, os.RemoveAll(dir))
	})
	env := append(m.environment(), "CONTAINERS_REGISTRIES_CONF="+registriesConf(t, m))
	return store{dir: dir, env: env, command: []string{
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

// podman and buildah name an image by its config, and store the manifest unchanged.
func (s store) holds(t *testing.T, image string, want upstreamtest.Image) {
	t.Helper()
	if got := s.must(t, "images", "--quiet", "--no-trunc", image); got != want.Config.Digest.String() {
		t.Errorf("the image's id is %s, want %s", got, want.Config.Digest)
	}
	same(t, filepath.Join(s.dir, "root", "overlay-images", want.Config.Digest.Encoded(), "manifest"), want.Manifest)
	archive := filepath.Join(s.dir, "saved.tar")
	must(t, nil, "skopeo", "copy", "--quiet", "containers-storage:["+s.place()+"]"+image, "docker-archive:"+archive)
	unpacked(t, archive, want)
	check(t, os.Remove(archive)) // the archive cannot hold a second image
}

// place is the store's part of an image's name.
func (s store) place() string {
	return "overlay@" + filepath.Join(s.dir, "root") + "+" + filepath.Join(s.dir, "run")
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
	// podman's default limits are above those that root without CAP_SYS_RESOURCE may set.
	return p.must(t, append([]string{
		"run", "--rm", "--network", "none", "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024", image,
	}, command...)...)
}

type buildah struct{ store }

func newBuildah(t *testing.T, m *mirror) buildah {
	t.Helper()
	return buildah{newStore(t, m, "buildah")}
}

// skopeo copies each image to its own folder.
type skopeo struct {
	env  []string
	conf string
	into folders
}

func newSkopeo(t *testing.T, m *mirror) skopeo {
	t.Helper()
	return skopeo{m.environment(), registriesConf(t, m), folders(t.TempDir())}
}

func (s skopeo) pull(t *testing.T, image string) error {
	t.Helper()
	_, err := try(t, s.env, "skopeo", "--registries-conf", s.conf, "copy", "--quiet", "docker://"+image, "dir:"+s.into.of(image))
	return err
}

func (s skopeo) remove(t *testing.T, image string) {
	t.Helper()
	check(t, os.RemoveAll(s.into.of(image)))
}

func (s skopeo) holds(t *testing.T, image string, want upstreamtest.Image) {
	t.Helper()
	same(t, filepath.Join(s.into.of(image), "manifest.json"), want.Manifest)
	for _, b := range want.Blobs() {
		same(t, filepath.Join(s.into.of(image), b.Digest.Encoded()), b)
	}
}

// folders is where a client without an image store puts images.
type folders string

func (f folders) of(image string) string {
	return filepath.Join(string(f), strings.NewReplacer("/", "_", ":", "_").Replace(image))
}
