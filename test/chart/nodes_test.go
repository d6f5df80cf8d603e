package chart

import (
	"slices"
	"strings"
	"testing"

	"helm.sh/helm/v4/pkg/action"
	"helm.sh/helm/v4/pkg/chart/common"
	release "helm.sh/helm/v4/pkg/release/v1"
	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
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
			path := t.TempDir()
			probe := container.ReadinessProbe.Exec.Command
			if probe[0] != "/cachalot" || !slices.Equal(probe[1:], append(slices.Clone(container.Args), "--check")) || strings.Contains(strings.Join(probe, " "), "$(") {
				t.Errorf("%s: the probe is %q", values, probe)
			}
			args := slices.Clone(probe[1:])
			for i, a := range args {
				if strings.HasPrefix(a, "--config-path=") {
					args[i] = "--config-path=" + path
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
			if err == nil || !strings.Contains(string(out), "does not have the mirror") {
				t.Errorf("%q: %v\n%s", probe, err, out)
			}
		}
	}
}

// TestNodesPower: the pods run as root with only the rights to write one folder.
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
		for _, v := range spec.Volumes {
			if v.HostPath != nil && (!strings.HasPrefix(v.HostPath.Path, "/etc/containerd/") || container.VolumeMounts[0].Name != v.Name || container.VolumeMounts[0].MountPath != v.HostPath.Path) {
				t.Errorf("%s: %+v", name, v.HostPath)
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
		if *spec.AutomountServiceAccountToken {
			t.Errorf("%s: a token for the API server", name)
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

// TestNodesPath: K3s and RKE2 have another folder.
func TestNodesPath(t *testing.T) {
	for version, want := range map[string]string{
		"v1.36.3":          "/etc/containerd/certs.d",
		"v1.35.0-eks-1234": "/etc/containerd/certs.d",
		"v1.34.2+k3s1":     "/var/lib/rancher/k3s/agent/etc/containerd/certs.d",
		"v1.34.2+rke2r1":   "/var/lib/rancher/rke2/agent/etc/containerd/certs.d",
	} {
		install := action.NewInstall(&action.Configuration{})
		install.DryRunStrategy, install.ReleaseName, install.Namespace = action.DryRunClient, "mirror", namespace
		kube, err := common.ParseKubeVersion(version)
		if err != nil {
			t.Fatal(err)
		}
		install.KubeVersion = kube
		done, err := install.Run(loadChart(t), parse(t, `{nodes: {enabled: true}}`))
		if err != nil {
			t.Fatal(err)
		}
		set := nodes(t, rendered{objects: decode(t, done.(*release.Release).Manifest)})
		if got := set.Spec.Template.Spec.Volumes[0].HostPath.Path; got != want || !slices.Contains(set.Spec.Template.Spec.Containers[0].Args, "--config-path="+want) {
			t.Errorf("%s: %s, want %s", version, got, want)
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
	} {
		if _, err := tryRender(t, loadChart(t), "mirror", values); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", values, err, want)
		}
	}
}
