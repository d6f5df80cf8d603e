//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"testing"

	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// buildkit is a standalone buildkitd and its command. It builds an image from each pulled image.
type buildkit struct {
	buildctl []string
	env      []string
	content  content
}

func newBuildkit(t *testing.T, m *mirror) buildkit {
	t.Helper()
	dir := t.TempDir()
	t.Cleanup(func() { leave(t, dir) })
	config := filepath.Join(dir, "buildkitd.toml")
	settings := m.eachConfiguration(t, "buildkit", "/etc/buildkit/buildkitd.toml")
	if m.fallback != "" { // a second mirror, because the registries are unreachable here
		settings = regexp.MustCompile(`mirrors = \[(.*)\]`).ReplaceAllString(settings, fmt.Sprintf("mirrors = [${1}, %q]", m.fallback)) +
			fmt.Sprintf("[registry.%q]\n  http = true\n", m.fallback)
	}
	check(t, os.WriteFile(config, []byte(settings), 0o600))
	socket := "unix://" + filepath.Join(dir, "sock")
	program := installed(t, "buildkitd")
	path := "PATH=" + filepath.Dir(program) + ":" + os.Getenv("PATH") // runc
	daemon := start(t, "buildkitd", []string{path}, program, "--config", config, "--root", filepath.Join(dir, "root"), "--addr", socket)
	b := buildkit{[]string{installed(t, "buildctl"), "--addr", socket}, m.environment(), content(filepath.Join(dir, "root/runc-overlayfs/content"))}
	daemon.until(t, "ready", func() error {
		_, err := try(t, nil, append(b.buildctl, "debug", "workers")...)
		return err
	})
	return b
}

func (b buildkit) pull(t *testing.T, image string) error {
	t.Helper()
	dir := t.TempDir()
	file := "FROM " + image + "\nCOPY Dockerfile /\n"
	check(t, os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(file), 0o600))
	_, err := try(t, b.env, append(slices.Clone(b.buildctl), "build", "--frontend", "dockerfile.v0", "--progress", "plain", "--no-cache",
		"--local", "context="+dir, "--local", "dockerfile="+dir, "--output", "type=image")...)
	return err
}

func (b buildkit) holds(t *testing.T, _ string, want upstreamtest.Image) {
	t.Helper()
	b.content.holds(t, all(want)...)
}

func (b buildkit) remove(t *testing.T, _ string) {
	t.Helper()
	must(t, nil, append(slices.Clone(b.buildctl), "prune", "--all")...)
}
