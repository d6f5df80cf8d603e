//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// containerd is a daemon without the CRI, and the command that speaks to it.
type containerd struct {
	ctr   []string
	hosts string // the folder certs.d
}

// newContainerd starts a containerd that fetches a layer in several ranges.
func newContainerd(t *testing.T, m *mirror) containerd {
	t.Helper()
	dir := t.TempDir()
	t.Cleanup(func() { leave(t, dir) })
	const path = "/etc/containerd/certs.d/_default/hosts.toml"
	file := filepath.Join(dir, path)
	check(t, os.MkdirAll(filepath.Dir(file), 0o755))
	check(t, os.WriteFile(file, m.configuration(t, "containerd", path), 0o600))

	socket := filepath.Join(dir, "sock")
	config := filepath.Join(dir, "config.toml")
	check(t, os.WriteFile(config, fmt.Appendf(nil, `
version = 3
root = %q
state = %q
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime"]
[grpc]
address = %q
[ttrpc]
address = %q
[plugins."io.containerd.transfer.v1.local"]
concurrent_layer_fetch_buffer = 2097152
max_concurrent_downloads = 3
`, filepath.Join(dir, "root"), filepath.Join(dir, "state"), socket, socket+".ttrpc"), 0o600))
	daemon := start(t, "containerd", nil, installed(t, "containerd"), "--config", config)
	c := containerd{ctr: []string{installed(t, "ctr"), "--address", socket}, hosts: filepath.Join(dir, "etc/containerd/certs.d")}
	daemon.until(t, "ready", func() error {
		_, err := try(t, nil, append(c.ctr, "version")...)
		return err
	})
	return c
}

func (c containerd) pull(t *testing.T, image string) error {
	t.Helper()
	_, err := try(t, nil, append(c.ctr, "images", "pull", "--hosts-dir", c.hosts, image)...)
	return err
}

func (c containerd) remove(t *testing.T, image string) {
	t.Helper()
	must(t, nil, append(c.ctr, "images", "rm", "--sync", image)...)
}

// holds: containerd keeps blobs as they are.
func (c containerd) holds(t *testing.T, _ string, want upstreamtest.Image) {
	t.Helper()
	for _, b := range append(want.Blobs(), want.Manifest, want.Index) {
		const script = `"$@" | sha256sum`
		sum := must(t, nil, append([]string{"sh", "-c", script, "content"}, append(c.ctr, "content", "get", b.Digest.String())...)...)
		if got, _, _ := strings.Cut(sum, " "); got != b.Digest.Encoded() {
			t.Errorf("the content of %s has the digest %s", b.Digest, got)
		}
	}
}
