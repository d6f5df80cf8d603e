package cluster

import (
	"strings"
	"testing"
)

// testGitOps applies what "helm template" renders, and installs a release before its Secret.
func testGitOps(t *testing.T, c *cluster) { //nolint:thelper // a test itself: the log has its lines
	u := c.newUpstream(t, "gitops", false, "app:1")
	applied := c.release(t, c.named("gitops"), "applied", u, "")
	early := c.release(t, c.named("gitops"), "early", u, `
secrets: {later: {existingSecret: later}, made: {data: {token: 0123456789abcdef}}}
config:
  admin: {token_file: /run/secrets/made/token}
  upstreams: {docker.io: {username: ci, password_file: /run/secrets/later/password}}`)
	c.namespace(t, "gitops", "restricted")

	_ = t.Run("template", func(t *testing.T) {
		objects := run(t, nil, c.helm, "template", applied.name, c.chart, "--namespace", applied.namespace, "--no-hooks", "--values", applied.values)
		run(t, strings.NewReader(objects), "kubectl", "apply", "-f", "-")
		applied.pull(t, u, "app:1")
		u.once(t, "app:1")
		if out, err := try(withoutEnd(t), strings.NewReader(objects), "kubectl", "diff", "-f", "-"); err != nil {
			t.Errorf("what is there differs from what was applied: %v\n%s", err, out)
		}
	})
	_ = t.Run("before its Secret", func(t *testing.T) {
		early.do(t, "install", "")
		run(t, nil, "kubectl", "create", "secret", "generic", "later", "-n", early.namespace, "--from-literal=password=correct")
		before := early.pod(t)
		_, err := try(withoutEnd(t), nil, c.helm, early.args(t, "upgrade", `secrets: {made: {data: {token: short}}}`)...)
		if err == nil || !strings.Contains(err.Error(), "admin.token_file: 5 characters") {
			t.Errorf("helm upgrade: %v", err)
		}
		early.do(t, "upgrade", `secrets: {made: {data: {token: fedcba9876543210}}}`, "--wait")
		if after := early.pod(t); after.UID != before.UID {
			t.Error("a Secret has replaced the pod")
		}
		if left := run(t, nil, "kubectl", "get", "jobs,configmaps,secrets", "-n", early.namespace, "-l", "app.kubernetes.io/component=check", "-o", "name"); left != "" {
			t.Errorf("left: %s", left)
		}
		early.uninstall(t)
	})
}
