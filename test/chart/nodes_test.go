package chart

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	rbac "k8s.io/api/rbac/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"
)

func nodes(t *testing.T, r rendered) *apps.DaemonSet {
	t.Helper()
	sets := all[*apps.DaemonSet](r)
	if len(sets) != 1 {
		t.Fatalf("%d DaemonSets", len(sets))
	}
	return sets[0]
}

// expanded is a container's variable with the values that the kubelet fills in. In a
// probe's command it only replaces plain text.
func expanded(t *testing.T, r rendered, variable, hostIP, clusterIP string) string {
	t.Helper()
	values := []string{"$(HOST_IP)", hostIP}
	for _, s := range all[*core.Service](r) {
		if s.Spec.ClusterIP != core.ClusterIPNone {
			values = append(values, "$("+strings.ToUpper(strings.ReplaceAll(s.Name, "-", "_"))+"_SERVICE_HOST)", clusterIP)
		}
	}
	return strings.NewReplacer(values...).Replace(variable)
}

// TestNodes runs the real cachalot with the DaemonSet's arguments, as a kubelet would. They
// name the mirror as in the values, and both commands accept them.
func TestNodes(t *testing.T) {
	for values, want := range map[string]string{
		`{nodes: {enabled: true}}`: "http://10.96.0.7:5000",
		`{nodes: {enabled: true}, service: {port: 80}, fullnameOverride: hub-mirror}`:                        "http://10.96.0.7:80",
		`{nodes: {enabled: true}, service: {type: NodePort}}`:                                                "http://10.96.0.7:5000",
		`{nodes: {enabled: true}, service: {type: LoadBalancer, nodePort: 30500}}`:                           "http://192.0.2.1:30500",
		choices()["nodes by a node port"].values:                                                             "http://192.0.2.1:30500",
		choices()["nodes by a name"].values:                                                                  "https://mirror.corp:5000",
		`{nodes: {enabled: true, mirror: "http://mirror.corp"}, service: {type: NodePort, nodePort: 30500}}`: "http://mirror.corp",
	} {
		for _, ip := range [][2]string{{"192.0.2.1", "10.96.0.7"}, {"2001:db8::1", "fd00::7"}} {
			want := want
			if strings.Contains(ip[0], ":") {
				want = strings.NewReplacer("192.0.2.1", "[2001:db8::1]", "10.96.0.7", "[fd00::7]").Replace(want)
			}
			r := render(t, "mirror", values)
			container := nodes(t, r).Spec.Template.Spec.Containers[0]
			probe := container.StartupProbe.Exec.Command
			if probe[0] != "/cachalot" || probe[len(probe)-1] != "--check" || !slices.Equal(probe[1:len(probe)-1], container.Args[:len(probe)-2]) || strings.Contains(strings.Join(probe, " "), "$(") {
				t.Errorf("%s: the probe is %q", values, probe)
			}
			ready := container.ReadinessProbe.HTTPGet
			if listen := fmt.Sprintf("--listen=[$(HOST_IP)]:%d", container.Ports[0].ContainerPort); ready.Path != "/readyz" || ready.Port.StrVal != container.Ports[0].Name || !slices.Contains(container.Args, listen) {
				t.Errorf("%s: the probe asks %v, and there is no %s in %q", values, ready, listen, container.Args)
			}
			root := t.TempDir()
			if err := os.MkdirAll(filepath.Join(root, "etc/containerd/hosts.d"), 0o755); err != nil {
				t.Fatal(err)
			}
			args := slices.Clone(probe[1:])
			for i, a := range args {
				if a == "--root=/host" {
					args[i] = "--root=" + root
				}
			}
			last := container.Env[len(container.Env)-1]
			mirror := expanded(t, r, last.Value, ip[0], ip[1])
			if got := strings.NewReplacer("[192.0.2.1]", "192.0.2.1", "[10.96.0.7]", "10.96.0.7").Replace(mirror); got != want {
				t.Errorf("%s: the mirror is %s, want %s", values, got, want)
			}
			check := newPod(t, r).command(t, args...)
			check.Env = append(check.Env, last.Name+"="+mirror)
			out, err := check.CombinedOutput()
			if err == nil || !strings.Contains(string(out), "there is no socket of containerd at /run/containerd/containerd.sock") {
				t.Errorf("%q: %v\n%s", probe, err, out)
			}
			check = newPod(t, r).command(t, append(args, "--containerd=none")...)
			check.Env = append(check.Env, last.Name+"="+mirror)
			if out, err := check.CombinedOutput(); err == nil || !strings.Contains(string(out), "/etc/containerd/") {
				t.Errorf("%q, without containerd: %v\n%s", probe, err, out)
			}
		}
	}
}

// TestNodesPower: the pods have root's power over files, and no capability. Without verify they
// have one folder.
func TestNodesPower(t *testing.T) {
	evaluator, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range choices() {
		if !strings.HasPrefix(name, "nodes") {
			continue
		}
		set := nodes(t, render(t, "mirror", c.values))
		spec := set.Spec.Template.Spec
		container := spec.Containers[0]
		s := container.SecurityContext
		if *s.AllowPrivilegeEscalation || !*s.ReadOnlyRootFilesystem || *s.RunAsUser != 0 || !slices.Equal(s.Capabilities.Drop, []core.Capability{"ALL"}) || s.Capabilities.Add != nil || s.Privileged != nil {
			t.Errorf("%s: %+v", name, s)
		}
		verifies := slices.Contains(container.Args, "--root=/host")
		if verifies == slices.Contains(container.Args, "--containerd=none") {
			t.Errorf("%s: %q", name, container.Args)
		}
		for _, v := range spec.Volumes {
			if v.HostPath == nil {
				continue
			}
			path, at := "/", "/host"
			if !verifies {
				path, at = "/etc/containerd/certs.d", "/etc/containerd/certs.d"
			}
			if v.HostPath.Path != path || container.VolumeMounts[0].Name != v.Name || container.VolumeMounts[0].MountPath != at {
				t.Errorf("%s: %+v at %+v", name, v.HostPath, container.VolumeMounts[0])
			}
		}
		// The folder, the network and the user remain: see docs/kubernetes.md.
		var wrong []string
		for _, r := range evaluator.EvaluatePod(api.LevelVersion{Level: api.LevelRestricted, Version: api.LatestVersion()}, &set.Spec.Template.ObjectMeta, &spec) {
			if !r.Allowed {
				wrong = append(wrong, r.ForbiddenReason)
			}
		}
		slices.Sort(wrong)
		if got := strings.Join(wrong, ", "); strings.TrimSuffix(got, ", seLinuxOptions") != "host namespaces, restricted volume types, runAsNonRoot != true, runAsUser=0" {
			t.Errorf("%s: %s", name, got)
		}
		tainted := slices.ContainsFunc(container.Args, func(a string) bool { return strings.HasPrefix(a, "--remove-taint=") })
		if token := slices.ContainsFunc(spec.Volumes, func(v core.Volume) bool { return v.Projected != nil }); *spec.AutomountServiceAccountToken || token != tainted {
			t.Errorf("%s: a token for the API server: %v, for a taint: %v", name, token, tainted)
		}
	}
}

// TestNodesAccount: the root pods on the nodes never use the mirror's ServiceAccount, whose
// annotations may give a cloud role, or one with annotations.
func TestNodesAccount(t *testing.T) {
	const role = `annotations: {eks.amazonaws.com/role-arn: "arn:aws:iam::1:role/ecr"}`
	for values, want := range map[string]string{
		`{nodes: {enabled: true}, serviceAccount: {` + role + `}}`:                                            "mirror-cachalot-node",
		`{nodes: {enabled: true}, serviceAccount: {name: ecr, ` + role + `}}`:                                 "mirror-cachalot-node",
		`{nodes: {enabled: true}, serviceAccount: {create: false, name: ecr}}`:                                "default",
		`{nodes: {enabled: true}, serviceAccount: {create: false}}`:                                           "default",
		`{nodes: {enabled: true, serviceAccountName: for-nodes}, serviceAccount: {name: ecr, ` + role + `}}`:  "for-nodes",
		`{nodes: {enabled: true, serviceAccountName: default}, serviceAccount: {create: false}, secrets: {}}`: "", // the mirror uses the same account
		`{nodes: {enabled: true, serviceAccountName: ecr}, serviceAccount: {create: false, name: ecr}}`:       "",
		`{nodes: {enabled: true, serviceAccountName: mirror-cachalot}}`:                                       "",
	} {
		if want == "" {
			if _, err := tryRender(t, loadChart(t), "mirror", values); err == nil || !strings.Contains(err.Error(), "nodes.serviceAccountName is the mirror's") {
				t.Errorf("%s: %v", values, err)
			}
			continue
		}
		r := render(t, "mirror", values)
		spec, mirror := nodes(t, r).Spec.Template.Spec, statefulSet(t, r).Spec.Template.Spec
		if spec.ServiceAccountName != want || spec.AutomountServiceAccountToken == nil || *spec.AutomountServiceAccountToken {
			t.Errorf("%s: the account %q, want %q; its token: %v", values, spec.ServiceAccountName, want, spec.AutomountServiceAccountToken)
		}
		if want != "default" && mirror.ServiceAccountName == want {
			t.Errorf("%s: the account is the mirror's", values)
		}
		made := map[string]*core.ServiceAccount{}
		for _, a := range all[*core.ServiceAccount](r) {
			made[a.Name] = a
		}
		if a := made[want]; (a != nil) != strings.HasSuffix(want, "-node") || a != nil && (len(a.Annotations) > 0 || a.AutomountServiceAccountToken == nil || *a.AutomountServiceAccountToken) {
			t.Errorf("%s: the account that is made is %+v", values, a)
		}
		if a := made[mirror.ServiceAccountName]; strings.Contains(values, role) && (a == nil || len(a.Annotations) != 1) {
			t.Errorf("%s: the mirror's account is %+v", values, a)
		}
	}
	if n := len(all[*core.ServiceAccount](render(t, "mirror", ""))); n != 1 {
		t.Errorf("%d accounts without nodes", n)
	}
}

// TestNodesApart: no Service selects the nodes' pods, and no other controller selects them.
func TestNodesApart(t *testing.T) {
	values := choices()["nodes"].values
	one, two := render(t, "one", values), render(t, "two", values)
	set := nodes(t, one)
	pods := labels.Set(set.Spec.Template.Labels)
	selector, err := meta.LabelSelectorAsSelector(set.Spec.Selector)
	if err != nil || !selector.Matches(pods) {
		t.Errorf("the DaemonSet does not find its pods: %v", err)
	}
	for _, other := range []map[string]string{statefulSet(t, one).Spec.Template.Labels, nodes(t, two).Spec.Template.Labels, all[*core.Pod](one)[0].Labels} {
		if selector.Matches(labels.Set(other)) {
			t.Errorf("the DaemonSet takes %v", other)
		}
	}
	mirror, err := meta.LabelSelectorAsSelector(statefulSet(t, one).Spec.Selector)
	if err != nil || mirror.Matches(pods) {
		t.Errorf("the StatefulSet takes %v: %v", pods, err)
	}
	for _, s := range all[*core.Service](one) {
		if labels.SelectorFromSet(s.Spec.Selector).Matches(pods) {
			t.Errorf("the Service %s leads to the nodes' pods", s.Name)
		}
	}
	owner := func(r rendered) string {
		args := nodes(t, r).Spec.Template.Spec.Containers[0].Args
		return args[slices.IndexFunc(args, func(a string) bool { return strings.HasPrefix(a, "--owner=") })]
	}
	if a, b := owner(one), owner(two); a != "--owner=apps.one-cachalot" || b != "--owner=apps.two-cachalot" {
		t.Errorf("%s and %s would take each other's lines out", a, b)
	}
}

// TestNodesTaint: for a startup taint, the pods may change nodes, and nothing else.
func TestNodesTaint(t *testing.T) {
	r := render(t, "mirror", `{nodes: {enabled: true, startupTaint: cachalot.example/starting}}`)
	roles, bindings := all[*rbac.ClusterRole](r), all[*rbac.ClusterRoleBinding](r)
	if len(roles) != 1 || len(bindings) != 1 {
		t.Fatalf("%d roles, %d bindings", len(roles), len(bindings))
	}
	rule := rbac.PolicyRule{APIGroups: []string{""}, Resources: []string{"nodes"}, Verbs: []string{"get", "patch"}}
	if got := roles[0].Rules; len(got) != 1 || !reflect.DeepEqual(got[0], rule) {
		t.Errorf("%+v", got)
	}
	spec := nodes(t, r).Spec.Template.Spec
	subject := rbac.Subject{Kind: "ServiceAccount", Name: spec.ServiceAccountName, Namespace: namespace}
	if b := bindings[0]; b.RoleRef.Name != roles[0].Name || len(b.Subjects) != 1 || b.Subjects[0] != subject {
		t.Errorf("%+v", b)
	}
	container := spec.Containers[0]
	if !slices.Contains(container.Args, "--remove-taint=cachalot.example/starting") || !slices.ContainsFunc(container.Env, func(e core.EnvVar) bool {
		return e.Name == "NODE_NAME" && e.ValueFrom.FieldRef.FieldPath == "spec.nodeName"
	}) || !slices.ContainsFunc(container.VolumeMounts, func(m core.VolumeMount) bool {
		return m.MountPath == "/var/run/secrets/kubernetes.io/serviceaccount" && m.ReadOnly
	}) {
		t.Errorf("%+v", container)
	}
	other := render(t, "mirror", `{nodes: {enabled: true}}`)
	if roles, bindings := all[*rbac.ClusterRole](other), all[*rbac.ClusterRoleBinding](other); len(roles) > 0 || len(bindings) > 0 {
		t.Errorf("without a taint: %v, %v", roles, bindings)
	}
}

// TestNodesMonitor: whichever kind monitors the mirror, a PodMonitor finds the pods of the nodes,
// and their job is not the mirror's.
func TestNodesMonitor(t *testing.T) {
	for _, kind := range []string{"serviceMonitor", "podMonitor"} {
		r := render(t, "mirror", `{nodes: {enabled: true}, metrics: {`+kind+`: {enabled: true, labels: {release: prometheus}}}}`)
		pods := labels.Set(nodes(t, r).Spec.Template.Labels)
		found := 0
		for _, m := range all[*monitoring.PodMonitor](r) {
			selector, err := meta.LabelSelectorAsSelector(&m.Spec.Selector)
			if err != nil {
				t.Fatal(err)
			}
			if !selector.Matches(pods) {
				continue
			}
			found++
			e := m.Spec.PodMetricsEndpoints[0]
			if *e.Port != nodes(t, r).Spec.Template.Spec.Containers[0].Ports[0].Name || *e.RelabelConfigs[0].Replacement != "mirror-cachalot-node" || m.Labels["release"] != "prometheus" {
				t.Errorf("%s: %+v", kind, m)
			}
		}
		if found != 1 {
			t.Errorf("%s: %d monitors find the pods of the nodes", kind, found)
		}
	}
}

// TestNodesRefused: settings with which nodes could never pull through the mirror are an error.
func TestNodesRefused(t *testing.T) {
	for values, want := range map[string]string{
		`{nodes: {enabled: true}, tls: {secretName: web}}`:                                   "nodes.mirror is needed with tls",
		`{nodes: {enabled: true, caSecret: ca}}`:                                             "nodes.caSecret is for an https:// mirror",
		`{nodes: {enabled: true, caSecret: ca, mirror: "http://a"}, tls: {secretName: web}}`: "nodes.caSecret is for an https:// mirror",
		`{nodes: {enabled: true, mirror: mirror.corp}}`:                                      "/nodes/mirror",
		`{nodes: {enabled: true, configPath: etc}}`:                                          "/nodes/configPath",
		`{nodes: {enabled: true, registries: ["https://docker.io"]}}`:                        "/nodes/registries/0",
		`{nodes: {enable: true}}`:                                                            "'enable'",
		`{nodes: {enabled: true, verify: false}}`:                                            "nodes.configPath is needed without nodes.verify",
		`{nodes: {enabled: true, verify: false, configPath: /a, configureContainerd: true}}`: "nodes.configureContainerd needs nodes.verify",
		`{nodes: {enabled: true, startupTaint: "a b"}}`:                                      "/nodes/startupTaint",
		`{nodes: {enabled: true, port: 0}}`:                                                  "/nodes/port",
	} {
		if _, err := tryRender(t, loadChart(t), "mirror", values); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", values, err, want)
		}
	}
}
