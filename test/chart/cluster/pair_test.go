package cluster

import "testing"

// testPair runs two releases in one namespace.
func testPair(t *testing.T, c *cluster) { //nolint:thelper // a test itself: the log has its lines
	u := c.newUpstream(t, "pair", false, "app:1", "app:2")
	namespace := c.named("pair")
	one, two := c.release(t, namespace, "one", u, ""), c.release(t, namespace, "two", u, "persistence: {retain: false}")
	c.namespace(t, "pair", "restricted")
	one.install(t)
	two.install(t)
	// Each has its own cache.
	for _, r := range []*release{one, two} {
		r.pull(t, u, "app:1")
		u.once(t, "app:1")
	}
	one.uninstall(t)
	one.hasClaim(t, true)
	two.pull(t, u, "app:1")
	u.never(t, "app:1")
	two.pull(t, u, "app:2")
	u.once(t, "app:2")
	two.helmTest(t)

	one.do(t, "install", "", "--wait")
	one.pull(t, u, "app:1")
	u.never(t, "app:1")
	two.uninstall(t)
	two.hasClaim(t, false)
	one.pull(t, u, "app:1")
	one.uninstall(t)
	one.hasClaim(t, true)
}
