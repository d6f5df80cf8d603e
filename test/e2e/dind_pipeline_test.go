//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/cachalot-registry/cachalot/upstream/distributiontest"
	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// published is an image that a registry has.
type published struct {
	release
	name  string // of the image, with a tag
	sizes []int  // of the files /data/0, /data/1, ...
	from  *distributiontest.Registry
}

// publish makes an image with a shell and unique layers of the given sizes, and pushes it
// to the registry in its name.
func (n *internet) publish(t *testing.T, name string, sizes ...int) published {
	t.Helper()
	types, program := ociTypes(), busybox(t)
	layers := []layer{newLayer(t, types.layer, program, file{"bin/sh", program.mode, program.data},
		file{"etc/passwd", 0o644, []byte(passwd + "\n")}, file{"etc/image", 0o644, []byte(name + "\n")})}
	for i, size := range sizes {
		layers = append(layers, newLayer(t, types.layer, file{fmt.Sprintf("data/%d", i), 0o644, payload(name, i, size)}))
	}
	p := published{assemble(t, types, layers...), name, sizes, n.hub}
	repo, tag, _ := strings.Cut(name, ":")
	if rest, ok := strings.CutPrefix(repo, quayName+"/"); ok {
		p.from, repo = n.quay, rest
	} else if !strings.Contains(repo, "/") {
		repo = "library/" + repo
	}
	p.publish(p.from, repo, tag)
	p.from.Forget()
	return p
}

// payload is the content of an image's layer.
func payload(name string, layer, size int) []byte {
	seed := fnv.New64()
	_, _ = fmt.Fprint(seed, name, layer) // never fails
	return upstreamtest.Random(seed.Sum64(), size)
}

// fetched checks that the registry sent each of the image's blobs this many times.
func (p published) fetched(t *testing.T, times int) {
	t.Helper()
	for _, b := range p.Blobs() {
		if got, want := p.from.Sent(b.Digest), int64(times)*b.Size; got != want {
			t.Errorf("%s: the registry has sent %d bytes of a blob of %d, want %d times as many", p.name, got, b.Size, times)
		}
	}
}

// agents returns the user agents that requested manifests and blobs.
func agents(up *distributiontest.Registry) []string {
	var list []string
	for _, q := range up.Requests() {
		if q.Op != upstreamtest.Token {
			name, _, _ := strings.Cut(q.Header.Get("User-Agent"), "/")
			list = append(list, name)
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// askedBy checks that only these user agents sent requests to a registry.
func askedBy(t *testing.T, up *distributiontest.Registry, want ...string) {
	t.Helper()
	if got := agents(up); !slices.Equal(got, want) {
		t.Errorf("the registry was asked by %q, want %q", got, want)
	}
}

// projectFolder is the build context of a pipeline's job.
func projectFolder(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range map[string]string{
		"greeting": "hello\n",
		"Dockerfile": `FROM alpine:3.22 AS build
COPY greeting /greeting
RUN sed s/hello/goodbye/ /greeting > /built
FROM quay.io/prometheus/busybox:latest
COPY --from=build /built /built
RUN cat /etc/image >> /built
`,
		"docker-compose.yml": `version: "3"
services:
  database: {image: "postgres:17"}
  queue: {image: "redis:8"}
  metrics: {image: "quay.io/prometheus/prometheus:v3"}
`,
	} {
		check(t, os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644))
	}
	return dir
}

// project publishes the images of the jobs: those that are mirrored, and others, for which
// the base's dockerd has no mirror.
func (b based) project(t *testing.T) (mirrored, others []published) {
	t.Helper()
	mirrored = []published{
		b.world.publish(t, "alpine:3.22", 8<<20, 1<<20),
		b.world.publish(t, "postgres:17", 6<<20, 6<<20),
		b.world.publish(t, "redis:8", 3<<20),
	}
	second := b.world.publish(t, "quay.io/prometheus/busybox:latest", 4<<20)
	third := b.world.publish(t, "quay.io/prometheus/prometheus:v3", 5<<20, 1<<20)
	if b.base == "docker20" {
		return mirrored, []published{third}
	}
	return append(mirrored, second, third), nil
}

// variables are the variables of a job: a mirror, the CI's own registry, and dockerd with TLS.
func (l *lab) variables() map[string]string {
	return map[string]string{
		"CACHALOT_MIRROR": l.mirror.url(), "CI_REGISTRY": privateName,
		"DOCKER_HOST": "tcp://docker:2376", "DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": "/certs/client",
	}
}

// pipeline is the script of a job.
const pipeline = `
app=registry.example/group/app
echo canary | docker login --username robot --password-stdin registry.example
docker build --cache-from $app:$BUILT --build-arg BUILDKIT_INLINE_CACHE=1 --tag $app:$CI_JOB_ID .
test "$(docker run --rm $app:$CI_JOB_ID sh -c "cat /built")" = "goodbye
quay.io/prometheus/busybox:latest"
docker push --quiet $app:$CI_JOB_ID
docker-compose pull --quiet
docker image inspect postgres:17 redis:8 quay.io/prometheus/prometheus:v3 >/dev/null
`

// pipelines runs concurrent jobs, and then one that builds from the first job's push. The
// mirror fetches each blob once, for any number of jobs.
func (b based) pipelines(t *testing.T) {
	mirrored, others := b.project(t)
	dir := projectFolder(t)
	job := func(id int, built string) func() error {
		variables := b.variables()
		variables["CI_JOB_ID"], variables["BUILT"] = strconv.Itoa(id), built
		d := b.start(t, service{image: tailored(b.base), variables: variables})
		return func() error {
			out, err := d.script(t, dir, pipeline)
			if cached := strings.Contains(out, "CACHED"); err == nil && cached != (built != "none") {
				return fmt.Errorf("something came from the build cache: %t:\n%s", cached, out)
			}
			return err
		}
	}
	var all sync.WaitGroup
	errs := make([]error, b.jobs)
	for i := range b.jobs {
		run := job(i, "none")
		all.Go(func() { errs[i] = run() })
	}
	all.Wait()
	check(t, errors.Join(errs...))
	check(t, job(b.jobs, "0")())
	for _, p := range mirrored {
		p.fetched(t, 1)
		askedBy(t, p.from, mirrorAgent)
	}
	for _, p := range others {
		p.fetched(t, b.jobs+1)
		askedBy(t, p.from, "containerd", direct) // the build and the pull
	}
}
