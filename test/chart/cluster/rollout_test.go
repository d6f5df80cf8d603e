package cluster

import (
	"io"
	"strconv"
	"strings"
	"testing"
)

// testRollout replaces both replicas while a client opens a new connection every 20 ms: none is
// refused or broken.
func testRollout(t *testing.T, c *cluster) { //nolint:thelper // a test itself: the log has its lines
	u := c.newUpstream(t, "rollout", false, "app:1")
	r := c.release(t, c.named("rollout"), "rollout", u, "replicas: 2\npersistence: {type: emptyDir}")
	c.namespace(t, "rollout", "restricted")
	r.install(t)
	r.pull(t, u, "app:1")
	until, end := io.Pipe()
	type outcome struct {
		out string
		err error
	}
	done := make(chan outcome, 1)
	go func() {
		out, err := try(withoutEnd(t), until, "kubectl", "exec", "-i", "-n", c.tools, clientPod, "--", "/inside", "load", "http://"+r.address()+"/v2/")
		done <- outcome{out, err}
	}()
	for range 2 {
		run(t, nil, "kubectl", "rollout", "restart", "-n", r.namespace, "statefulset/rollout-cachalot")
		run(t, nil, "kubectl", "rollout", "status", "-n", r.namespace, "statefulset/rollout-cachalot", "--timeout=3m")
	}
	_ = end.Close()
	got := <-done
	requests, err := strconv.Atoi(strings.TrimSpace(got.out))
	if got.err != nil || err != nil || requests < 100 {
		t.Errorf("%v, %v; %d requests", got.err, err, requests)
	}
	c.say(t, "both replicas replaced twice: %d requests over new connections, 0 failed", requests)
	r.uninstall(t)
}
