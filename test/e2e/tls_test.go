//go:build e2e

package e2e

import "testing"

// TestTLS: behind TLS, with a CA of its own, which only what the command printed
// names.
func TestTLS(t *testing.T) {
	t.Parallel()
	for name, with := range map[string]func(*testing.T, *mirror) client{
		"docker29":   opened(dockerWithHosts),
		"containerd": opened(newContainerd),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			list := sources(t, ociTypes())
			m := newMirror(t, forEver, upstreams(list))
			secured(t, m)
			c := with(t, m)
			for _, from := range list {
				from.publish(from.one)
				check(t, c.pull(t, from.image()))
				c.holds(t, from.image(), from.one.Image)
			}
		})
	}
}
