package chart

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	certmanager "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	network "k8s.io/api/networking/v1"
	policy "k8s.io/api/policy/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	gateway "sigs.k8s.io/gateway-api/apis/v1"
)

// TestNotes: the notes have the address that clients use.
func TestNotes(t *testing.T) {
	for values, want := range map[string]string{
		`{}`: `["--registry-mirror", "http://mirror-cachalot.apps.svc:5000"]`,
		`{tls: {secretName: web}, service: {port: 443}}`:                                     `--mirror https://mirror-cachalot.apps.svc:443` + "\n",
		`{service: {type: NodePort}}`:                                                        `jsonpath='{.spec.ports[0].nodePort}'`,
		`{service: {type: LoadBalancer}}`:                                                    `jsonpath='{.status.loadBalancer.ingress[0].ip}`,
		`{service: {type: LoadBalancer, loadBalancerIP: 192.0.2.7}}`:                         `["--registry-mirror", "http://192.0.2.7:5000"]`,
		`{service: {type: LoadBalancer, loadBalancerIP: "fd00::5"}}`:                         `["--registry-mirror", "http://[fd00::5]:5000"]`,
		`{ingress: {enabled: true, hosts: [mirror.example]}}`:                                `["--registry-mirror", "http://mirror.example"]`,
		`{ingress: {enabled: true, hosts: [mirror.example], tls: [{secretName: web}]}}`:      `["--registry-mirror", "https://mirror.example"]`,
		`{httpRoute: {enabled: true, parentRefs: [{name: a}], hostnames: [mirror.example]}}`: `["--registry-mirror", "https://mirror.example"]`,
		`{persistence: {type: emptyDir}}`:                                                    "The cache goes with the pod",
		`{networkPolicy: {enabled: false}}`:                                                  "open to all of the cluster",
		`{namespaceOverride: mirrors}`:                                                       `["--registry-mirror", "http://mirror-cachalot.mirrors.svc:5000"]`,
		`{fullnameOverride: hub}`:                                                            "statefulset/hub -c cachalot -- /cachalot client containerd --config /etc/cachalot/cachalot.yml",
	} {
		if notes := render(t, "mirror", values).notes; !strings.Contains(notes, want) {
			t.Errorf("%s: no %s in\n%s", values, want, notes)
		}
	}
	if notes := render(t, "mirror", "").notes; strings.Contains(notes, "open to all of the cluster") {
		t.Errorf("with a NetworkPolicy:\n%s", notes)
	}
}

// TestNotesCommand runs the command in the notes with the pod's configuration.
func TestNotesCommand(t *testing.T) {
	r := render(t, "mirror", `{config: {upstreams: {docker.io: {}, registry.corp: {url: "https://registry.corp"}}}}`)
	p := newPod(t, r)
	for line := range strings.Lines(r.notes) {
		_, command, ok := strings.Cut(strings.TrimSpace(line), " -- /cachalot ")
		if !ok {
			continue
		}
		out, err := p.command(t, strings.Fields(command)...).CombinedOutput()
		if err != nil || !strings.Contains(string(out), "http://mirror-cachalot.apps.svc:5000") {
			t.Errorf("%s: %v\n%s", command, err, out)
		}
		return
	}
	t.Errorf("no command in\n%s", r.notes)
}

// TestMonitoring: each monitor finds the pods' admin port, under the names of the
// StatefulSet and the pod, and the dashboard is the file that test/monitoring tests.
func TestMonitoring(t *testing.T) {
	const more = "metricRelabelings: [{action: drop, regex: go_.*, sourceLabels: [__name__]}], relabelings: [{targetLabel: a, replacement: b}]"
	for _, override := range []string{"", "hub"} {
		r := render(t, "mirror", fmt.Sprintf(`{fullnameOverride: %q, metrics: {dashboard: {enabled: true}, serviceMonitor: {enabled: true, %s}}}`, override, more))
		name := statefulSet(t, r).Name
		m := all[*monitoring.ServiceMonitor](r)[0]
		selector, err := meta.LabelSelectorAsSelector(&m.Spec.Selector)
		if err != nil {
			t.Fatal(err)
		}
		var found []string
		for _, s := range all[*core.Service](r) {
			if selector.Matches(labels.Set(s.Labels)) {
				found = append(found, s.Name)
				if s.Spec.Ports[0].Name != m.Spec.Endpoints[0].Port {
					t.Errorf("no port %s", m.Spec.Endpoints[0].Port)
				}
			}
		}
		if len(found) != 1 {
			t.Errorf("the ServiceMonitor finds %v", found)
		}
		checkTarget(t, m.Spec.Endpoints[0].RelabelConfigs, name)

		r2 := render(t, "mirror", fmt.Sprintf(`{fullnameOverride: %q, metrics: {podMonitor: {enabled: true, %s}}}`, override, more))
		p := all[*monitoring.PodMonitor](r2)[0]
		selector, err = meta.LabelSelectorAsSelector(&p.Spec.Selector)
		if err != nil || !selector.Matches(labels.Set(statefulSet(t, r2).Spec.Template.Labels)) || *p.Spec.PodMetricsEndpoints[0].Port != "admin" {
			t.Errorf("the PodMonitor does not find the pods: %v", err)
		}
		for _, test := range all[*core.Pod](r2) {
			if selector.Matches(labels.Set(test.Labels)) {
				t.Error("the PodMonitor finds the test's pod")
			}
		}
		checkTarget(t, p.Spec.PodMetricsEndpoints[0].RelabelConfigs, name)

		file, err := os.ReadFile(filepath.Join(dir, "files/dashboard.json"))
		if err != nil {
			t.Fatal(err)
		}
		if got := named[*core.ConfigMap](t, r, name+"-dashboard").Data[name+".json"]; strings.TrimSpace(got) != strings.TrimSpace(string(file)) {
			t.Error("the dashboard is not that of the file")
		}
	}
}

// checkTarget wants the names of the StatefulSet and the pod, before what values add.
func checkTarget(t *testing.T, relabelings []monitoring.RelabelConfig, name string) {
	t.Helper()
	if len(relabelings) != 3 {
		t.Fatalf("relabelings %+v", relabelings)
	}
	job, instance := relabelings[0], relabelings[1]
	if job.TargetLabel != "job" || *job.Replacement != name {
		t.Errorf("relabeling %+v, want the job %s", job, name)
	}
	if instance.TargetLabel != "instance" || !slices.Equal(instance.SourceLabels, []monitoring.LabelName{"__meta_kubernetes_pod_name"}) || instance.Replacement != nil {
		t.Errorf("relabeling %+v, want the pod as the instance", instance)
	}
}

// TestRoutes: an Ingress and an HTTPRoute lead to the Service's port.
func TestRoutes(t *testing.T) {
	for _, tls := range []string{"", "web"} {
		r := render(t, "mirror", fmt.Sprintf(`{tls: {secretName: %q}, service: {port: 8443}, ingress: {enabled: true, hosts: [a.example, b.example]}, httpRoute: {enabled: true, parentRefs: [{name: a}]}}`, tls))
		s := named[*core.Service](t, r, statefulSet(t, r).Name)
		rules := all[*network.Ingress](r)[0].Spec.Rules
		if len(rules) != 2 {
			t.Errorf("%d rules", len(rules))
		}
		for _, rule := range rules {
			b := rule.HTTP.Paths[0].Backend.Service
			if b.Name != s.Name || b.Port.Name != s.Spec.Ports[0].Name {
				t.Errorf("the Ingress leads to %+v", b)
			}
		}
		b := all[*gateway.HTTPRoute](r)[0].Spec.Rules[0].BackendRefs[0]
		if string(b.Name) != s.Name || *b.Port != s.Spec.Ports[0].Port {
			t.Errorf("the HTTPRoute leads to %+v", b)
		}
	}
}

// TestCertificate: the certificate has the clients' names, and the pods mount its Secret.
func TestCertificate(t *testing.T) {
	r := render(t, "mirror", choices()["cert-manager"].values)
	c := all[*certmanager.Certificate](r)[0]
	for _, name := range []string{"mirror-cachalot", "mirror-cachalot.apps.svc", "mirror.example", "mirror.corp"} {
		if !slices.Contains(c.Spec.DNSNames, name) {
			t.Errorf("no %s in %v", name, c.Spec.DNSNames)
		}
	}
	for what, spec := range map[string]core.PodSpec{"the mirror": statefulSet(t, r).Spec.Template.Spec, "helm test": all[*core.Pod](r)[0].Spec} {
		if !slices.ContainsFunc(spec.Volumes, func(v core.Volume) bool { return v.Secret != nil && v.Secret.SecretName == c.Spec.SecretName }) {
			t.Errorf("%s does not mount %s", what, c.Spec.SecretName)
		}
	}
}

// TestPassedOn: what is Kubernetes' own to set arrives where it belongs.
func TestPassedOn(t *testing.T) {
	r := render(t, "mirror", `
replicaCount: 4
lifecycle: {preStop: {sleep: {seconds: 5}}}
updateStrategy: {type: OnDelete}
minReadySeconds: 30
service: {internalTrafficPolicy: Local, trafficDistribution: PreferSameZone}
podDisruptionBudget: {enabled: true, minAvailable: 50%}`)
	set := statefulSet(t, r).Spec
	if *set.Replicas != 4 || set.Template.Spec.Containers[0].Lifecycle.PreStop.Sleep.Seconds != 5 || set.UpdateStrategy.Type != apps.OnDeleteStatefulSetStrategyType || set.MinReadySeconds != 30 {
		t.Errorf("%+v", set)
	}
	for _, s := range all[*core.Service](r) {
		if own := s.Spec.ClusterIP != core.ClusterIPNone; own != (s.Spec.InternalTrafficPolicy != nil && *s.Spec.InternalTrafficPolicy == core.ServiceInternalTrafficPolicyLocal) || own != (s.Spec.TrafficDistribution != nil) {
			t.Errorf("%s: %+v", s.Name, s.Spec)
		}
	}
	for values, want := range map[string]string{
		`{podDisruptionBudget: {enabled: true}}`:                                          "min nil, max 1",
		`{podDisruptionBudget: {enabled: true, minAvailable: 50%}}`:                       "min 50%, max nil",
		`{podDisruptionBudget: {enabled: true, minAvailable: 0}}`:                         "min 0, max nil",
		`{podDisruptionBudget: {enabled: true, maxUnavailable: 0}}`:                       "min nil, max 0",
		`{podDisruptionBudget: {enabled: true, minAvailable: null, maxUnavailable: 34%}}`: "min nil, max 34%",
		`{podDisruptionBudget: {enabled: true, minAvailable: 2, maxUnavailable: null}}`:   "min 2, max nil",
	} {
		text := func(n *intstr.IntOrString) string {
			if n == nil {
				return "nil"
			}
			return n.String()
		}
		budget := all[*policy.PodDisruptionBudget](render(t, "mirror", values))[0].Spec
		if got := "min " + text(budget.MinAvailable) + ", max " + text(budget.MaxUnavailable); got != want {
			t.Errorf("%s: %s, want %s", values, got, want)
		}
	}
}
