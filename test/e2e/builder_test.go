//go:build e2e

package e2e

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// result is the name of the built image.
const result = "cachalot-e2e-built"

// builder is a dockerd that pulls an image as the base of a build: dockerd 20.10 with the
// classic builder, 29 with BuildKit.
type builder struct{ *engine }

func classicBuilder(t *testing.T, m *mirror) builder {
	t.Helper()
	return builder{dockerWithJSON(t, m)}
}

func buildkitBuilder(t *testing.T, m *mirror) builder {
	t.Helper()
	return builder{dockerWithHosts(t, m)}
}

func (b builder) pull(t *testing.T, image string) error {
	t.Helper()
	dir := t.TempDir()
	file := "FROM " + b.name(image) + "\nRUN [\"/bin/busybox\", \"cp\", \"/version\", \"/built\"]\n"
	check(t, os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(file), 0o600))
	_, err := b.try(t, "build", "--quiet", "--network", "none", "--pull", "--no-cache", "--tag", b.tag(image), dir)
	return err
}

// tag is the name of the image built from this base.
func (b builder) tag(image string) string { return result + ":" + digest.FromString(image).Encoded() }

func (b builder) run(t *testing.T, image string, command ...string) string {
	t.Helper()
	return b.must(t, append([]string{"run", "--rm", "--network", "none", b.tag(image)}, command...)...)
}

func (b builder) holds(t *testing.T, image string, want upstreamtest.Image) {
	t.Helper()
	b.keeps(t, image, want)
	if out := b.run(t, image, "/bin/busybox", "cmp", "/version", "/built"); out != "" {
		t.Errorf("the step of the build copied otherwise: %s", out)
	}
}

func (b builder) remove(t *testing.T, _ string) {
	t.Helper()
	b.must(t, "system", "prune", "--all", "--force")
}
