package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// upstream is a registry in the cluster.
type upstream struct {
	c      *cluster
	deploy string
	name   string            // in the configuration and in image names
	url    string            // for the mirror
	port   int               // its port
	images map[string]pulled // its images
	seen   int               // requests that look has read
}

// newUpstream starts a registry: for clients in the cluster, or on the node's network, at
// 127.0.0.1 for the node and at the node's address for the mirror.
func (c *cluster) newUpstream(t *testing.T, name string, onNode bool, refs ...string) *upstream {
	t.Helper()
	u := &upstream{c: c, deploy: name + "-upstream", name: name + ".test", port: 5000, images: map[string]pulled{}}
	if onNode {
		u.port = 21000 + rand.IntN(8000)
		u.name = fmt.Sprintf("127.0.0.1:%d", u.port)
		u.url = fmt.Sprintf("http://%s:%d", c.nodeIP, u.port)
	}
	labels := map[string]string{"app": u.deploy}
	spec := core.PodSpec{
		HostNetwork: onNode,
		Containers: []core.Container{{
			Args: append([]string{"registry", fmt.Sprintf(":%d", u.port)}, refs...),
			ReadinessProbe: &core.Probe{
				ProbeHandler:  core.ProbeHandler{HTTPGet: &core.HTTPGetAction{Path: "/ready", Port: intstr.FromInt(u.port)}},
				PeriodSeconds: 1,
			},
		}},
	}
	c.complete(&spec)
	_, err := c.AppsV1().Deployments(c.tools).Create(t.Context(), &apps.Deployment{
		ObjectMeta: meta.ObjectMeta{Name: u.deploy},
		Spec: apps.DeploymentSpec{
			Replicas: new(int32(1)), Selector: &meta.LabelSelector{MatchLabels: labels},
			Template: core.PodTemplateSpec{ObjectMeta: meta.ObjectMeta{Labels: labels}, Spec: spec},
		},
	}, meta.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if !onNode {
		s, err := c.CoreV1().Services(c.tools).Create(t.Context(), &core.Service{
			ObjectMeta: meta.ObjectMeta{Name: u.deploy},
			Spec:       core.ServiceSpec{Selector: labels, Ports: []core.ServicePort{{Port: int32(u.port)}}},
		}, meta.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		u.url = fmt.Sprintf("http://%s:%d", s.Spec.ClusterIP, u.port)
	}
	u.scaled(t, 1)
	for _, ref := range refs {
		var p pulled
		if err := json.Unmarshal([]byte(u.exec(t, "pull", fmt.Sprintf("127.0.0.1:%d/%s", u.port, ref))), &p); err != nil {
			t.Fatal(err)
		}
		u.images[ref] = p
	}
	t.Cleanup(func() {
		if onNode && t.Failed() { // otherwise each pull removes its own image
			for _, ref := range refs {
				c.onNode(t, "forget", "/host"+c.socket, u.name+"/"+ref, "now")
			}
		}
	})
	u.look(t)
	c.say(t, "upstream %s at %s: %d images of %d blobs, %s each", u.name, u.url, len(refs), u.images[refs[0]].Blobs, mebibytes(u.images[refs[0]].Bytes))
	return u
}

func (u *upstream) exec(t *testing.T, args ...string) string {
	t.Helper()
	return u.c.inside(t, "deployment/"+u.deploy, args...)
}

// scale stops or starts the registry.
func (u *upstream) scale(t *testing.T, replicas int32) {
	t.Helper()
	scale(t, "deployment", u.c.tools, u.deploy, int(replicas))
	u.scaled(t, replicas)
	u.seen = 0
}

func scale(t *testing.T, kind, namespace, name string, replicas int) {
	t.Helper()
	run(t, nil, "kubectl", "scale", "-n", namespace, kind+"/"+name, fmt.Sprintf("--replicas=%d", replicas))
}

func (u *upstream) scaled(t *testing.T, replicas int32) {
	t.Helper()
	eventually(t, time.Minute, "the registry", func(ctx context.Context) (bool, string) {
		pods, err := u.c.CoreV1().Pods(u.c.tools).List(ctx, meta.ListOptions{LabelSelector: "app=" + u.deploy})
		if err != nil {
			return false, err.Error()
		}
		ok := len(pods.Items) == int(replicas)
		for i := range pods.Items {
			ok = ok && isReady(&pods.Items[i])
		}
		return ok, fmt.Sprint(len(pods.Items), " pods")
	})
}

// traffic is the traffic at the registry.
type traffic struct {
	manifests int            // manifest requests
	bytes     int64          // of blobs
	blobs     map[string]int // requests by digest
	agents    []string
	failed    []string
}

func (s traffic) String() string {
	return fmt.Sprintf("%d requests for manifests, %d blobs of %s, by %q", s.manifests, len(s.blobs), mebibytes(s.bytes), s.agents)
}

// look returns the registry's requests since the last look. It waits for requests in progress.
func (u *upstream) look(t *testing.T) traffic {
	t.Helper()
	var requests []struct {
		Method, Path, Agent string
		Status              int
		Bytes               int64
	}
	if err := json.Unmarshal([]byte(u.exec(t, "get", fmt.Sprintf("http://127.0.0.1:%d/requests", u.port))), &requests); err != nil {
		t.Fatal(err)
	}
	s := traffic{blobs: map[string]int{}}
	for _, r := range requests[u.seen:] {
		agent, _, _ := strings.Cut(r.Agent, " ")
		if !slices.Contains(s.agents, agent) {
			s.agents = append(s.agents, agent)
		}
		if r.Status >= 300 && r.Path != "/v2/" {
			s.failed = append(s.failed, fmt.Sprintf("%s %s: %d", r.Method, r.Path, r.Status))
		}
		if strings.Contains(r.Path, "/manifests/") {
			s.manifests++
		}
		if _, digest, found := strings.Cut(r.Path, "/blobs/"); found && r.Method == "GET" {
			s.blobs[digest]++
			s.bytes += r.Bytes
		}
	}
	u.seen = len(requests)
	return s
}

// once checks that the mirror downloaded every blob of an image, and each byte once.
func (u *upstream) once(t *testing.T, ref string) {
	t.Helper()
	s := u.look(t)
	u.c.say(t, "upstream of %s: %v", ref, s)
	if want := u.images[ref]; s.bytes != want.Bytes || len(s.blobs) != want.Blobs || len(s.failed) != 0 || !s.by("cachalot/") {
		t.Errorf("%s: %v, want %d blobs of %d bytes by cachalot alone; failed: %q; requests: %v", ref, s, want.Blobs, want.Bytes, s.failed, s.blobs)
	}
}

// never checks that no blob was downloaded.
func (u *upstream) never(t *testing.T, ref string) {
	t.Helper()
	s := u.look(t)
	u.c.say(t, "upstream of %s: %v", ref, s)
	if len(s.blobs) != 0 || !s.by("cachalot/") {
		t.Errorf("%s: %v, want no blob, and nobody but cachalot", ref, s)
	}
}

func (s traffic) by(prefix string) bool {
	return !slices.ContainsFunc(s.agents, func(a string) bool { return !strings.HasPrefix(a, prefix) })
}
