package cluster

import (
	"testing"
)

// TestCluster takes some minutes. Tests without shared state run in parallel.
func TestCluster(t *testing.T) {
	c := connect(t)
	c.volumes(t)
	c.prepare(t)
	t.Cleanup(func() {
		if c.class != "" {
			c.onNode(t, "remove", c.folder())
		}
	})
	c.dns(t, map[string]string{"mirror": c.named("life"), "one": c.named("pair"), "two": c.named("pair"), "nodes": c.named("nodes"), "ports": c.named("nodes"), "unread": c.named("nodes"), "rollout": c.named("rollout"), "applied": c.named("gitops"), "early": c.named("gitops")})
	t.Run("scenarios", func(t *testing.T) {
		t.Run("life", func(t *testing.T) { t.Parallel(); testLife(t, c) })
		t.Run("pair", func(t *testing.T) { t.Parallel(); testPair(t, c) })
		t.Run("rollout", func(t *testing.T) { t.Parallel(); testRollout(t, c) })
		t.Run("gitops", func(t *testing.T) { t.Parallel(); testGitOps(t, c) })
		t.Run("nodes", func(t *testing.T) { t.Parallel(); testNodes(t, c) })
	})
}
