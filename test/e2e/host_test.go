//go:build e2e

package e2e

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
)

// host is a separate machine: a network namespace that reaches only an [internet], with a
// dockerd 29 that has bridges and a firewall.
type host struct {
	*engine
	world   *internet
	address netip.Addr
}

// newHost starts the host. There is only one at a time, because its addresses are fixed.
func newHost(t *testing.T) *host {
	t.Helper()
	const (
		namespace   = "cachalot-e2e"
		here, there = "cachalot-e2e0", "cachalot-e2e1" // the ends of its link
	)
	world, address := netip.MustParseAddr("10.87.0.1"), netip.MustParseAddr("10.87.0.2")
	must(t, nil, "ip", "netns", "add", namespace)
	t.Cleanup(func() { must(t, nil, "ip", "netns", "delete", namespace) })
	must(t, nil, "ip", "link", "add", here, "type", "veth", "peer", "name", there, "netns", namespace)
	t.Cleanup(func() { must(t, nil, "ip", "link", "delete", here) })
	must(t, nil, "ip", "address", "add", world.String()+"/30", "dev", here)
	must(t, nil, "ip", "link", "set", here, "up")
	must(t, nil, "ip", "-n", namespace, "address", "add", address.String()+"/30", "dev", there)
	must(t, nil, "ip", "-n", namespace, "link", "set", there, "up")
	must(t, nil, "ip", "-n", namespace, "link", "set", "lo", "up")

	names := filepath.Join(t.TempDir(), "resolv.conf")
	check(t, os.WriteFile(names, fmt.Appendf(nil, "nameserver %s\n", world), 0o644))
	const script = `mount --bind "$0" /etc/resolv.conf && exec "$@"`
	return &host{
		address: address,
		world:   connectInternet(t, world, "http://"+address.String()+":5000"),
		engine: modern(t, []string{"nsenter", "--net=/run/netns/" + namespace, "unshare", "--mount", "sh", "-c", script, names},
			"--userland-proxy=false", "--ip6tables=false", "--default-address-pool", "base=10.88.0.0/16,size=24"),
	}
}
