package cluster

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// cluster is the cluster under test. All work on a node happens on the same node.
type cluster struct {
	*kubernetes.Clientset
	rest           *rest.Config
	helm, chart    string
	certsD, socket string // of the node's containerd
	suffix         string // of this run; part of all names
	node, nodeIP   string
	arch           string
	tools          string    // namespace of the test's own pods
	class          string    // storage class of claims; "": the default
	start          time.Time // of the test, for the log
}

// connect skips the test unless the settings enable it.
func connect(t *testing.T) *cluster {
	t.Helper()
	if os.Getenv("CACHALOT_TEST_CLUSTER") != "1" || os.Getenv("KUBECONFIG") == "" {
		t.Skip("it changes a cluster: set KUBECONFIG and CACHALOT_TEST_CLUSTER=1; doc.go has the other settings")
	}
	c := &cluster{
		helm:   cmp.Or(os.Getenv("CACHALOT_TEST_HELM"), "helm"),
		certsD: cmp.Or(os.Getenv("CACHALOT_TEST_CERTS_D"), "/etc/containerd/certs.d"),
		socket: cmp.Or(os.Getenv("CACHALOT_TEST_CONTAINERD"), "/run/containerd/containerd.sock"),
		suffix: fmt.Sprintf("%05x", rand.IntN(1<<20)),
		start:  time.Now(),
	}
	var err error
	if c.rest, err = clientcmd.BuildConfigFromFlags("", os.Getenv("KUBECONFIG")); err != nil {
		t.Fatal(err)
	}
	c.rest.QPS, c.rest.Burst = 100, 200
	if c.Clientset, err = kubernetes.NewForConfig(c.rest); err != nil {
		t.Fatal(err)
	}
	nodes, err := c.CoreV1().Nodes().List(t.Context(), meta.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range nodes.Items {
		if c.node != "" || !takesPods(n) {
			continue
		}
		c.node, c.arch = n.Name, n.Status.NodeInfo.Architecture
		for _, a := range n.Status.Addresses {
			if a.Type == core.NodeInternalIP {
				c.nodeIP = cmp.Or(c.nodeIP, a.Address)
			}
		}
		c.say(t, "node %s, %s, %s, %s", n.Name, c.nodeIP, n.Status.NodeInfo.ContainerRuntimeVersion, n.Status.NodeInfo.KubeletVersion)
	}
	if c.node == "" {
		t.Fatalf("none of %d nodes is ready and takes any pod", len(nodes.Items))
	}
	c.findChart(t)
	return c
}

func takesPods(n core.Node) bool {
	ready := false
	for _, condition := range n.Status.Conditions {
		ready = ready || condition.Type == core.NodeReady && condition.Status == core.ConditionTrue
	}
	return ready && !n.Spec.Unschedulable && len(n.Spec.Taints) == 0
}

// findChart selects the chart, without its kubeVersion if the cluster has no version.
func (c *cluster) findChart(t *testing.T) {
	t.Helper()
	version, err := c.Discovery().ServerVersion()
	if err != nil {
		t.Fatal(err)
	}
	c.chart = "../../../charts/cachalot"
	if !strings.HasPrefix(version.GitVersion, "v0.0.0-") {
		c.say(t, "Kubernetes %s", version.GitVersion)
		return
	}
	c.say(t, "Kubernetes %s.%s says that it is %s: the chart's kubeVersion is left out", version.Major, version.Minor, version.GitVersion)
	source := c.chart
	c.chart = filepath.Join(t.TempDir(), "cachalot")
	if err := os.CopyFS(c.chart, os.DirFS(source)); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(c.chart, "Chart.yaml")
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, regexp.MustCompile(`(?m)^kubeVersion:.*\n`).ReplaceAll(b, nil), 0o600); err != nil {
		t.Fatal(err)
	}
}

// say logs with the time since the start.
func (c *cluster) say(t *testing.T, format string, args ...any) {
	t.Helper()
	t.Logf("%6.1f s  "+format, append([]any{time.Since(c.start).Seconds()}, args...)...)
}

// try runs a command. An error includes its output.
func try(ctx context.Context, stdin io.Reader, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.WaitDelay = 10 * time.Second
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("%s %s: %w\n%s%s", name, strings.Join(args, " "), err, stdout.String(), stderr.String())
	}
	return stdout.String(), nil
}

func run(t *testing.T, stdin io.Reader, name string, args ...string) string {
	t.Helper()
	out, err := try(withoutEnd(t), stdin, name, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// withoutEnd is a context that also works during cleanup, with a time limit.
func withoutEnd(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 5*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// eventually calls ask until it returns true, or fails with the last reason.
func eventually(t *testing.T, limit time.Duration, what string, ask func(context.Context) (ok bool, reason string)) time.Duration {
	t.Helper()
	began, last := time.Now(), ""
	err := wait.PollUntilContextTimeout(withoutEnd(t), 250*time.Millisecond, limit, true, func(ctx context.Context) (bool, error) {
		ok, reason := ask(ctx)
		last = reason
		return ok, nil
	})
	if err != nil {
		t.Fatalf("%s: not in %v: %s", what, limit, last)
	}
	return time.Since(began)
}

// named returns a name for an object of this run.
func (c *cluster) named(name string) string { return "cachalot-test-" + c.suffix + "-" + name }

// namespace makes a namespace for the test. After a failure it logs the namespace's objects.
func (c *cluster) namespace(t *testing.T, name, security string) string {
	t.Helper()
	name = c.named(name)
	_, err := c.CoreV1().Namespaces().Create(t.Context(), &core.Namespace{ObjectMeta: meta.ObjectMeta{
		Name: name, Labels: map[string]string{"pod-security.kubernetes.io/enforce": security},
	}}, meta.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			c.show(t, name)
		}
		// The delete returns before the namespace's pods have ended.
		if err := c.CoreV1().Namespaces().Delete(withoutEnd(t), name, meta.DeleteOptions{}); err != nil {
			t.Error(err)
			return
		}
		eventually(t, 2*time.Minute, "the end of namespace "+name, func(ctx context.Context) (bool, string) {
			n, err := c.CoreV1().Namespaces().Get(ctx, name, meta.GetOptions{})
			return err != nil, fmt.Sprint(n.Status)
		})
	})
	return name
}

// show logs what helps to find a failure.
func (c *cluster) show(t *testing.T, namespace string) {
	t.Helper()
	ctx := withoutEnd(t)
	logged := func(args ...string) {
		out, err := try(ctx, nil, "kubectl", args...)
		if err == nil {
			t.Logf("kubectl %s:\n%s", strings.Join(args, " "), out)
		}
	}
	logged("-n", namespace, "get", "all,pvc,configmap", "-o", "wide")
	logged("-n", namespace, "describe", "pods")
	logged("-n", namespace, "get", "events", "--sort-by=.lastTimestamp")
	pods, err := c.CoreV1().Pods(namespace).List(ctx, meta.ListOptions{})
	if err != nil {
		t.Error(err)
		return
	}
	for _, p := range pods.Items {
		logged("-n", namespace, "logs", p.Name, "--all-containers", "--tail=200")
		logged("-n", namespace, "logs", p.Name, "--all-containers", "--tail=50", "--previous")
	}
}

// ready waits until a pod is ready.
func (c *cluster) ready(t *testing.T, namespace, name string) *core.Pod {
	t.Helper()
	var pod *core.Pod
	eventually(t, 2*time.Minute, "pod "+name+" ready", func(ctx context.Context) (bool, string) {
		p, err := c.CoreV1().Pods(namespace).Get(ctx, name, meta.GetOptions{})
		if err != nil {
			return false, err.Error()
		}
		pod = p
		return isReady(p), fmt.Sprint(p.Status)
	})
	return pod
}

func isReady(p *core.Pod) bool {
	if p.DeletionTimestamp != nil {
		return false
	}
	for _, condition := range p.Status.Conditions {
		if condition.Type == core.PodReady {
			return condition.Status == core.ConditionTrue
		}
	}
	return false
}

func mebibytes(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }
