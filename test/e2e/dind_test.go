//go:build e2e

package e2e

import (
	"crypto/rand"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// lab is a host with cachalot in a container, and the images of both targets of the
// Dockerfile. docker:dind is not available here: test images take the place of the "FROM"
// images, with the same contract (testdata/dind).
type lab struct {
	*host
	mirror *mirror
}

const (
	mirrorImage = "cachalot"
	debianImage = "cachalot-e2e-debian"
)

// TestDind runs jobs of CI pipelines, each with its own empty Docker daemon.
func TestDind(t *testing.T) {
	if os.Getenv("CACHALOT_E2E_FIGURES") == "" { // the figures need an idle machine
		t.Parallel()
	}
	l := newLab(t, "docker20", "docker29", "rootless")
	for _, b := range []based{{l, "docker20", 3}, {l, "docker29", 10}} {
		t.Run(b.base, func(t *testing.T) {
			l.startMirror(t)
			t.Run("pipelines", b.pipelines)
			t.Run("mirror fails", b.mirrorFails)
			t.Run("secured mirror", b.secured)
			t.Run("another mirror", b.another)
			t.Run("MTU", b.smallPackets)
			t.Run("proxy", b.proxied)
			t.Run("without TLS", b.plain)
		})
	}
	l.startMirror(t)
	t.Run("driver", l.driver)
	t.Run("rootless", l.rootless)
	t.Run("figures", l.figures)
	t.Run("examples", l.examples)
}

// based are the tests for one base.
type based struct {
	*lab
	base string
	jobs int // concurrent jobs
}

// stock and tailored are the images of a dind base, named as in testdata/dind: unchanged,
// and with the Dockerfile's target dind.
func stock(base string) string    { return "docker:" + base }
func tailored(base string) string { return "cachalot-dind:" + base }

// newLab builds all images, with a real Docker Engine.
func newLab(t *testing.T, bases ...string) *lab {
	t.Helper()
	l := &lab{host: newHost(t)}
	l.must(t, "import", installed(t, "dind.tar.gz"), debianImage)
	dir := t.TempDir()
	must(t, nil, "cp", "-R", "testdata/dind/.", dir)
	check(t, os.WriteFile(filepath.Join(dir, "ca.crt"), l.world.public.pem, 0o644))
	check(t, os.Mkdir(filepath.Join(dir, "bin"), 0o755))
	for _, program := range []string{"dockerd", "containerd", "containerd-shim-runc-v2", "runc", "ctr", "buildx", "compose"} {
		must(t, nil, "cp", installed(t, program), filepath.Join(dir, "bin"))
	}
	source := l.importCompiled(t)
	l.build(t, "--target", "cachalot", "--tag", mirrorImage, "--build-arg", "GO_IMAGE="+tools, source)
	for _, base := range bases {
		// It would take a minute to compress the 500 MB of programs.
		l.build(t, "--target", base, "--tag", stock(base), "--output", "type=moby,compression=uncompressed", dir)
		l.build(t, "--target", "dind", "--tag", tailored(base),
			"--build-arg", "GO_IMAGE="+tools, "--build-arg", "DIND_BASE="+stock(base), source)
	}
	return l
}

// importCompiled makes the builder image of the Dockerfile. Its go command copies the
// binary of test/e2e/run; [TestDockerfile] compiles. It returns the build context.
func (l *lab) importCompiled(t *testing.T) (context string) {
	t.Helper()
	root, archive := shellRoot(t), filepath.Join(t.TempDir(), "go.tar")
	check(t, os.MkdirAll(filepath.Join(root, "usr/local/go/bin"), 0o755))
	must(t, nil, "cp", installed(t, "cachalot"), root)
	check(t, os.WriteFile(filepath.Join(root, "usr/local/go/bin/go"),
		[]byte("#!/bin/sh\n[ \"$1\" = build ] || exit 0\nwhile [ \"$1\" != -o ]; do shift; done\nmkdir -p \"${2%/*}\"\ncp /cachalot \"$2\"\n"), 0o755))
	must(t, nil, "tar", "-C", root, "-cf", archive, ".")
	importTools(t, l.engine, archive)
	context = t.TempDir()
	must(t, nil, "cp", "../../Dockerfile", "../../.dockerignore", "../../go.mod", "../../go.sum", context)
	return context
}

// startMirror starts the mirror with an empty cache, in a container of the host. Its
// configuration is the default, plus the registries' private address.
func (l *lab) startMirror(t *testing.T) {
	t.Helper()
	l.must(t, "rm", "--force", "--volumes", "mirror")
	dir := t.TempDir()
	check(t, os.Chmod(dir, 0o755))
	config := "admin: {listen: :5001}\nstorage: {min_free: 0}\nlog: {level: debug}\nupstreams:\n"
	for _, name := range []string{"docker.io", "quay.io"} {
		config += fmt.Sprintf("  %s: {allow_addresses: [%s/32]}\n", name, l.world.address)
	}
	check(t, os.WriteFile(filepath.Join(dir, "config.yml"), []byte(config), 0o644))
	check(t, os.WriteFile(filepath.Join(dir, "ca.pem"), l.world.public.pem, 0o644))
	background(t, l.engine, "--name", "mirror", "--publish", "5000:5000", "--publish", "5001:5001",
		"--volume", dir+"/config.yml:/config.yml:ro", "--volume", dir+"/ca.pem:/etc/ssl/certs/ca-certificates.crt:ro",
		mirrorImage, "serve", "--config", "/config.yml")
	l.mirror = &mirror{process: l.daemon, listen: l.address.String() + ":5000", admin: l.address.String() + ":5001"}
	l.ready(t)
}

// ready waits until the mirror is ready.
func (l *lab) ready(t *testing.T) {
	t.Helper()
	l.daemon.until(t, "running a mirror", func() error {
		if status, body := get(t, "http://"+l.mirror.admin+"/readyz"); status != 200 {
			return fmt.Errorf("status %d: %s", status, body)
		}
		return nil
	})
}

// service is a pipeline's description of a job's daemon.
type service struct {
	image     string
	arguments []string
	variables map[string]string // of the job; GitLab gives them to its services too
	mounts    []string          // as for docker run --volume
	mtu       int               // of the job's network; 0: the default
}

// daemon is a running service, called "docker" in its job's network.
type daemon struct {
	lab     *lab
	service service
	name    string // of the container, its network and the volume with the clients' certificates
}

// start starts a service as a runner does for each job.
func (l *lab) start(t *testing.T, s service) *daemon {
	t.Helper()
	var options []string
	if s.mtu > 0 {
		options = []string{"--opt", fmt.Sprintf("com.docker.network.driver.mtu=%d", s.mtu)}
	}
	d := &daemon{lab: l, service: s, name: l.network(t, options...)}
	t.Cleanup(func() { d.remove(t) })
	args := slices.Concat([]string{
		"run", "--detach", "--privileged", "--name", d.name, "--network", d.name, "--network-alias", "docker",
		"--volume", d.name + ":/certs/client",
	}, environment(d.service.variables))
	for _, mount := range s.mounts {
		args = append(args, "--volume", mount)
	}
	l.must(t, slices.Concat(args, []string{s.image}, s.arguments)...)
	return d
}

// network makes a network for a job. It is removed at the end of the test.
func (l *lab) network(t *testing.T, options ...string) string {
	t.Helper()
	name := "job-" + strings.ToLower(rand.Text()[:8])
	l.must(t, slices.Concat([]string{"network", "create"}, options, []string{name})...)
	t.Cleanup(func() { l.must(t, "network", "rm", name) })
	return name
}

// environment converts variables to arguments of docker run.
func environment(variables map[string]string) (args []string) {
	for _, name := range slices.Sorted(maps.Keys(variables)) {
		args = append(args, "--env", name+"="+variables[name])
	}
	return args
}

// remove removes the container and its volumes, but not the network.
func (d *daemon) remove(t *testing.T) {
	t.Helper()
	if t.Failed() {
		t.Logf("the end of the log of the service %s:\n%s", d.service.image, tail(d.logs(t)))
	}
	for _, args := range [][]string{{"rm", "--force", "--volumes", d.name}, {"volume", "rm", "--force", d.name}} {
		if _, err := d.lab.try(t, args...); err != nil {
			t.Error(err)
		}
	}
}

func (d *daemon) logs(t *testing.T) string {
	t.Helper()
	return d.lab.logs(t, d.name)
}

// ready waits until the daemon responds.
func (d *daemon) ready(t *testing.T) {
	t.Helper()
	d.lab.daemon.until(t, "running a service", func() error {
		_, err := d.docker(t, "version")
		return err
	})
}

// docker runs a docker command against the daemon.
func (d *daemon) docker(t *testing.T, args ...string) (string, error) {
	t.Helper()
	return d.lab.try(t, append([]string{"exec", d.name, "docker-entrypoint.sh", "docker"}, args...)...)
}

func (d *daemon) must(t *testing.T, args ...string) string {
	t.Helper()
	out, err := d.docker(t, args...)
	check(t, err)
	return out
}

// script runs a job's script in its own container. It reaches the daemon by name, with the
// certificates in the shared volume.
func (d *daemon) script(t *testing.T, folder, script string) (string, error) {
	t.Helper()
	image := strings.Replace(d.service.image, tailored(""), stock(""), 1) // docker:cli
	args := slices.Concat([]string{
		"run", "--rm", "--network", d.name, "--volume", d.name + ":/certs/client:ro", "--volume", folder + ":/builds",
		"--workdir", "/builds", "--entrypoint", "docker-entrypoint.sh",
	}, environment(d.service.variables), []string{image, "sh", "-euc", wait + script})
	return try(t, d.lab.env, append([]string{"sh", "-c", `exec "$@" 2>&1`, "job", "/usr/bin/docker", "--host", d.lab.docker[2]}, args...)...)
}

// wait waits for the service in a job.
const wait = "until docker info >/dev/null 2>&1; do sleep 1; done\n"
