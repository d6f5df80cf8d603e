package cluster

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// testNodes makes the node's own containerd pull through the mirror: by the Service's
// address, then by a node port.
func testNodes(t *testing.T, c *cluster) { //nolint:thelper // a test itself: the log has its lines
	u := c.newUpstream(t, "nodes", true, "app:1", "app:2", "app:3", "app:4")
	values := fmt.Sprintf("nodes: {enabled: true, configPath: %q, containerdSocket: %q}", c.certsD, c.socket)
	byAddress := c.release(t, c.named("nodes"), "nodes", u, values)
	port := c.freePort(t)
	byPort := c.release(t, c.named("nodes"), "ports", u, fmt.Sprintf("%s\nservice: {type: NodePort, nodePort: %d}", values, port))
	unread := c.release(t, c.named("nodes"), "unread", u, values)
	before := c.certs(t)
	if strings.Contains(before, "_default") || strings.Contains(before, "docker.io") {
		t.Fatalf("the node has a _default or docker.io of its own in %s:\n%s", c.certsD, before)
	}
	if before == "not there\n" {
		c.onNode(t, "folder", "/host"+c.certsD)
		before = c.certs(t)
		t.Cleanup(func() { c.onNode(t, "remove", "/host"+c.certsD) })
	}
	t.Cleanup(func() {
		if after := c.certs(t); after != before {
			t.Errorf("left on the node:\n%s\nwas:\n%s", after, before)
			c.onNode(t, "remove", "/host"+c.certsD+"/_default")
			c.onNode(t, "remove", "/host"+c.certsD+"/docker.io")
		}
	})
	c.namespace(t, "nodes", "privileged") // it is deleted first, and removes its lines from the files
	if !t.Run("by the Service's address", func(t *testing.T) { nodesByAddress(t, byAddress, u) }) {
		return // its release still exists
	}
	t.Run("by a port and with files of others", func(t *testing.T) { nodesByPort(t, byPort, u, port) })
	t.Run("a folder that containerd does not read", func(t *testing.T) { nodesUnread(t, unread, u) })
}

// certs returns all files in the configuration folder of the node's containerd.
func (c *cluster) certs(t *testing.T) string {
	t.Helper()
	return c.onNode(t, "tree", "/host"+c.certsD)
}

// freePort returns a nodePort that no Service uses.
func (c *cluster) freePort(t *testing.T) int32 {
	t.Helper()
	services, err := c.CoreV1().Services("").List(t.Context(), meta.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	taken := map[int32]bool{}
	for _, s := range services.Items {
		for _, p := range s.Spec.Ports {
			taken[p.NodePort] = true
		}
	}
	for {
		if port := 30000 + rand.Int32N(2768); !taken[port] {
			return port
		}
	}
}

// nodePull pulls an image on the node through the mirror.
func (r *release) nodePull(t *testing.T, u *upstream, ref string) time.Duration {
	t.Helper()
	began := time.Now()
	message := r.c.nodePull(t, r.namespace, u.name+"/"+ref)
	took := time.Since(began)
	r.c.say(t, "%s in all %.1f s", message, took.Seconds())
	return took
}

func nodesByAddress(t *testing.T, r *release, u *upstream) { //nolint:thelper // a test itself: the log has its lines
	c := r.c
	before := c.certs(t)
	r.install(t)
	s, err := c.CoreV1().Services(r.namespace).Get(t.Context(), "nodes-cachalot", meta.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	with := c.certs(t)
	if want := fmt.Sprintf("[host.\\\"http://%s:5000\\\"]", s.Spec.ClusterIP); !strings.Contains(with, "_default/hosts.toml") || !strings.Contains(with, want) {
		t.Fatalf("no %s in\n%s", want, with)
	}
	c.say(t, "on the node:\n%s", with)

	r.answers(t)
	r.nodePull(t, u, "app:1")
	u.once(t, "app:1")
	r.nodePull(t, u, "app:1")
	u.never(t, "app:1")

	run(t, nil, "kubectl", "delete", "pod", "-n", r.namespace, r.podName(), "--wait=false")
	r.nodePull(t, u, "app:2")
	c.say(t, "the mirror's pod was deleted just before; upstream: %v", u.look(t))
	r.answers(t)
	r.nodePull(t, u, "app:1")
	u.never(t, "app:1")

	u.scale(t, 0)
	r.nodePull(t, u, "app:1")
	c.say(t, "the registry was gone: the mirror alone had that image")
	u.scale(t, 1)

	away := time.Now()
	scale(t, "statefulset", r.namespace, "nodes-cachalot", 0)
	eventually(t, time.Minute, "the mirror's end", func(ctx context.Context) (bool, string) {
		_, err := c.CoreV1().Pods(r.namespace).Get(ctx, r.podName(), meta.GetOptions{})
		return err != nil, "still there"
	})
	if took := r.nodePull(t, u, "app:3"); took > 30*time.Second {
		t.Errorf("a pull past the mirror that is away took %v", took)
	}
	if s := u.look(t); s.bytes != u.images["app:3"].Bytes || !s.by("containerd/") {
		t.Errorf("the mirror is away: %v, want all of the image by containerd", s)
	} else {
		c.say(t, "the mirror is away; upstream: %v", s)
	}
	c.become(t, before, "without the mirror")
	c.say(t, "%.1f s after it was scaled to 0", time.Since(away).Seconds())
	back := time.Now()
	scale(t, "statefulset", r.namespace, "nodes-cachalot", 1)
	r.answers(t)
	c.become(t, with, "with the mirror")
	c.say(t, "%.1f s after it was scaled to 1", time.Since(back).Seconds())
	r.nodePull(t, u, "app:1")
	u.never(t, "app:1")

	// The first upgrade changes only the mirror, the second replaces the DaemonSet's pods.
	agent := r.nodeAgent(t)
	r.do(t, "upgrade", `config: {tags: {fresh_for: 5m}}`, "--wait")
	if r.nodeAgent(t).UID != agent.UID {
		t.Error("a changed configuration of the mirror replaces the pods of the nodes")
	}
	r.do(t, "upgrade", `nodes: {podAnnotations: {another: one}}`, "--wait")
	if r.nodeAgent(t).UID == agent.UID {
		t.Error("the DaemonSet's pods are the same")
	}
	c.become(t, with, "with the mirror")
	r.nodePull(t, u, "app:1")
	u.never(t, "app:1")
	r.helmTest(t)

	r.leaves(t, before)
	c.say(t, "uninstalled; on the node, as before:\n%s", c.certs(t))
	r.nodePull(t, u, "app:1")
	c.say(t, "without a mirror: %v", u.look(t))
}

func nodesByPort(t *testing.T, r *release, u *upstream, port int32) { //nolint:thelper // a test itself: the log has its lines
	c := r.c
	for path, content := range map[string]string{
		"_default":  "# ours, which is away\n[host.\"http://127.0.0.1:9\"]\n  capabilities = [\"pull\", \"resolve\"]\n",
		"docker.io": "server = \"https://registry-1.docker.io\" # without a line's end",
	} {
		run(t, strings.NewReader(content), "kubectl", "exec", "-i", "-n", c.tools, nodePod, "--", "/inside", "write", "/host"+c.certsD+"/"+path+"/hosts.toml")
		t.Cleanup(func() { c.onNode(t, "remove", "/host"+c.certsD+"/"+path) })
	}
	before := c.certs(t)
	r.install(t)
	with := c.certs(t)
	if want := fmt.Sprintf("[host.\\\"http://%s:%d\\\"]", c.nodeIP, port); !strings.Contains(with, want) {
		t.Fatalf("no %s in\n%s", want, with)
	}
	c.say(t, "on the node:\n%s", with)
	r.answers(t)
	r.nodePull(t, u, "app:4")
	u.once(t, "app:4")
	r.nodePull(t, u, "app:4")
	u.never(t, "app:4")
	r.leaves(t, before)
	c.say(t, "uninstalled; on the node, as before:\n%s", c.certs(t))
}

// nodesUnread has the nodes' files in a folder that containerd does not read: the pod is not
// ready, and an event says why. With the right folder it becomes ready.
func nodesUnread(t *testing.T, r *release, u *upstream) { //nolint:thelper // a test itself: the log has its lines
	c := r.c
	before := c.certs(t)
	elsewhere := c.certsD + "-unread"
	t.Cleanup(func() { c.onNode(t, "remove", "/host"+elsewhere) })
	r.do(t, "install", fmt.Sprintf("nodes: {configPath: %q}", elsewhere))
	r.answers(t)
	eventually(t, 2*time.Minute, "an event of the node's pod", func(ctx context.Context) (bool, string) {
		events, err := c.CoreV1().Events(r.namespace).List(ctx, meta.ListOptions{FieldSelector: "reason=Unhealthy"})
		if err != nil {
			return false, err.Error()
		}
		for _, e := range events.Items {
			if strings.Contains(e.Message, elsewhere+": containerd does not read the folder") {
				c.say(t, "the event: %s", e.Message)
				return true, ""
			}
		}
		return false, fmt.Sprintf("%d other events", len(events.Items))
	})
	set, err := c.AppsV1().DaemonSets(r.namespace).Get(t.Context(), "unread-cachalot-node", meta.GetOptions{})
	if err != nil || set.Status.NumberReady != 0 || set.Status.DesiredNumberScheduled != 1 {
		t.Errorf("%v, %+v", err, set.Status)
	}
	r.nodePull(t, u, "app:4") // from the registry itself
	r.do(t, "upgrade", "", "--wait")
	r.nodeAgent(t)
	u.look(t)
	r.nodePull(t, u, "app:4")
	u.once(t, "app:4")
	r.nodePull(t, u, "app:4")
	u.never(t, "app:4")
	r.leaves(t, before)
}

// leaves uninstalls the release, after which the node's folder is as before.
func (r *release) leaves(t *testing.T, before string) {
	t.Helper()
	r.uninstall(t)
	if after := r.c.certs(t); after != before {
		t.Errorf("after the release:\n%s\nbefore it:\n%s", after, before)
	}
}

// become waits until the folder has the expected content.
func (c *cluster) become(t *testing.T, want, what string) {
	t.Helper()
	eventually(t, 2*time.Minute, "the node's files "+what, func(context.Context) (bool, string) {
		got := c.certs(t)
		return got == want, got
	})
}

// nodeAgent is the DaemonSet's pod on the node.
func (r *release) nodeAgent(t *testing.T) *core.Pod {
	t.Helper()
	pods, err := r.c.CoreV1().Pods(r.namespace).List(t.Context(), meta.ListOptions{
		LabelSelector: "app.kubernetes.io/component=node,app.kubernetes.io/instance=" + r.name,
		FieldSelector: "spec.nodeName=" + r.c.node,
	})
	if err != nil {
		t.Fatal(err)
	}
	var found *core.Pod
	for i, p := range pods.Items {
		if isReady(&p) {
			found = &pods.Items[i]
		}
	}
	if found == nil {
		t.Fatalf("none of %d pods is ready", len(pods.Items))
	}
	return found
}
