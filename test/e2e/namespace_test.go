//go:build e2e

package e2e

import (
	"net/http"
	"strings"
	"testing"

	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// TestNamespace: as containerd names a registry, one mirror serves several, each
// with its own way to authenticate.
func TestNamespace(t *testing.T) {
	t.Parallel()
	const user, password = "robot", "canary"
	quay := upstreamtest.NewDistribution(t, upstreamtest.DistributionOptions{Auth: upstreamtest.Basic, Username: user, Password: password})
	docker := hub(t)
	const repo = "org/app"
	there := quay.PushImage(repo, "latest", upstreamtest.NewImage(1, 1<<20, 1<<10))
	here := docker.PushImage(repo, "latest", upstreamtest.NewImage(2, 1<<10))
	m := newMirror(t, forEver, map[string]string{
		"docker.io": "{url: " + docker.URL + "}",
		"quay.io":   "{url: " + quay.URL + ", username: " + user + ", password: " + password + "}",
	})

	for range 2 { // cold, and warm
		for _, tt := range []struct {
			path  string
			image upstreamtest.Image
		}{
			{"?ns=quay.io", there}, {"?ns=docker.io", here}, {"", here},
		} {
			wants(t, m, repo, "manifests/latest"+tt.path, tt.image.Index)
			wants(t, m, repo, "manifests/"+tt.image.Manifest.Digest.String()+tt.path, tt.image.Manifest)
			for _, b := range tt.image.Blobs() {
				wants(t, m, repo, "blobs/"+b.Digest.String()+tt.path, b)
			}
		}
	}
	for name, up := range map[string]struct {
		*upstreamtest.Distribution
		want wire
	}{
		"quay.io":   {quay, wire{Refused: 1, Heads: 1, Manifests: 2, Blobs: 3, Bytes: there.Size()}},
		"docker.io": {docker, wire{Tokens: 1, Refused: 1, Heads: 1, Manifests: 2, Blobs: 2, Bytes: here.Size()}},
	} {
		if got, requests := crossed(&up.Recorder); got != up.want {
			t.Errorf("%s: the upstream's wire: %+v, want %+v", name, got, up.want)
			report(t, requests)
		}
	}

	status, body := get(t, m.url()+"/v2/"+repo+"/manifests/latest?ns=ghcr.io")
	if status != http.StatusNotFound || !strings.Contains(body, "NAME_UNKNOWN") {
		t.Errorf("a registry that is not configured: %d: %s", status, body)
	}
	if got, _ := crossed(&docker.Recorder); got != (wire{}) {
		t.Errorf("for a registry that is not configured, docker.io was asked: %+v", got)
	}
}

func wants(t *testing.T, m *mirror, repo, path string, want upstreamtest.Content) {
	t.Helper()
	if status, body := get(t, m.url()+"/v2/"+repo+"/"+path); status != http.StatusOK || body != string(want.Bytes) {
		t.Errorf("%s: status %d, %d bytes; want %d", path, status, len(body), want.Size)
	}
}
