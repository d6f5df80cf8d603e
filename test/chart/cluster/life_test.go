package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// testLife follows one release, in a namespace for restricted pods.
func testLife(t *testing.T, c *cluster) { //nolint:thelper // a test itself: the log has its lines
	u := c.newUpstream(t, "life", false, "app:1", "app:2", "app:3")
	r := c.release(t, c.named("life"), "mirror", u, "")
	c.namespace(t, "life", "restricted")

	// Each subtest depends on the previous ones.
	_ = t.Run("install", func(t *testing.T) {
		notes := r.install(t)
		r.restricted(t)
		r.helmTest(t)
		r.notes(t, notes)
		r.pull(t, u, "app:1")
		u.once(t, "app:1")
		r.pull(t, u, "app:1")
		u.never(t, "app:1")
	}) &&
		t.Run("upgrade", func(t *testing.T) {
			before := r.pod(t)
			r.do(t, "upgrade", `config: {tags: {fresh_for: 7m}}`, "--wait")
			r.logs(t, 3*time.Minute, `"msg":"configuration reloaded"`)
			if after := r.pod(t); after.UID != before.UID || restarts(after) != 0 {
				t.Errorf("the pod was replaced: %s, then %s, with %d restarts", before.UID, after.UID, restarts(after))
			}
			r.do(t, "upgrade", `config: {tags: {fresh_for: 7m}, storage: {max_fills: 9}}`, "--wait")
			if after := r.pod(t); after.UID == before.UID {
				t.Error("storage.max_fills wants a restart, and the pod is the same")
			}
			r.pull(t, u, "app:1")
			u.never(t, "app:1")
		}) &&
		t.Run("rollback", func(t *testing.T) {
			upgraded, config := r.pod(t), r.config(t)
			if !strings.Contains(config, "fresh_for: 7m") || !strings.Contains(config, "max_fills: 9") {
				t.Fatalf("the upgrades are not in it:\n%s", config)
			}
			began := time.Now()
			run(t, nil, c.helm, "rollback", r.name, "1", "--namespace", r.namespace, "--wait", "--timeout", "3m")
			c.say(t, "helm rollback %s 1: %.1f s", r.name, time.Since(began).Seconds())
			if config := r.config(t); strings.Contains(config, "fresh_for") || strings.Contains(config, "max_fills") {
				t.Errorf("still there:\n%s", config)
			}
			if r.pod(t).UID == upgraded.UID {
				t.Error("the pod is the same")
			}
			r.pull(t, u, "app:1")
			u.never(t, "app:1")
		}) &&
		t.Run("a mistake that helm sees", func(t *testing.T) {
			before, config := r.pod(t), r.config(t)
			_, err := try(withoutEnd(t), nil, c.helm, r.args(t, "upgrade", `config: {tags: {fresh_four: 7m}}`)...)
			if err == nil || !strings.Contains(err.Error(), "fresh_four") {
				t.Errorf("helm upgrade: %v", err)
			}
			c.say(t, "helm refuses an unknown key: %v", err)
			if r.pod(t).UID != before.UID || r.config(t) != config {
				t.Error("something has changed all the same")
			}
		}) &&
		t.Run("a mistake that only cachalot sees", func(t *testing.T) {
			before, config := r.pod(t), r.config(t)
			_, err := try(withoutEnd(t), nil, c.helm, r.args(t, "upgrade", `config: {default_upstream: nowhere.test}`)...)
			if err == nil || !strings.Contains(err.Error(), "default_upstream") {
				t.Errorf("helm upgrade: %v", err)
			}
			c.say(t, "a Job refuses what cachalot would: %v", err)
			if r.pod(t).UID != before.UID || r.config(t) != config {
				t.Error("something has changed all the same")
			}
		}) &&
		t.Run("a mistake that no check has found", func(t *testing.T) {
			before := r.pod(t)
			r.do(t, "upgrade", `{configCheck: {enabled: false}, config: {default_upstream: nowhere.test}}`, "--wait")
			r.touch(t)
			r.logs(t, 3*time.Minute, `configuration not reloaded; the old one stays in effect`)
			r.pull(t, u, "app:1")
			u.never(t, "app:1")
			r.pull(t, u, "app:2")
			u.once(t, "app:2")
			r.do(t, "upgrade", `config: {tags: {fresh_for: 8m}}`, "--wait")
			r.touch(t)
			r.logs(t, 3*time.Minute, `"msg":"configuration reloaded"`)
			if after := r.pod(t); after.UID != before.UID || restarts(after) != 0 {
				t.Errorf("the pod was replaced: %s, then %s, with %d restarts", before.UID, after.UID, restarts(after))
			}
		}) &&
		t.Run("a mistake in what wants a restart", func(t *testing.T) {
			r.do(t, "upgrade", `{configCheck: {enabled: false}, config: {storage: {low_mark: 99%}}}`)
			eventually(t, time.Minute, "the end of the new pod", func(ctx context.Context) (bool, string) {
				log, err := r.log(ctx, true)
				return err == nil && strings.Contains(log, "low_mark"), fmt.Sprint(err, log)
			})
			c.say(t, "the new pod does not come up, and says why; the mirror is away")
			r.do(t, "upgrade", `config: {storage: {low_mark: 90%}}`, "--wait")
			r.pull(t, u, "app:2")
			u.never(t, "app:2")
		}) &&
		t.Run("uninstall", func(t *testing.T) {
			r.uninstall(t)
			r.hasClaim(t, true)
		})
}

// restricted checks the mirror's process as the kernel sees it.
func (r *release) restricted(t *testing.T) {
	t.Helper()
	pod := r.pod(t)
	var found struct {
		Status       map[string]string
		Root, Folder string
	}
	if err := json.Unmarshal([]byte(r.c.onNode(t, "process", string(pod.UID), "/cachalot", "/var/lib/cachalot")), &found); err != nil {
		t.Fatal(err)
	}
	r.c.say(t, "the process: %v; a write to its root: %s; its cache: %s", found.Status, found.Root, found.Folder)
	const user = "65532 65532 65532 65532"
	for key, want := range map[string]string{
		"Uid": user, "Gid": user, "Groups": "65532", "CapEff": "0000000000000000", "CapBnd": "0000000000000000", "NoNewPrivs": "1", "Seccomp": "2",
	} {
		if found.Status[key] != want {
			t.Errorf("%s of the process is %q, want %q", key, found.Status[key], want)
		}
	}
	if found.Root != "read-only file system" {
		t.Errorf("a write to the root file system: %s", found.Root)
	}
	if !regexp.MustCompile(`^dg?rwxrwx\S+ \d+:65532$`).MatchString(found.Folder) {
		t.Errorf("the cache's folder is %s", found.Folder)
	}
}

// notes follows the steps in the notes.
func (r *release) notes(t *testing.T, notes string) {
	t.Helper()
	if want := "The mirror is at http://" + r.address(); !strings.Contains(notes, want) {
		t.Errorf("not in the notes: %s\n%s", want, notes)
	}
	command := regexp.MustCompile(`(?m)^ *(kubectl exec .*)$`).FindString(notes)
	out := run(t, nil, "sh", "-c", command)
	if !strings.Contains(out, `[host."http://`+r.address()+`"]`) {
		t.Errorf("%s:\n%s", command, out)
	}
	r.c.say(t, "%s:\n%s", strings.TrimSpace(command), out)
}

// touch makes the kubelet update the pod and its ConfigMap at once.
func (r *release) touch(t *testing.T) {
	t.Helper()
	run(t, nil, "kubectl", "annotate", "pod", "-n", r.namespace, r.podName(), "--overwrite", "touched="+time.Now().Format(time.RFC3339Nano))
}

// config is the configuration of the mirror's pods.
func (r *release) config(t *testing.T) string {
	t.Helper()
	m, err := r.c.CoreV1().ConfigMaps(r.namespace).Get(t.Context(), r.name+"-cachalot", meta.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return m.Data["cachalot.yml"]
}

func (r *release) hasClaim(t *testing.T, want bool) {
	t.Helper()
	eventually(t, time.Minute, fmt.Sprint("claim of ", r.name, ": ", want), func(ctx context.Context) (bool, string) {
		claims, err := r.c.CoreV1().PersistentVolumeClaims(r.namespace).List(ctx, meta.ListOptions{LabelSelector: "app.kubernetes.io/instance=" + r.name})
		if err != nil {
			return false, err.Error()
		}
		return len(claims.Items) == 1 && claims.Items[0].Status.Phase == core.ClaimBound && want || len(claims.Items) == 0 && !want, fmt.Sprint(claims.Items)
	})
	r.c.say(t, "the claim of %s is there: %v", r.name, want)
}

func restarts(p *core.Pod) int32 {
	n := int32(0)
	for _, s := range p.Status.ContainerStatuses {
		n += s.RestartCount
	}
	return n
}
