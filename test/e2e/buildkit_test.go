//go:build e2e

package e2e

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// newBuildkit starts a buildkitd on its own, and returns the command that speaks
// to it.
func newBuildkit(t *testing.T, m *mirror) (buildctl []string) {
	t.Helper()
	dir := t.TempDir()
	t.Cleanup(func() { leave(t, dir) })
	config := filepath.Join(dir, "buildkitd.toml")
	check(t, os.WriteFile(config, m.configuration(t, "buildkit", "/etc/buildkit/buildkitd.toml"), 0o600))
	socket := "unix://" + filepath.Join(dir, "sock")
	program := installed(t, "buildkitd")
	path := "PATH=" + filepath.Dir(program) + ":" + os.Getenv("PATH") // runc
	daemon := start(t, "buildkitd", []string{path}, program, "--config", config, "--root", filepath.Join(dir, "root"), "--addr", socket)
	buildctl = []string{installed(t, "buildctl"), "--addr", socket}
	daemon.until(t, "ready", func() error {
		_, err := try(t, nil, append(buildctl, "debug", "workers")...)
		return err
	})
	return buildctl
}

// TestConfBuildkit: BuildKit by itself, configured by what "cachalot client"
// prints, builds from the images of two registries, cold and warm.
func TestConfBuildkit(t *testing.T) {
	t.Parallel()
	docker := hub(t)
	quay := upstreamtest.NewDistribution(t, upstreamtest.DistributionOptions{Auth: upstreamtest.Bearer})
	one, other := newRelease(t, ociTypes(), "one"), otherRelease(t, ociTypes())
	one.publish(docker, repository, "latest")
	other.publish(quay, quayRepository, "latest")
	docker.Forget()
	quay.Forget()
	m := newMirror(t, forEver, map[string]string{"docker.io": "{url: " + docker.URL + "}", "quay.io": "{url: " + quay.URL + "}"})
	buildctl := newBuildkit(t, m)

	context := t.TempDir()
	file := "FROM " + image + " AS hub\nFROM quay.io/" + quayRepository + "\nCOPY --from=hub /version /from-hub\n"
	check(t, os.WriteFile(filepath.Join(context, "Dockerfile"), []byte(file), 0o600))
	archive := filepath.Join(t.TempDir(), "built.tar")
	for _, cold := range []bool{true, false} {
		must(t, nil, append(buildctl, "build", "--frontend", "dockerfile.v0", "--progress", "plain",
			"--local", "context="+context, "--local", "dockerfile="+context, "--output", "type=tar,dest="+archive)...)
		for up, r := range map[*upstreamtest.Distribution]release{docker: one, quay: other} {
			var want wire
			if cold {
				want = wire{Tokens: 1, Refused: 1, Heads: 1, Manifests: 2, Blobs: len(r.Blobs()), Bytes: r.Size()}
			}
			if got, requests := crossed(&up.Recorder); got != want {
				t.Errorf("the wire of %s, cold %t: %+v, want %+v", r.version, cold, got, want)
				report(t, requests)
			}
		}
		if got := must(t, nil, "tar", "-xOf", archive, "from-hub", "version"); got != one.version+"\n"+other.version && got != other.version+"\n"+one.version {
			t.Errorf("the image built says %q", got)
		}
		must(t, nil, append(buildctl, "prune", "--all")...)
	}
}
