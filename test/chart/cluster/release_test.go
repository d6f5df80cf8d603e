package cluster

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const claimSize = "1Gi"

// claim returns the name of a release's claim.
func claim(release string) string { return "cache-" + release + "-cachalot-0" }

// release is a release of the chart.
type release struct {
	c               *cluster
	name, namespace string
	values          string // used in each revision
}

// release prepares a release for a namespace and a registry. It mirrors only that registry.
func (c *cluster) release(t *testing.T, namespace, name string, u *upstream, values string) *release {
	t.Helper()
	c.volume(t, namespace, name) // before its namespace, so that it is removed after it
	class := ""
	if c.class != "" {
		class = "storageClassName: " + c.class
	}
	repository, tag, _ := strings.Cut(c.image("cachalot"), ":")
	own := fmt.Sprintf(`
image: {repository: %s, tag: %q, pullPolicy: Never}
nodeSelector: {kubernetes.io/hostname: %q}
persistence:
  size: %s
  %s
config:
  default_upstream: %q
  upstreams:
    %q: {url: %q, allow_addresses: [%s]}
`, repository, tag, c.node, claimSize, class, u.name, u.name, u.url, strings.Split(strings.TrimPrefix(u.url, "http://"), ":")[0])
	r := &release{c: c, name: name, namespace: namespace, values: filepath.Join(t.TempDir(), "values.yaml")}
	if err := os.WriteFile(r.values, []byte(own), 0o600); err != nil {
		t.Fatal(err)
	}
	if values != "" { // in all revisions
		own := r.file(t, values)
		r.values += "," + own
	}
	return r
}

func (r *release) file(t *testing.T, values string) string {
	t.Helper()
	f := filepath.Join(t.TempDir(), "values.yaml")
	if err := os.WriteFile(f, []byte(values), 0o600); err != nil {
		t.Fatal(err)
	}
	return f
}

// do runs "helm VERB …" with the chart, the release's values and these.
func (r *release) do(t *testing.T, verb, values string, args ...string) string {
	t.Helper()
	began := time.Now()
	out := run(t, nil, r.c.helm, append(r.args(t, verb, values), args...)...)
	r.c.say(t, "helm %s %s: %.1f s", verb, r.name, time.Since(began).Seconds())
	return out
}

func (r *release) args(t *testing.T, verb, values string) []string {
	t.Helper()
	return []string{verb, r.name, r.c.chart, "--namespace", r.namespace, "--values", r.values, "--values", r.file(t, values), "--timeout", "3m"}
}

func (r *release) install(t *testing.T) string {
	t.Helper()
	return r.do(t, "install", "", "--wait")
}

func (r *release) uninstall(t *testing.T) {
	t.Helper()
	began := time.Now()
	run(t, nil, r.c.helm, "uninstall", r.name, "--namespace", r.namespace, "--wait", "--timeout", "3m")
	r.gone(t)
	r.c.say(t, "helm uninstall %s: %.1f s", r.name, time.Since(began).Seconds())
}

// gone waits until the release has no pods.
func (r *release) gone(t *testing.T) {
	t.Helper()
	eventually(t, 2*time.Minute, "the end of the pods of "+r.name, func(ctx context.Context) (bool, string) {
		pods, err := r.c.CoreV1().Pods(r.namespace).List(ctx, meta.ListOptions{LabelSelector: "app.kubernetes.io/instance=" + r.name})
		if err != nil {
			return false, err.Error()
		}
		return len(pods.Items) == 0, fmt.Sprint(len(pods.Items), " pods")
	})
}

// helmTest runs "helm test".
func (r *release) helmTest(t *testing.T) {
	t.Helper()
	began := time.Now()
	out := run(t, nil, r.c.helm, "test", r.name, "--namespace", r.namespace, "--timeout", "2m")
	if !strings.Contains(out, "Phase:          Succeeded") {
		t.Errorf("helm test:\n%s", out)
	}
	r.c.say(t, "helm test %s: %.1f s", r.name, time.Since(began).Seconds())
}

func (r *release) podName() string { return r.name + "-cachalot-0" }

func (r *release) pod(t *testing.T) *core.Pod {
	t.Helper()
	return r.c.ready(t, r.namespace, r.podName())
}

// answers waits until the Service reaches the mirror. kube-proxy needs some time after the
// pod is ready.
func (r *release) answers(t *testing.T) {
	t.Helper()
	r.pod(t)
	eventually(t, 30*time.Second, "the Service of "+r.name, func(ctx context.Context) (bool, string) {
		_, err := try(ctx, nil, "kubectl", "exec", "-n", r.c.tools, clientPod, "--", "/inside", "get", "http://"+r.address()+"/v2/")
		return err == nil, fmt.Sprint(err)
	})
}

// address is the address in the notes.
func (r *release) address() string { return r.name + "-cachalot." + r.namespace + ".svc:5000" }

// pull pulls an image of the registry through the mirror, and compares it.
func (r *release) pull(t *testing.T, u *upstream, ref string) {
	t.Helper()
	r.answers(t)
	if got := r.c.pull(t, r.address()+"/"+u.name+"/"+ref); got != u.images[ref] {
		t.Errorf("%s: %+v, want %+v", ref, got, u.images[ref])
	}
}

// log returns the log of the mirror's container.
func (r *release) log(ctx context.Context, previous bool) (string, error) {
	b, err := r.c.CoreV1().Pods(r.namespace).GetLogs(r.podName(), &core.PodLogOptions{Container: "cachalot", Previous: previous}).DoRaw(ctx)
	return string(b), err
}

// logs waits until the mirror's log has this text.
func (r *release) logs(t *testing.T, limit time.Duration, text string) {
	t.Helper()
	took := eventually(t, limit, r.name+" logs "+text, func(ctx context.Context) (bool, string) {
		log, err := r.log(ctx, false)
		return err == nil && strings.Contains(log, text), fmt.Sprint(err, log)
	})
	r.c.say(t, "%s logs %q after %.1f s", r.name, text, took.Seconds())
}
