package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const nodePod, clientPod = "node", "client"

// prepare brings the images, and starts pods that work on the node and pull as a client.
func (c *cluster) prepare(t *testing.T) {
	t.Helper()
	c.bring(t, "inside", "0:0", "./inside")
	c.bring(t, "cachalot", "65532:65532", "../../../cmd/cachalot", "/var/lib/cachalot=")
	c.tools = c.namespace(t, "tools", "privileged")
	c.pod(t, c.tools, &core.Pod{
		ObjectMeta: meta.ObjectMeta{Name: nodePod},
		Spec: core.PodSpec{
			HostPID: true,
			Volumes: []core.Volume{{Name: "host", VolumeSource: core.VolumeSource{HostPath: &core.HostPathVolumeSource{Path: "/"}}}},
			Containers: []core.Container{{
				Args:            []string{"run"},
				SecurityContext: &core.SecurityContext{Privileged: new(true)},
				VolumeMounts:    []core.VolumeMount{{Name: "host", MountPath: "/host"}},
			}},
		},
	})
	t.Cleanup(func() {
		c.onNode(t, "forget", "/host"+c.socket, c.image("cachalot"))
		c.onNode(t, "forget", "/host"+c.socket, c.image("inside"), "now") // the image of this pod
	})
	c.pod(t, c.tools, &core.Pod{ObjectMeta: meta.ObjectMeta{Name: clientPod}, Spec: core.PodSpec{Containers: []core.Container{{Args: []string{"run"}}}}})
	c.ready(t, c.tools, nodePod)
	c.ready(t, c.tools, clientPod)
}

func (c *cluster) image(name string) string { return "cachalot.test/" + name + ":" + c.suffix }

// bring imports an image of a program, which it builds, and of folders ("PATH=").
func (c *cluster) bring(t *testing.T, name, user, source string, more ...string) {
	t.Helper()
	program := source
	if !filepath.IsAbs(source) {
		program = filepath.Join(t.TempDir(), name)
		build := []string{"CGO_ENABLED=0", "GOOS=linux", "GOARCH=" + c.arch, "go", "build", "-C", filepath.Dir(source), "-trimpath", "-ldflags", "-s -w", "-o", program, "./" + filepath.Base(source)}
		run(t, nil, "env", build...)
	}
	archive := filepath.Join(t.TempDir(), name+".tar")
	args := append([]string{"run", "./inside", "archive", c.image(name), c.arch, user, "/" + name + "=" + program}, more...)
	if err := os.WriteFile(archive, []byte(run(t, nil, "go", args...)), 0o600); err != nil {
		t.Fatal(err)
	}
	command := os.Getenv("CACHALOT_TEST_IMPORT")
	if command == "" {
		t.Fatal("CACHALOT_TEST_IMPORT says how images get to the nodes: see doc.go")
	}
	f, err := os.Open(archive) // a file and not a pipe, because some commands read it once per node
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	run(t, f, "sh", "-c", command)
	if info, err := f.Stat(); err == nil {
		c.say(t, "image %s, %s", c.image(name), mebibytes(info.Size()))
	}
}

// pod starts a pod on the node. Its default image is the test's.
func (c *cluster) pod(t *testing.T, namespace string, p *core.Pod) {
	t.Helper()
	c.complete(&p.Spec)
	if _, err := c.CoreV1().Pods(namespace).Create(t.Context(), p, meta.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

func (c *cluster) complete(spec *core.PodSpec) {
	spec.NodeName = c.node
	spec.TerminationGracePeriodSeconds = new(int64(5))
	spec.AutomountServiceAccountToken = new(false)
	spec.EnableServiceLinks = new(false)
	container := &spec.Containers[0]
	container.Name = "inside"
	if container.Image == "" {
		container.Image, container.ImagePullPolicy = c.image("inside"), core.PullNever
	}
}

// inside runs a command in a pod of the test.
func (c *cluster) inside(t *testing.T, pod string, args ...string) string {
	t.Helper()
	return run(t, nil, "kubectl", append([]string{"exec", "-n", c.tools, pod, "--", "/inside"}, args...)...)
}

func (c *cluster) onNode(t *testing.T, args ...string) string {
	t.Helper()
	return c.inside(t, nodePod, args...)
}

// pulled is a client's report of a pull.
type pulled struct {
	Digest string `json:"digest"`
	Blobs  int    `json:"blobs"`
	Bytes  int64  `json:"bytes"`
}

// pull makes a client pull an image and verify it.
func (c *cluster) pull(t *testing.T, ref string) pulled {
	t.Helper()
	var p pulled
	if err := json.Unmarshal([]byte(c.inside(t, clientPod, "pull", ref)), &p); err != nil {
		t.Fatal(err)
	}
	return p
}

// nodePull makes the node's container runtime pull an image for a pod, and removes the
// image. It returns the time of the pull as the kubelet reports it.
func (c *cluster) nodePull(t *testing.T, namespace, ref string) string {
	t.Helper()
	p := &core.Pod{
		ObjectMeta: meta.ObjectMeta{GenerateName: "pulled-"},
		Spec:       core.PodSpec{Containers: []core.Container{{Image: ref, ImagePullPolicy: core.PullIfNotPresent}}},
	}
	c.complete(&p.Spec)
	p, err := c.CoreV1().Pods(namespace).Create(t.Context(), p, meta.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	c.ready(t, namespace, p.Name)
	message := ""
	eventually(t, 30*time.Second, "the event of the pull of "+ref, func(ctx context.Context) (bool, string) {
		events, err := c.CoreV1().Events(namespace).List(ctx, meta.ListOptions{FieldSelector: "involvedObject.uid=" + string(p.UID) + ",reason=Pulled"})
		if err != nil || len(events.Items) == 0 {
			return false, fmt.Sprint(err)
		}
		message = events.Items[0].Message
		return true, ""
	})
	if !strings.HasPrefix(message, "Successfully pulled") {
		t.Fatalf("nothing was pulled: %s", message)
	}
	if err := c.CoreV1().Pods(namespace).Delete(t.Context(), p.Name, meta.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	c.onNode(t, "forget", "/host"+c.socket, ref)
	return message
}
