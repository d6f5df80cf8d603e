//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

const (
	built    = "cachalot-built-here"
	tools    = "cachalot-e2e-go"   // the builder image
	folder   = "/var/lib/cachalot" // the image's volume
	imageUID = "65532"
)

// TestDockerfile builds the image without access to a registry, with the classic builder
// and BuildKit, and runs it.
func TestDockerfile(t *testing.T) {
	t.Parallel()
	context := buildContext(t)
	builder := builderRoot(t, context)
	for name, start := range engines() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := start(t, nil)
			importTools(t, e, builder)
			e.build(t, "--target", "cachalot", "--tag", built,
				"--build-arg", "GO_IMAGE="+tools, "--build-arg", "VERSION=1.2.3", context)
			t.Run("defaults", func(t *testing.T) { byDefault(t, e) })
			t.Run("serves", func(t *testing.T) { serves(t, e) })
			t.Run("dind", func(t *testing.T) { bakedIn(t, e, context) })
		})
	}
}

// buildContext is the source with vendored modules, because the build cannot download any.
func buildContext(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	root := must(t, nil, "go", "list", "-m", "-f", "{{.Dir}}")
	// "go mod vendor" also needs the files of the modules' tests.
	names := []string{"Dockerfile", ".dockerignore", "test"}
	ignored, err := os.ReadFile(filepath.Join(root, ".dockerignore"))
	check(t, err)
	for line := range strings.Lines(string(ignored)) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "!"); ok && name != "vendor" {
			names = append(names, name)
		}
	}
	for _, name := range names {
		must(t, nil, "cp", "-R", filepath.Join(root, name), dir)
	}
	must(t, nil, "go", "-C", dir, "mod", "vendor")
	return dir
}

// builderRoot is the archive of an image with a shell, this machine's Go and its build
// cache. Without the cache, the two builds would dominate the test.
func builderRoot(t *testing.T, context string) string {
	t.Helper()
	cache := filepath.Join(filepath.Dir(installed(t, "cachalot")), "go-build")
	must(t, []string{"GOCACHE=" + cache, "CGO_ENABLED=0", "GOTOOLCHAIN=local"},
		"go", "-C", context, "build", "-trimpath", "-buildvcs=false", "-o", os.DevNull, "./cmd/cachalot")
	root, archive := shellRoot(t), filepath.Join(t.TempDir(), "go.tar")
	must(t, nil, "tar", "-C", root, "-cf", archive, ".")
	must(t, nil, "tar", "-C", must(t, nil, "go", "env", "GOROOT"), "-rf", archive,
		"--transform", `s,^\.,./usr/local/go,`, "--exclude", "./test", ".")
	must(t, nil, "tar", "-C", cache, "-rf", archive, "--transform", `s,^\.,./tmp/cache,`, ".")
	must(t, nil, "gzip", "-1", archive) // dockerd 29 would need a minute to compress it
	return archive + ".gz"
}

// shellRoot is a folder with the tools of the Dockerfile's build, without Go.
func shellRoot(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	for _, d := range []string{"bin", "tmp", "etc/ssl/certs"} {
		check(t, os.MkdirAll(filepath.Join(root, d), 0o755))
	}
	must(t, nil, "cp", "/bin/busybox", filepath.Join(root, "bin"))
	for _, applet := range []string{"sh", "mkdir", "cp"} {
		check(t, os.Symlink("busybox", filepath.Join(root, "bin", applet)))
	}
	check(t, os.WriteFile(filepath.Join(root, "etc/ssl/certs/ca-certificates.crt"), nil, 0o600))
	return root
}

// importTools makes an image from the archive of [builderRoot].
func importTools(t *testing.T, e *engine, archive string) {
	t.Helper()
	e.must(t, "import", "--change", "ENV PATH=/usr/local/go/bin:/usr/local/bin:/bin GOCACHE=/tmp/cache", archive, tools)
}

// background runs a container of the built image. It logs its output if the test fails.
func background(t *testing.T, e *engine, args ...string) (id string) {
	t.Helper()
	id = e.must(t, append([]string{"run", "--detach"}, args...)...)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the container's log:\n%s", e.logs(t, id))
		}
	})
	return id
}

// byDefault: without configuration the container is healthy, runs as an unprivileged user,
// and has no shell.
func byDefault(t *testing.T, e *engine) {
	t.Helper()
	id := background(t, e, "--network", "none", "--health-interval", "1s", built)
	e.daemon.until(t, "running a healthy container", func() error {
		if health := e.must(t, "inspect", "--format", "{{.State.Health.Status}}", id); health != "healthy" {
			return errors.New(health)
		}
		return nil
	})
	pid := e.must(t, "inspect", "--format", "{{.State.Pid}}", id)
	status, err := os.ReadFile("/proc/" + pid + "/status")
	check(t, err)
	if !regexp.MustCompile(`(?m)^Uid:\s+` + imageUID + `\s`).Match(status) {
		t.Errorf("it does not run as %s:\n%s", imageUID, status)
	}
	if out := e.must(t, "exec", id, "/cachalot", "version"); !strings.Contains(out, "1.2.3") {
		t.Errorf("its version is %q", out)
	}
	if out, err := e.try(t, "exec", id, "/bin/sh", "-c", "true"); err == nil {
		t.Errorf("it has a shell: %s", out)
	}
}

// serves: a second container serves from the volume what the first one stored, with the
// upstream down.
func serves(t *testing.T, e *engine) {
	t.Helper()
	up := hub(t)
	img := up.PushImage(repository, "latest", upstreamtest.NewImage(1, 1<<20, 1<<10))
	config := filepath.Join(t.TempDir(), "config.yml")
	check(t, os.WriteFile(config, fmt.Appendf(nil,
		"listen: 127.0.0.1:0\nadmin: {listen: 127.0.0.1:0}\nupstreams: {docker.io: {url: %s}}\n", up.URL), 0o644))
	for range 2 { // with an empty volume; then from the volume with the upstream down
		id := background(t, e, "--network", "host", "--volume", "cache:"+folder,
			"--volume", config+":/config.yml:ro", built, "serve", "--config", "/config.yml")
		m := &mirror{process: e.daemon}
		m.await(t, func() string { return e.logs(t, id) })
		wants(t, m, repository, "manifests/latest", img.Index)
		for _, b := range img.Blobs() {
			wants(t, m, repository, "blobs/"+b.Digest.String(), b)
		}
		e.must(t, "exec", id, "/cachalot", "healthcheck", "--url", "http://"+m.admin+"/readyz")
		e.must(t, "stop", id)
		if code := e.must(t, "inspect", "--format", "{{.State.ExitCode}}", id); code != "0" {
			t.Errorf("stopped, it exits with %s", code)
		}
		up.Down()
	}
}

// bakedIn: the target dind has the mirror of a build argument. This base lacks what dind
// needs; TestDind runs the target on complete bases.
func bakedIn(t *testing.T, e *engine, context string) {
	t.Helper()
	const image = built + "-dind"
	e.build(t, "--target", "dind", "--tag", image, "--build-arg", "GO_IMAGE="+tools, "--build-arg", "DIND_BASE="+tools,
		"--build-arg", "CACHALOT_MIRROR=http://mirror.example:5000", context)
	if env := e.must(t, "inspect", "--format", "{{.Config.Env}}", image); !strings.Contains(env, "CACHALOT_MIRROR=http://mirror.example:5000") {
		t.Errorf("the image's variables are %s", env)
	}
	if _, err := e.try(t, "run", "--rm", "--network", "none", image); err == nil || !strings.Contains(err.Error(), "dockerd-entrypoint.sh is not in PATH") {
		t.Errorf("without the base's entrypoint: %v", err)
	}
}

func wants(t *testing.T, m *mirror, repo, path string, want upstreamtest.Content) {
	t.Helper()
	if status, body := get(t, m.url()+"/v2/"+repo+"/"+path); status != http.StatusOK || body != string(want.Bytes) {
		t.Errorf("%s: status %d, %d bytes; want %d", path, status, len(body), want.Size)
	}
}
