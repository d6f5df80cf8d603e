//go:build e2e

package e2e

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cachalot-registry/cachalot/upstream/distributiontest"
	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// wanted is the expected result of an example.
type wanted struct {
	hub, quay string // the user agent at these registries
	private   []string
	jobs      int      // consecutive jobs with empty daemons; 0: one
	security  []string // required in the runner's security_opt
}

// examples runs the examples in docs/examples. Test images (testdata) take the place of the
// images in them. The plugins of Woodpecker and Drone are not run.
func (l *lab) examples(t *testing.T) {
	dir := t.TempDir()
	must(t, nil, "cp", "testdata/examples/Dockerfile", installed(t, "executor"), dir)
	check(t, os.WriteFile(filepath.Join(dir, "ca.crt"), l.world.public.pem, 0o644))
	applets := filepath.Join(dir, "applets")
	check(t, os.Mkdir(applets, 0o755))
	must(t, nil, "cp", "/bin/busybox", applets)
	for name := range strings.FieldsSeq(must(t, nil, "/bin/busybox", "--list")) {
		if name != "busybox" {
			check(t, os.Symlink("busybox", filepath.Join(applets, name)))
		}
	}
	l.must(t, "tag", stock("docker29"), "docker:29-dind")
	l.must(t, "tag", tailored("docker29"), exampleDind)
	for target, name := range map[string]string{
		"cli": "docker:29-cli", "runner": "ghcr.io/actions/actions-runner:latest",
		"buildah": "quay.io/buildah/stable", "kaniko": "ghcr.io/osscontainertools/kaniko:debug",
	} {
		l.build(t, "--target", target, "--tag", name, dir)
	}
	for name, e := range examples() {
		if e.runs != nil {
			t.Run(name, func(t *testing.T) {
				l.startMirror(t)
				e.runs(t, l, filepath.Join(docs, "examples", name))
			})
		}
	}
}

// bases publishes the project's base images.
func (l *lab) bases(t *testing.T) []published {
	t.Helper()
	types, program := ociTypes(), busybox(t)
	// Debian's busybox has no install command.
	install := file{"bin/install", 0o755, []byte("#!/bin/sh\nmkdir -p \"${5%/*}\" && cp \"$4\" \"$5\" && chmod \"$3\" \"$5\"\n")}
	image := func(name string, from *distributiontest.Registry, repo, tag string) published {
		p := published{assemble(
			t, types,
			newLayer(t, types.layer, program, install, file{"bin/sh", 0o755, program.data}, file{"bin/timeout", 0o755, program.data},
				file{"etc/passwd", 0o644, []byte(passwd + "\n")}, file{"etc/image", 0o644, []byte(name)}),
			newLayer(t, types.layer, file{"data/0", 0o644, payload(name, 0, 4<<20)}),
		), name, nil, from}
		p.publish(from, repo, tag)
		from.Forget()
		return p
	}
	l.world.private.Forget()
	return []published{
		image("alpine:3.22", l.world.hub, "library/alpine", "3.22"),
		image("quay.io/prometheus/busybox:latest", l.world.quay, "prometheus/busybox", "latest"),
	}
}

// buildkit publishes the image of buildx's builder.
func (l *lab) buildkit(t *testing.T) published {
	t.Helper()
	types, program := ociTypes(), busybox(t)
	files := []file{program, {"bin/sh", 0o755, program.data}, {"etc/ssl/certs/ca-certificates.crt", 0o644, l.world.public.pem}, {"tmp/empty", 0o644, nil}}
	for name, from := range map[string]string{"buildkitd": "buildkitd", "buildctl": "buildctl", "buildkit-runc": "runc"} {
		b, err := os.ReadFile(installed(t, from))
		check(t, err)
		files = append(files, file{"usr/bin/" + name, 0o755, b})
	}
	for path := range strings.FieldsSeq(must(t, nil, "ldd", installed(t, "runc"))) { // libraries
		if filepath.IsAbs(path) {
			b, err := os.ReadFile(path)
			check(t, err)
			files = append(files, file{path[1:], 0o755, b})
		}
	}
	r := assemble(t, types, newLayer(t, types.layer, files...))
	r.Image = configured(t, r.Image, ocispec.ImageConfig{Entrypoint: []string{"buildkitd"}, Env: []string{"PATH=/usr/bin:/bin"}})
	p := published{r, "moby/buildkit:buildx-stable-1", nil, l.world.hub}
	l.world.hub.PushImage("moby/buildkit", "buildx-stable-1", r.Image)
	return p
}

// configured returns the image with another configuration, as the only image in its index.
func configured(t *testing.T, i upstreamtest.Image, with ocispec.ImageConfig) upstreamtest.Image {
	t.Helper()
	var config ocispec.Image
	check(t, json.Unmarshal(i.Config.Bytes, &config))
	config.Config = with
	var manifest ocispec.Manifest
	check(t, json.Unmarshal(i.Manifest.Bytes, &manifest))
	i.Config = document(t, i.Config.MediaType, config)
	manifest.Config = i.Config.Descriptor
	i.Manifest = document(t, i.Manifest.MediaType, manifest)
	i.Index = document(t, i.Index.MediaType, ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: i.Index.MediaType,
		Manifests: []ocispec.Descriptor{listed(i, config.Platform, nil)},
	})
	return i
}

// check checks that each blob was sent once and to the expected user agent, and that no
// request for the CI's own registry went to the mirror.
func (w wanted) check(t *testing.T, l *lab, images []published) {
	t.Helper()
	for _, p := range images {
		p.fetched(t, 1)
	}
	askedBy(t, l.world.hub, w.hub)
	askedBy(t, l.world.quay, w.quay)
	askedBy(t, l.world.private, w.private...)
	if log := l.logs(t, "mirror"); strings.Contains(log, privateName) {
		t.Errorf("the mirror was asked for %s:\n%s", privateName, tail(log))
	}
}

// pushed checks that the CI's own registry has an image with the project's program.
func (l *lab) pushed(t *testing.T, repo, tag string) {
	t.Helper()
	host := l.world.private.Host()
	login := t.TempDir()
	auth := base64.StdEncoding.EncodeToString([]byte(user + ":" + password))
	check(t, os.WriteFile(filepath.Join(login, "config.json"), fmt.Appendf(nil, `{"auths": {%q: {"auth": %q}}}`, host, auth), 0o600))
	got := must(t, []string{"DOCKER_CONFIG=" + login}, "sh", "-c", `"$0" export "$1" - | tar -xO hello`,
		installed(t, "crane"), host+"/"+repo+":"+tag)
	want, err := os.ReadFile(filepath.Join(docs, "examples/project/hello.sh"))
	check(t, err)
	if got != string(bytes.TrimSpace(want)) {
		t.Errorf("%s:%s has the program %q", repo, tag, got)
	}
}

// checkout is the project's folder with the pipeline's file.
func checkout(t *testing.T, file string) string {
	t.Helper()
	dir := t.TempDir()
	must(t, nil, "cp", "-R", filepath.Join(docs, "examples/project")+"/.", dir)
	must(t, nil, "cp", file, dir)
	return dir
}

// launch starts a container. It is removed at the end of the test.
func (l *lab) launch(t *testing.T, args ...string) (id string) {
	t.Helper()
	id = l.must(t, append([]string{"run", "--detach", "--pull", "never"}, args...)...)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the end of the log of %q:\n%s", args, tail(l.logs(t, id)))
		}
		l.must(t, "rm", "--force", "--volumes", id)
	})
	return id
}

// answers waits for the port of the daemon in a container, as runners do.
func (l *lab) answers(t *testing.T, container string) {
	t.Helper()
	l.daemon.until(t, "running a service", func() error {
		_, err := l.try(t, "exec", container, "env", "--ignore-environment", "docker", "version")
		return err
	})
}

// job runs a container to its end, and returns its output.
func (l *lab) job(t *testing.T, args ...string) string {
	t.Helper()
	out := must(t, l.env, slices.Concat([]string{"sh", "-c", `exec "$@" 2>&1`, "job"}, l.docker, []string{"run", "--rm", "--pull", "never"}, args)...)
	t.Logf("%q:\n%s", args, out)
	return out
}

// volume makes a volume. It is removed at the end of the test.
func (l *lab) volume(t *testing.T) string {
	t.Helper()
	name := l.must(t, "volume", "create")
	t.Cleanup(func() { l.must(t, "volume", "rm", "--force", name) })
	return name
}

// script returns the sh arguments for a job's lines.
func script(lines ...string) []string { return []string{"-ec", strings.Join(lines, "\n")} }

// gitlab runs a file's job on a runner with only the settings that dind needs.
func (l *lab) gitlab(t *testing.T, file string, w wanted) {
	t.Helper()
	var r gitlabRunner
	r.Docker.ServicesPrivileged, r.Docker.Volumes, r.Docker.SecurityOpt = true, []string{"/certs/client"}, w.security
	job := gitlabJobOf(t, file)
	images := l.bases(t)
	if strings.Contains(file, "buildx") {
		images = append(images, l.buildkit(t))
	}
	for i := range max(w.jobs, 1) {
		out := l.dockerExecutor(t, r, job, file, fmt.Sprint(firstCommit+i))
		if i > 0 && !strings.Contains(out, "CACHED") {
			t.Errorf("job %d found nothing of the former one's", i)
		}
	}
	w.check(t, l, images)
	for i := range max(w.jobs, 1) {
		if w.private != nil {
			l.pushed(t, repoOf(file), fmt.Sprint(firstCommit+i))
		}
	}
}

// firstCommit is the CI_COMMIT_SHORT_SHA of the first job.
const firstCommit = 10000000

// repoOf is the repository of a file's push.
func repoOf(file string) string {
	name, _, _ := strings.Cut(filepath.Base(file), ".")
	return "group/" + name
}

// gitlabVariables are a job's variables with GitLab's own. References are expanded.
func gitlabVariables(r gitlabRunner, job gitlabJob, file, tag string) variables {
	v := variables{
		"CI_REGISTRY": privateName, "CI_REGISTRY_IMAGE": privateName + "/" + repoOf(file),
		"CI_REGISTRY_USER": user, "CI_REGISTRY_PASSWORD": password,
		"CI_COMMIT_SHORT_SHA": tag, "CI_PROJECT_DIR": "/builds",
	}
	maps.Copy(v, pairs(r.Environment))
	maps.Copy(v, job.Variables)
	return v.expanded()
}

// dockerExecutor runs a job as GitLab Runner's Docker executor does: containers on the
// default bridge, with links to services.
func (l *lab) dockerExecutor(t *testing.T, r gitlabRunner, job gitlabJob, file, tag string) string {
	t.Helper()
	v := gitlabVariables(r, job, file, tag)
	var shared, links []string
	for _, path := range r.Docker.Volumes {
		shared = append(shared, "--volume", l.volume(t)+":"+path)
	}
	var services []gitlabImage
	for _, s := range r.Docker.Services {
		services = append(services, s.image())
	}
	taken := map[string]bool{}
	for _, s := range append(services, job.Services...) {
		names := slices.DeleteFunc(s.names(), func(name string) bool { return taken[name] })
		if len(names) == 0 {
			continue // the runner only warns about a duplicate
		}
		own := maps.Clone(v)
		maps.Copy(own, s.Variables)
		args := slices.Concat(shared, environment(own.expanded()))
		if d := r.Docker; d.ServicesPrivileged && (d.AllowedPrivilegedServices == nil || allowed(t, d.AllowedPrivilegedServices, s.Name)) {
			args = append(args, "--privileged")
		}
		id := l.launch(t, slices.Concat(args, []string{s.Name}, s.Command)...)
		l.answers(t, id)
		for _, name := range names {
			taken[name] = true
			links = append(links, "--link", id+":"+name)
		}
	}
	args := slices.Concat(links, shared, environment(v), []string{"--volume", checkout(t, file) + ":/builds", "--workdir", "/builds"})
	for _, option := range r.Docker.SecurityOpt {
		args = append(args, "--security-opt", option)
	}
	if e := job.Image.Entrypoint; e != nil {
		args = append(args, "--entrypoint", strings.Join(e, " "))
	}
	args = append(args, job.Image.Name, "sh")
	out := l.job(t, append(args, script(append(job.BeforeScript, job.Script...)...)...)...)
	if job.AfterScript != nil {
		l.job(t, append(args, script(job.AfterScript...)...)...)
	}
	return out
}

// names are the names by which a job reaches a service.
func (i gitlabImage) names() []string {
	path, _, _ := strings.Cut(i.Name, ":")
	names := []string{strings.ReplaceAll(path, "/", "__"), strings.ReplaceAll(path, "/", "-"), i.Alias}
	slices.Sort(names)
	return slices.DeleteFunc(slices.Compact(names), func(name string) bool { return name == "" })
}

// runDockerRunners: with each runner, the job without a mirror uses the mirror.
func runDockerRunners(t *testing.T, l *lab, file string) {
	t.Helper()
	plain := filepath.Join(docs, "examples/gitlab-ci/plain.gitlab-ci.yml")
	for i, r := range decode[runnerConfig](t, file).Runners {
		t.Run(r.Name, func(t *testing.T) {
			l.startMirror(t)
			images := l.bases(t)
			l.dockerExecutor(t, r, gitlabJobOf(t, plain), plain, fmt.Sprint(firstCommit))
			wanted{hub: mirrorAgent, quay: []string{mirrorAgent, "buildkit"}[i], private: []string{direct}}.check(t, l, images)
			l.pushed(t, repoOf(plain), fmt.Sprint(firstCommit))
		})
	}
}

// runKubernetesRunner runs a job without services as GitLab Runner's Kubernetes executor
// does: all containers share a network, and entrypoints of the jobs' images are not run.
func runKubernetesRunner(t *testing.T, l *lab, file string) {
	t.Helper()
	r := decode[runnerConfig](t, file).Runners[0]
	s, dind := r.Kubernetes.Services[0], filepath.Join(docs, "examples/gitlab-ci/dind.gitlab-ci.yml")
	job := gitlabJobOf(t, dind)
	job.Services = nil
	for name := range job.Variables { // the runner's variables are enough
		if strings.HasPrefix(name, "DOCKER_") || strings.HasPrefix(name, "CACHALOT_") {
			delete(job.Variables, name)
		}
	}
	images := l.bases(t)
	v := gitlabVariables(r, job, file, fmt.Sprint(firstCommit)) // this repository has no build cache
	var shared []string
	for _, dir := range r.Kubernetes.Volumes.EmptyDir {
		shared = append(shared, "--volume", l.volume(t)+":"+dir.MountPath)
	}
	own := maps.Clone(v)
	maps.Copy(own, pairs(s.Environment))
	if port := own["HEALTHCHECK_TCP_PORT"]; !strings.HasSuffix(v["DOCKER_HOST"], s.Alias+":"+cmp.Or(port, "unset")) {
		t.Errorf("the job waits for port %q, and uses %s", port, v["DOCKER_HOST"])
	}
	id := l.launch(t, slices.Concat([]string{"--privileged", "--add-host", s.Alias + ":127.0.0.1"}, shared, environment(own), []string{s.Name})...)
	l.answers(t, id)
	l.job(t, slices.Concat([]string{
		"--network", "container:" + id, "--volume", checkout(t, dind) + ":/builds", "--workdir", "/builds", "--entrypoint", "sh",
	}, shared, environment(v), []string{job.Image.Name}, script(append(job.BeforeScript, job.Script...)...))...)
	wanted{hub: mirrorAgent, quay: mirrorAgent, private: []string{"buildkit", direct}}.check(t, l, images)
	l.pushed(t, repoOf(file), fmt.Sprint(firstCommit))
}

// runWoodpecker runs the pipeline without its plugin: one network for all containers, and
// no entrypoints of the steps' images.
func runWoodpecker(t *testing.T, l *lab, file string) {
	t.Helper()
	p := decode[woodpeckerPipeline](t, file)
	images, network, host := l.bases(t), l.network(t), t.TempDir()
	options := func(s woodpeckerStep) []string {
		args := append([]string{"--network", network, "--network-alias", s.Name}, environment(s.Environment)...)
		if s.Privileged {
			args = append(args, "--privileged")
		}
		for _, v := range s.Volumes {
			args = append(args, "--volume", host+v) // on the agent's host
			check(t, os.MkdirAll(host+v[:strings.Index(v, ":")], 0o755))
		}
		return args
	}
	for _, s := range p.Services {
		l.launch(t, append(options(s), s.Image)...)
	}
	l.job(t, slices.Concat(options(p.Steps[0]), []string{
		"--volume", checkout(t, file) + ":/woodpecker", "--workdir", "/woodpecker", "--entrypoint", "/bin/sh", p.Steps[0].Image,
	}, script(p.Steps[0].Commands...))...)
	wanted{hub: mirrorAgent, quay: mirrorAgent}.check(t, l, images)
}

// runDrone does the same for Drone.
func runDrone(t *testing.T, l *lab, file string) {
	t.Helper()
	p := decode[dronePipeline](t, file)
	images, network := l.bases(t), l.network(t)
	volumes := variables{}
	for _, v := range p.Volumes {
		volumes[v.Name] = l.volume(t)
	}
	options := func(s droneStep) []string {
		args := append([]string{"--network", network, "--network-alias", s.Name}, environment(s.Environment)...)
		if s.Privileged {
			args = append(args, "--privileged")
		}
		for _, v := range s.Volumes {
			args = append(args, "--volume", volumes[v.Name]+":"+v.Path)
		}
		return args
	}
	for _, s := range p.Services {
		l.launch(t, append(options(s), s.Image)...)
	}
	l.job(t, slices.Concat(options(p.Steps[0]), []string{
		"--volume", checkout(t, file) + ":/drone/src", "--workdir", "/drone/src", "--entrypoint", "/bin/sh", p.Steps[0].Image,
	}, script(p.Steps[0].Commands...))...)
	wanted{hub: mirrorAgent, quay: mirrorAgent}.check(t, l, images)
}

// runPod runs the pod, and the steps of workflow.yml in its runner.
func runPod(t *testing.T, l *lab, file string) {
	t.Helper()
	spec, images := podOf(t, file), l.bases(t)
	volumes := variables{}
	for _, v := range spec.Volumes {
		volumes[v.Name] = l.volume(t)
	}
	arguments := func(c podContainer, more ...string) []string {
		env, expand := c.environment()
		args := append(environment(env), more...)
		for _, m := range c.VolumeMounts { // empty, without a copy of the image's files
			args = append(args, "--mount", "type=volume,volume-nocopy,source="+volumes[m.Name]+",target="+m.MountPath)
		}
		if c.SecurityContext.Privileged {
			args = append(args, "--privileged")
		}
		command := slices.Concat(c.Command, c.Args)
		if c.Command != nil {
			args, command = append(args, "--entrypoint", c.Command[0]), command[1:]
		}
		args = append(args, c.Image)
		for _, word := range command {
			args = append(args, expand(word))
		}
		return args
	}
	var pod string
	for _, c := range spec.InitContainers {
		if c.RestartPolicy == "" {
			l.job(t, append([]string{"--user", "0"}, arguments(c)...)...)
			continue
		}
		pod = l.launch(t, arguments(c)...)
		l.daemon.until(t, "running the pod", func() error {
			_, err := l.try(t, append([]string{"exec", pod}, c.StartupProbe.Exec.Command...)...)
			return err
		})
	}
	runner := spec.Containers[0]
	var steps []string
	for _, s := range decode[workflow](t, filepath.Join(docs, "examples/github-actions/workflow.yml")).Jobs["runner"].Steps {
		if s.Run != "" {
			steps = append(steps, s.Run)
		}
	}
	runner.Command, runner.Args = []string{"sh"}, script(steps...)
	l.job(t, arguments(runner, "--network", "container:"+pod, "--volume", checkout(t, file)+":/home/runner/src", "--workdir", "/home/runner/src")...)
	wanted{hub: mirrorAgent, quay: mirrorAgent}.check(t, l, images)
}
