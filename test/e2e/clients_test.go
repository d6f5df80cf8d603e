//go:build e2e

package e2e

import (
	"encoding/pem"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"testing"

	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// quayRepository is one that quay.io has not.
const quayRepository = "cachalot-e2e/app"

// configuration is what "cachalot client" prints of one file.
func (m *mirror) configuration(t *testing.T, client, path string) []byte {
	t.Helper()
	args := []string{installed(t, "cachalot"), "client", client, "--config", m.file(), "--file", path}
	if m.front == "" {
		args = append(args, "--mirror", m.url())
	} else {
		args = append(args, "--mirror", m.front, "--ca", m.ca)
	}
	return []byte(must(t, nil, args...) + "\n")
}

// TestConf: each client, configured by exactly what "cachalot client" prints,
// pulls from two registries through one mirror, cold and warm.
func TestConf(t *testing.T) {
	t.Parallel()
	for name, with := range map[string]struct {
		types   mediaTypes
		client  func(*testing.T, *mirror) client
		also    func(release, *wire) // adds what the client pulls besides its platform's image
		hubOnly bool                 // whether it can mirror no other registry
	}{
		"docker20":   {types: dockerTypes(), client: opened(dockerWithJSON), hubOnly: true},
		"docker29":   {types: ociTypes(), client: opened(dockerWithHosts), also: attested},
		"containerd": {types: ociTypes(), client: opened(newContainerd), also: everyConfig},
		"podman":     {types: ociTypes(), client: opened(newPodman)},
		"buildah":    {types: dockerTypes(), client: opened(newBuildah)},
		"skopeo":     {types: ociTypes(), client: opened(newSkopeo)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const user, password = "robot", "canary"
			docker := hub(t)
			quay := upstreamtest.NewDistribution(t, upstreamtest.DistributionOptions{Auth: upstreamtest.Basic, Username: user, Password: password})
			m := newMirror(t, forEver, map[string]string{
				"docker.io": "{url: " + docker.URL + "}",
				"quay.io":   "{url: " + quay.URL + ", username: " + user + ", password: " + password + "}",
			})
			c := with.client(t, m)
			for _, from := range []struct {
				up     *upstreamtest.Distribution
				repo   string
				image  string
				tokens int
				release
			}{
				{docker, repository, image, 1, newRelease(t, with.types, "one")},
				{quay, quayRepository, "quay.io/" + quayRepository + ":latest", 0, otherRelease(t, with.types)},
			} {
				if from.up == quay && with.hubOnly {
					continue
				}
				from.publish(from.up, from.repo, "latest")
				from.up.Forget()
				cold := wire{
					Tokens: from.tokens, Refused: 1, Heads: 1, Manifests: 2,
					Blobs: len(from.Blobs()), Bytes: from.Size(),
				}
				if with.also != nil {
					with.also(from.release, &cold)
				}
				for _, want := range []wire{cold, {}} {
					check(t, c.pull(t, from.image))
					got, requests := crossed(&from.up.Recorder)
					if want.Heads > 0 { // dockerd 29 asks for them
						want.Referrers = got.Referrers
					}
					if got != want {
						t.Errorf("%s: the upstream's wire: %+v, want %+v", from.image, got, want)
						report(t, requests)
					}
					c.holds(t, from.image, from.Image)
					c.remove(t, from.image)
				}
			}
		})
	}
}

// otherRelease shares no layer with those of newRelease: what is in the cache
// for one registry would not be sent again for another.
func otherRelease(t *testing.T, types mediaTypes) release {
	t.Helper()
	const version = "other"
	r := assemble(t, types,
		newLayer(t, types.layer, file{"payload", 0o644, upstreamtest.Random(2, payloadSize/4)}),
		newLayer(t, types.layer, file{"version", 0o644, []byte(version + "\n")}),
	)
	r.version = version
	return r
}

// attested adds what the attestation costs.
func attested(r release, w *wire) {
	w.Manifests++
	w.Blobs += len(r.attestation.Blobs())
	w.Bytes += r.attestation.Size()
}

// everyConfig adds what the other images of the index cost without their layers:
// ctr asks all of them for their platform.
func everyConfig(r release, w *wire) {
	for _, img := range []upstreamtest.Image{r.other, r.attestation} {
		w.Manifests++
		w.Blobs++
		w.Bytes += img.Manifest.Size + img.Config.Size
	}
}

// dockerWithJSON is docker20 with a daemon.json.
func dockerWithJSON(t *testing.T, m *mirror) *engine {
	t.Helper()
	return classic(t, string(m.configuration(t, "docker", "/etc/docker/daemon.json")))
}

// dockerWithHosts is docker29 with a hosts.toml in certs.d. That folder's place
// cannot be changed, so dockerd gets an /etc of its own.
func dockerWithHosts(t *testing.T, m *mirror) *engine {
	t.Helper()
	const path = "/etc/docker/certs.d/_default/hosts.toml"
	dir := t.TempDir()
	t.Cleanup(func() { leave(t, dir) })
	file := filepath.Join(dir, path)
	check(t, os.MkdirAll(filepath.Dir(file), 0o755))
	check(t, os.WriteFile(file, m.configuration(t, "docker", path), 0o600))
	const script = `mount -t overlay -o "lowerdir=$0/etc:/etc" overlay /etc && exec "$@"`
	return modern(t, []string{"unshare", "--mount", "sh", "-c", script, dir})
}

// TestConfBuild: BuildKit in dockerd goes by the same hosts.toml, for a base image
// that is not Docker Hub's.
func TestConfBuild(t *testing.T) {
	t.Parallel()
	quay := upstreamtest.NewDistribution(t, upstreamtest.DistributionOptions{Auth: upstreamtest.Bearer})
	r := newRelease(t, ociTypes(), "one")
	r.publish(quay, quayRepository, "latest")
	quay.Forget()
	m := newMirror(t, forEver, map[string]string{"docker.io": "{url: " + hub(t).URL + "}", "quay.io": "{url: " + quay.URL + "}"})
	e := dockerWithHosts(t, m)
	context := t.TempDir()
	file := "FROM quay.io/" + quayRepository + "\nRUN [\"/bin/busybox\", \"cp\", \"/version\", \"/built\"]\n"
	check(t, os.WriteFile(filepath.Join(context, "Dockerfile"), []byte(file), 0o600))
	e.build(t, "--pull", "--tag", "built", context)
	want := wire{Tokens: 1, Refused: 1, Heads: 1, Manifests: 2, Blobs: len(r.Blobs()), Bytes: r.Size()}
	if got, requests := crossed(&quay.Recorder); got != want {
		t.Errorf("the upstream's wire: %+v, want %+v", got, want)
		report(t, requests)
	}
	if out := e.run(t, "built", "/bin/busybox", "cat", "/built"); out != r.version {
		t.Errorf("the container says %q, want %q", out, r.version)
	}
}

// TestConfTLS: behind TLS, with a CA of its own, which only what the command
// printed names.
func TestConfTLS(t *testing.T) {
	t.Parallel()
	for name, with := range map[string]func(*testing.T, *mirror) client{
		"docker29":   opened(dockerWithHosts),
		"containerd": opened(newContainerd),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			quay := upstreamtest.NewDistribution(t, upstreamtest.DistributionOptions{Auth: upstreamtest.Bearer})
			r := otherRelease(t, ociTypes())
			r.publish(quay, quayRepository, "latest")
			m := newMirror(t, forEver, map[string]string{"docker.io": "{url: " + hub(t).URL + "}", "quay.io": "{url: " + quay.URL + "}"})
			target, err := url.Parse(m.url())
			check(t, err)
			front := httptest.NewTLSServer(&httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(target) }})
			t.Cleanup(front.Close)
			m.front, m.ca = front.URL, filepath.Join(t.TempDir(), "ca.pem")
			certificate := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: front.Certificate().Raw})
			check(t, os.WriteFile(m.ca, certificate, 0o600))

			c := with(t, m)
			const image = "quay.io/" + quayRepository + ":latest"
			check(t, c.pull(t, image))
			c.holds(t, image, r.Image)
		})
	}
}
