//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// containerd is a daemon without the CRI, and its command.
type containerd struct {
	ctr     []string
	login   bool
	hosts   string // the folder certs.d
	content content
}

// rangeSize is the size of the ranges in which containerd fetches a layer.
const rangeSize = 2 << 20

// newContainerd starts a containerd that fetches layers in ranges.
func newContainerd(t *testing.T, m *mirror) containerd {
	t.Helper()
	dir := t.TempDir()
	t.Cleanup(func() { leave(t, dir) })
	const path = "/etc/containerd/certs.d/_default/hosts.toml"
	file := filepath.Join(dir, path)
	check(t, os.MkdirAll(filepath.Dir(file), 0o755))
	check(t, os.WriteFile(file, m.hosts(t, "containerd", path), 0o600))

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
concurrent_layer_fetch_buffer = %d
max_concurrent_downloads = 3
`, filepath.Join(dir, "root"), filepath.Join(dir, "state"), socket, socket+".ttrpc", rangeSize), 0o600))
	daemon := start(t, "containerd", nil, installed(t, "containerd"), "--config", config)
	c := containerd{
		login:   m.login != "",
		ctr:     []string{installed(t, "ctr"), "--address", socket},
		hosts:   filepath.Join(dir, "etc/containerd/certs.d"),
		content: content(filepath.Join(dir, "root/io.containerd.content.v1.content")),
	}
	daemon.until(t, "ready", func() error {
		_, err := try(t, nil, append(c.ctr, "version")...)
		return err
	})
	return c
}

// hosts returns the printed hosts.toml, plus the fallback.
func (m *mirror) hosts(t *testing.T, client, path string) []byte {
	t.Helper()
	file := m.configuration(t, client, path)
	if m.fallback == "" {
		return file
	}
	return fmt.Appendf(nil, "server = %q\n%s", "http://"+m.fallback, file)
}

func (c containerd) pull(t *testing.T, image string) error {
	t.Helper()
	args := append(slices.Clone(c.ctr), "images", "pull", "--hosts-dir", c.hosts)
	if c.login {
		args = append(args, "--user", user+":"+password)
	}
	_, err := try(t, nil, append(args, image)...)
	return err
}

func (c containerd) remove(t *testing.T, image string) {
	t.Helper()
	must(t, nil, append(c.ctr, "images", "rm", "--sync", image)...)
}

// holds: containerd stores all content unchanged.
func (c containerd) holds(t *testing.T, _ string, want upstreamtest.Image) {
	t.Helper()
	c.content.holds(t, all(want)...)
}
