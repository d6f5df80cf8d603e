package chart

import (
	"strings"
	"testing"

	apps "k8s.io/api/apps/v1"
	batch "k8s.io/api/batch/v1"
	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"
)

// TestObjects_Valid: the rendered objects have no unknown fields, valid names and labels, a
// Service that selects the pods, and pods that a restricted namespace accepts.
func TestObjects_Valid(t *testing.T) {
	for name, c := range choices() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := render(t, "mirror", c.values)
			checkNames(t, r)
			checkServices(t, r)
			checkSecurity(t, r, c.unrestricted)
			checkOnce(t, r)
			checkMemory(t, r)
			checkImages(t, r)
			checkStorage(t, r)
		})
	}
}

func TestLongNames(t *testing.T) {
	for _, name := range []string{strings.Repeat("a", 53), strings.Repeat("a", 42) + "-cachalot-b", "a"} {
		r := render(t, name, `{secrets: {an-account-whose-name-is-a-long1: {data: {password: secret}}}, metrics: {dashboard: {enabled: true}}}`)
		checkNames(t, r)
	}
}

// checkNames checks names by Kubernetes' rules, and our labels on every object.
func checkNames(t *testing.T, r rendered) {
	t.Helper()
	valid := func(o meta.Object, kind string) {
		if wrong := validation.IsDNS1123Subdomain(o.GetName()); len(wrong) > 0 || o.GetName() == "" {
			t.Errorf("%s %q: %v", kind, o.GetName(), wrong)
		}
		for k, v := range o.GetLabels() {
			if wrong := append(validation.IsQualifiedName(k), validation.IsValidLabelValue(v)...); len(wrong) > 0 {
				t.Errorf("%s %s: label %s=%s: %v", kind, o.GetName(), k, v, wrong)
			}
		}
		for _, k := range []string{"app.kubernetes.io/name", "app.kubernetes.io/instance", "app.kubernetes.io/component", "app.kubernetes.io/version", "app.kubernetes.io/managed-by", "helm.sh/chart"} {
			if o.GetLabels()[k] == "" && (kind != "pod of the set" || k != "helm.sh/chart") {
				t.Errorf("%s %s: no label %s", kind, o.GetName(), k)
			}
		}
	}
	seen := map[string]bool{}
	for _, o := range r.objects {
		kind := o.GetObjectKind().GroupVersionKind().Kind
		valid(o, kind)
		want := statefulSet(t, r).Namespace
		if strings.HasPrefix(kind, "Cluster") {
			want = "" // such as a ClusterRole
		}
		if o.GetNamespace() != want {
			t.Errorf("%s %s is in the namespace %q, want %q", kind, o.GetName(), o.GetNamespace(), want)
		}
		if seen[kind+o.GetName()] {
			t.Errorf("two of %s %s", kind, o.GetName())
		}
		seen[kind+o.GetName()] = true
	}
	for _, s := range all[*core.Service](r) {
		if wrong := validation.IsDNS1035Label(s.Name); len(wrong) > 0 {
			t.Errorf("Service %s: %v", s.Name, wrong)
		}
	}
	set := statefulSet(t, r)
	pod := set.Spec.Template.DeepCopy()
	pod.Name, pod.Labels["controller-revision-hash"] = set.Name+"-0", set.Name+"-0123456789"
	valid(pod, "pod of the set")
	if wrong := validation.IsDNS1123Label(pod.Name); len(wrong) > 0 {
		t.Errorf("Pod %s: %v", pod.Name, wrong)
	}
	for _, v := range pod.Spec.Volumes {
		if wrong := validation.IsDNS1123Label(v.Name); len(wrong) > 0 {
			t.Errorf("volume %s: %v", v.Name, wrong)
		}
	}
}

// checkImages checks that images come only from the values or from the chart's own key.
func checkImages(t *testing.T, r rendered) {
	t.Helper()
	spec := statefulSet(t, r).Spec.Template.Spec
	own := spec.Containers[0].Image
	specs := []core.PodSpec{{Containers: spec.Containers[:1]}} // the other containers come from the values
	for _, p := range all[*core.Pod](r) {
		specs = append(specs, p.Spec)
	}
	for _, d := range all[*apps.DaemonSet](r) {
		specs = append(specs, d.Spec.Template.Spec)
	}
	for _, j := range all[*batch.Job](r) {
		specs = append(specs, j.Spec.Template.Spec)
	}
	for _, s := range specs {
		for _, c := range append(s.InitContainers, s.Containers...) {
			if c.Image != own {
				t.Errorf("%s has the image %s, and cachalot %s", c.Name, c.Image, own)
			}
		}
	}
}

// checkOnce checks that no list has two items with one key, which server-side apply rejects.
func checkOnce(t *testing.T, r rendered) {
	t.Helper()
	seen := map[string]bool{}
	once := func(kind, key string) {
		if seen[kind+key] {
			t.Errorf("two of %s %s", kind, key)
		}
		seen[kind+key] = true
	}
	spec := statefulSet(t, r).Spec.Template.Spec
	for _, v := range spec.Volumes {
		once("volume", v.Name)
	}
	for _, c := range append(spec.InitContainers, spec.Containers...) {
		once("container", c.Name)
		for _, e := range c.Env {
			once(c.Name+" env", e.Name)
		}
		for _, m := range c.VolumeMounts {
			once(c.Name+" mount", m.MountPath)
		}
		for _, p := range c.Ports {
			once(c.Name+" port", p.Name)
		}
	}
}

// checkServices checks that each Service selects ports of the mirror's pods, and no other pod.
func checkServices(t *testing.T, r rendered) {
	t.Helper()
	set := statefulSet(t, r)
	ports := map[string]bool{}
	for _, p := range set.Spec.Template.Spec.Containers[0].Ports {
		ports[p.Name] = true
	}
	for _, s := range all[*core.Service](r) {
		selector := labels.SelectorFromSet(s.Spec.Selector)
		if !selector.Matches(labels.Set(set.Spec.Template.Labels)) {
			t.Errorf("Service %s does not find the pods: %v", s.Name, s.Spec.Selector)
		}
		for _, p := range all[*core.Pod](r) {
			if selector.Matches(labels.Set(p.Labels)) {
				t.Errorf("Service %s leads to the pod %s too", s.Name, p.Name)
			}
		}
		for _, j := range all[*batch.Job](r) {
			if selector.Matches(labels.Set(j.Spec.Template.Labels)) {
				t.Errorf("Service %s leads to the pod of %s too", s.Name, j.Name)
			}
		}
		for _, p := range s.Spec.Ports {
			if p.TargetPort.Type != intstr.String || !ports[p.TargetPort.StrVal] {
				t.Errorf("Service %s: no port %s in the pods", s.Name, p.TargetPort.String())
			}
			if p.Name == "admin" && s.Spec.ClusterIP != core.ClusterIPNone {
				t.Errorf("Service %s shows the admin listener to clients", s.Name)
			}
		}
	}
	selector, err := meta.LabelSelectorAsSelector(set.Spec.Selector)
	if err != nil || !selector.Matches(labels.Set(set.Spec.Template.Labels)) {
		t.Errorf("the StatefulSet does not find its pods: %v %v", set.Spec.Selector, err)
	}
	named[*core.Service](t, r, set.Spec.ServiceName)
}

// checkSecurity runs the checks of a namespace that enforces "restricted".
func checkSecurity(t *testing.T, r rendered, unrestricted string) {
	t.Helper()
	evaluator, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
	if err != nil {
		t.Fatal(err)
	}
	restricted := api.LevelVersion{Level: api.LevelRestricted, Version: api.LatestVersion()}
	check := func(what string, m *meta.ObjectMeta, s *core.PodSpec, allowed bool) {
		result := policy.AggregateCheckResults(evaluator.EvaluatePod(restricted, m, s))
		if result.Allowed != allowed {
			t.Errorf("%s in a restricted namespace: %s", what, result.ForbiddenDetail())
		}
		for _, c := range s.Containers {
			if strings.HasSuffix(c.Image, ":latest") || !strings.ContainsAny(c.Image, ":@") {
				t.Errorf("%s: image %s", what, c.Image)
			}
		}
		if s.AutomountServiceAccountToken == nil || *s.AutomountServiceAccountToken {
			t.Errorf("%s gets a token for the API server", what)
		}
	}
	for _, s := range all[*apps.StatefulSet](r) {
		check("the mirror", &s.Spec.Template.ObjectMeta, &s.Spec.Template.Spec, unrestricted == "")
		if root := s.Spec.Template.Spec.Containers[0].SecurityContext.ReadOnlyRootFilesystem; root == nil || !*root {
			t.Error("the root file system can be written to")
		}
	}
	for _, p := range all[*core.Pod](r) {
		check("the test", &p.ObjectMeta, &p.Spec, true)
	}
	for _, j := range all[*batch.Job](r) {
		check("the check of the configuration", &j.Spec.Template.ObjectMeta, &j.Spec.Template.Spec, true)
	}
}
