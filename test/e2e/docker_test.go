//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// engine is a dockerd and its docker command.
type engine struct {
	daemon *process
	docker []string
	env    []string
	dir    string

	// name is the image's name for a pull through the mirror.
	name func(image string) string
	// id is the daemon's own id of an image.
	id func(upstreamtest.Image) digest.Digest
	// keeps compares all content that the daemon has of an image, even if the image is only a base.
	keeps func(t *testing.T, image string, want upstreamtest.Image)
}

func engines() map[string]func(*testing.T, *mirror) *engine {
	return map[string]func(*testing.T, *mirror) *engine{"docker20": docker20, "docker29": docker29}
}

// docker20 is Debian's dockerd: the classic pull path, graph driver and builder. Its image
// id is the config's digest.
func docker20(t *testing.T, m *mirror) *engine {
	t.Helper()
	return classic(t, m, "{}", flag(m)...)
}

// dockerWithJSON is docker20 with a daemon.json.
func dockerWithJSON(t *testing.T, m *mirror) *engine {
	t.Helper()
	config := string(m.configuration(t, "docker", "/etc/docker/daemon.json"))
	if m.fallback != "" { // a second mirror, because Docker Hub is unreachable here
		config = strings.Replace(config, `"]`, fmt.Sprintf(`", %q], "max-concurrent-downloads": 99`, "http://"+m.fallback), 1)
	}
	e := classic(t, m, config)
	e.env = append(e.env, m.environment()...)
	return e
}

// classic is docker20 with a daemon.json.
func classic(t *testing.T, m *mirror, config string, args ...string) *engine {
	t.Helper()
	e := newEngine(t, config, nil, slices.Concat([]string{"/usr/sbin/dockerd", "--storage-driver", "overlay2"}, offNetwork(), args)...)
	e.wants(t, "20.10.")
	e.env = append(e.env, "DOCKER_BUILDKIT=0")
	e.name = func(image string) string { return hubOr(m, image) }
	e.id = func(i upstreamtest.Image) digest.Digest { return i.Config.Digest }
	e.keeps = func(t *testing.T, image string, want upstreamtest.Image) {
		t.Helper()
		e.content().holds(t, want.Manifest, want.Index)
		archive := filepath.Join(e.dir, "saved.tar")
		e.must(t, "save", "--output", archive, e.name(image))
		unpacked(t, archive, want)
	}
	return e
}

// hubOr is an image's name for a client that mirrors only Docker Hub. For another registry
// it starts with the mirror's name.
func hubOr(m *mirror, image string) string {
	if strings.HasPrefix(image, "docker.io/") {
		return image
	}
	return m.below(image)
}

// docker29 is the newest dockerd, with the containerd image store and BuildKit. Its image
// id is the index's digest.
func docker29(t *testing.T, m *mirror) *engine {
	t.Helper()
	e := modern(t, nil, append(offNetwork(), flag(m)...)...)
	e.name = func(image string) string { return hubOr(m, image) }
	return e
}

// dockerWithHosts is docker29 with a hosts.toml in certs.d, for all registries. The
// folder's path is fixed, so dockerd gets its own /etc.
func dockerWithHosts(t *testing.T, m *mirror) *engine {
	t.Helper()
	const path = "/etc/docker/certs.d/_default/hosts.toml"
	dir := t.TempDir()
	t.Cleanup(func() { leave(t, dir) })
	file := filepath.Join(dir, path)
	check(t, os.MkdirAll(filepath.Dir(file), 0o755))
	check(t, os.WriteFile(file, m.hosts(t, "docker", path), 0o600))
	const script = `mount -t overlay -o "lowerdir=$0/etc:/etc" overlay /etc && exec "$@"`
	e := modern(t, []string{"unshare", "--mount", "sh", "-c", script, dir}, offNetwork()...)
	e.env = append(e.env, m.environment()...)
	return e
}

// modern is docker29, started through another command.
func modern(t *testing.T, starter []string, args ...string) *engine {
	t.Helper()
	dockerd := installed(t, "dockerd")
	path := "PATH=" + filepath.Dir(dockerd) + ":" + os.Getenv("PATH") // containerd, its shim and runc
	e := newEngine(t, "{}", []string{path}, slices.Concat(starter, []string{dockerd}, args)...)
	e.wants(t, "library-import") // the version of a binary that is built from its module
	e.env = append(e.env, "DOCKER_BUILDKIT=1")
	e.name = func(image string) string { return image }
	e.id = func(i upstreamtest.Image) digest.Digest { return i.Index.Digest }
	e.keeps = func(t *testing.T, _ string, want upstreamtest.Image) {
		t.Helper()
		e.content().holds(t, all(want)...)
	}
	return e
}

// flag returns dockerd's flags for the mirror; none if m is nil.
func flag(m *mirror) []string {
	if m == nil {
		return nil
	}
	return []string{"--registry-mirror", m.url()}
}

// offNetwork makes dockerd leave the machine's interfaces and firewall alone.
func offNetwork() []string {
	return []string{"--bridge", "none", "--iptables=false", "--ip6tables=false"}
}

// newEngine starts a dockerd that shares nothing with others. json is its daemon.json.
func newEngine(t *testing.T, json string, env []string, dockerd ...string) *engine {
	t.Helper()
	dir := t.TempDir()
	socket := "unix://" + filepath.Join(dir, "sock")
	config := filepath.Join(dir, "daemon.json")
	check(t, os.WriteFile(config, []byte(json), 0o600))
	t.Cleanup(func() { leave(t, dir) })
	e := &engine{
		dir:    dir,
		docker: []string{"/usr/bin/docker", "--host", socket},
		env:    []string{"DOCKER_CONFIG=" + dir},
	}
	e.daemon = start(t, "dockerd", env, append(dockerd,
		"--config-file", config,
		"--data-root", filepath.Join(dir, "data"), "--exec-root", filepath.Join(dir, "exec"),
		"--pidfile", filepath.Join(dir, "pid"), "--host", socket,
	)...)
	e.daemon.until(t, "ready", func() error {
		_, err := e.try(t, "version")
		return err
	})
	return e
}

// wants ends the test if the daemon has another version.
func (e *engine) wants(t *testing.T, version string) {
	t.Helper()
	if got := e.must(t, "version", "--format", "{{.Server.Version}}"); !strings.HasPrefix(got, version) {
		t.Fatalf("dockerd is version %s, want %s", got, version)
	}
}

func (e *engine) try(t *testing.T, args ...string) (string, error) {
	t.Helper()
	return try(t, e.env, append(e.docker, args...)...)
}

func (e *engine) must(t *testing.T, args ...string) string {
	t.Helper()
	return must(t, e.env, append(e.docker, args...)...)
}

func (e *engine) pull(t *testing.T, image string) error {
	t.Helper()
	_, err := e.try(t, "pull", "--quiet", e.name(image))
	return err
}

func (e *engine) remove(t *testing.T, image string) {
	t.Helper()
	e.must(t, "rmi", "--force", e.name(image))
}

func (e *engine) run(t *testing.T, image string, command ...string) string {
	t.Helper()
	return e.must(t, append([]string{"run", "--rm", "--network", "none", e.name(image)}, command...)...)
}

func (e *engine) build(t *testing.T, args ...string) {
	t.Helper()
	e.must(t, append([]string{"build", "--quiet", "--network", "none"}, args...)...)
}

// logs returns a container's output.
func (e *engine) logs(t *testing.T, container string) string {
	t.Helper()
	return must(t, e.env, "sh", "-c", `exec "$@" 2>&1`, "logs", e.docker[0], e.docker[1], e.docker[2], "logs", container)
}

func (e *engine) holds(t *testing.T, image string, want upstreamtest.Image) {
	t.Helper()
	if got := e.must(t, "image", "inspect", "--format", "{{.Id}}", e.name(image)); got != e.id(want).String() {
		t.Errorf("the image's id is %s, want %s", got, e.id(want))
	}
	if got := e.must(t, "image", "inspect", "--format", "{{.RepoDigests}}", e.name(image)); !strings.Contains(got, want.Index.Digest.String()) {
		t.Errorf("the image's digests are %s, want %s", got, want.Index.Digest)
	}
	e.keeps(t, image, want)
}

// content is the content store of dockerd. 20.10 stores only manifests there.
func (e *engine) content() content {
	return content(filepath.Join(e.dir, "data/containerd/daemon/io.containerd.content.v1.content"))
}
