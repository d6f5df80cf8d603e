package chart

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"

	"helm.sh/helm/v4/pkg/action"
	"helm.sh/helm/v4/pkg/chart/common"
	kubefake "helm.sh/helm/v4/pkg/kube/fake"
	release "helm.sh/helm/v4/pkg/release/v1"
	"helm.sh/helm/v4/pkg/storage"
	"helm.sh/helm/v4/pkg/storage/driver"
	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/rest"
)

// argoAPIs are what Argo CD passes: each version that the cluster has, and each kind of it.
var argoAPIs = []string{ //nolint:gochecknoglobals // a constant
	"v1", "v1/ConfigMap", "v1/Service", "apps/v1", "apps/v1/StatefulSet", "batch/v1", "batch/v1/Job", "networking.k8s.io/v1", "networking.k8s.io/v1/NetworkPolicy",
	"policy/v1", "policy/v1/PodDisruptionBudget", "monitoring.coreos.com/v1", "monitoring.coreos.com/v1/ServiceMonitor",
}

// argo is what Argo CD does: "helm template --kube-version 1.31 --api-versions …". It
// leaves out the patch version, and with it what a distribution adds.
func argo(t *testing.T, values string) *release.Release {
	t.Helper()
	version, err := common.ParseKubeVersion("1.31")
	if err != nil {
		t.Fatal(err)
	}
	template := action.NewInstall(&action.Configuration{})
	template.DryRunStrategy, template.ReleaseName, template.Namespace = action.DryRunClient, "mirror", namespace
	template.KubeVersion, template.APIVersions, template.IncludeCRDs = version, argoAPIs, true
	r, err := template.Run(loadChart(t), parse(t, values))
	if err != nil {
		t.Fatal(err)
	}
	return r.(*release.Release)
}

// cluster is a live one, as far as Helm asks it while it renders.
type cluster struct {
	url   string
	asked atomic.Int64 // for a StatefulSet
}

// newCluster has a StatefulSet, or none.
func newCluster(t *testing.T, set *apps.StatefulSet) *cluster {
	t.Helper()
	c := &cluster{}
	answer := func(w http.ResponseWriter, code int, o any) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
		if err := json.NewEncoder(w).Encode(o); err != nil {
			t.Error(err)
		}
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /apis/apps/v1", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, meta.APIResourceList{TypeMeta: meta.TypeMeta{Kind: "APIResourceList", APIVersion: "v1"}, GroupVersion: "apps/v1", APIResources: []meta.APIResource{{Name: "statefulsets", SingularName: "statefulset", Kind: "StatefulSet", Namespaced: true, Verbs: meta.Verbs{"get"}}}})
	})
	mux.HandleFunc("GET /apis/apps/v1/namespaces/"+namespace+"/statefulsets/{name}", func(w http.ResponseWriter, r *http.Request) {
		c.asked.Add(1)
		if set == nil || r.PathValue("name") != set.Name {
			answer(w, http.StatusNotFound, meta.Status{TypeMeta: meta.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: meta.StatusFailure, Reason: meta.StatusReasonNotFound, Code: http.StatusNotFound})
			return
		}
		answer(w, http.StatusOK, set)
	})
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	c.url = server.URL
	return c
}

// ToRESTConfig is all of action.RESTClientGetter that Helm needs to render.
func (c *cluster) ToRESTConfig() (*rest.Config, error) { return &rest.Config{Host: c.url}, nil }

func (*cluster) ToDiscoveryClient() (discovery.CachedDiscoveryInterface, error) {
	return nil, errors.New("not here")
}

func (*cluster) ToRESTMapper() (apimeta.RESTMapper, error) { return nil, errors.New("not here") }

// install is "helm install --dry-run=server": the cluster's own version and APIs, and
// its answers to "lookup".
func (c *cluster) install(t *testing.T, values string) (*release.Release, error) {
	t.Helper()
	version, err := common.ParseKubeVersion("v1.31.9-eks-1a2b3c4")
	if err != nil {
		t.Fatal(err)
	}
	cfg := &action.Configuration{
		RESTClientGetter: c,
		Releases:         storage.Init(driver.NewMemory()),
		KubeClient:       &kubefake.PrintingKubeClient{Out: io.Discard},
		Capabilities:     &common.Capabilities{KubeVersion: *version, APIVersions: common.VersionSet{"v1", "apps/v1"}, HelmVersion: common.DefaultCapabilities.HelmVersion},
	}
	install := action.NewInstall(cfg)
	install.DryRunStrategy, install.ReleaseName, install.Namespace = action.DryRunServer, "mirror", namespace
	r, err := install.Run(loadChart(t), parse(t, values))
	if err != nil {
		return nil, err
	}
	return r.(*release.Release), nil
}

// TestTemplate: what Argo CD renders is what Helm installs, in a cluster without the
// release and in one with it, and passes the same checks.
func TestTemplate(t *testing.T) {
	for name, c := range choices() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rendered := asRendered(t, argo(t, c.values))
			set := statefulSet(t, rendered)
			for _, live := range []*cluster{newCluster(t, nil), newCluster(t, set)} {
				installed, err := live.install(t, c.values)
				if err != nil {
					t.Fatal(err)
				}
				if got, want := text(installed), text(argo(t, c.values)); got != want {
					t.Errorf("helm install has\n%s\nand helm template\n%s", got, want)
				}
				if asked := live.asked.Load() > 0; asked != (len(set.Spec.VolumeClaimTemplates) > 0 && set.Namespace == namespace) {
					t.Errorf("it has asked the cluster: %v", asked)
				}
			}
			for _, claim := range set.Spec.VolumeClaimTemplates { // as Kubernetes shows it, which Argo CD compares
				if claim.APIVersion != "v1" || claim.Kind != "PersistentVolumeClaim" {
					t.Errorf("the claim is a %q of %q", claim.Kind, claim.APIVersion)
				}
			}
			checkNames(t, rendered)
			checkServices(t, rendered)
			checkSecurity(t, rendered, c.unrestricted)
			checkOnce(t, rendered)
			checkStorage(t, rendered)
		})
	}
}

// text is all that a release gives to Kubernetes.
func text(r *release.Release) string {
	all := r.Manifest
	for _, h := range r.Hooks {
		all += fmt.Sprintf("\n---\n# %v %v %v\n%s", h.Events, h.Weight, h.DeletePolicies, h.Manifest)
	}
	return all
}

func asRendered(t *testing.T, r *release.Release) rendered {
	t.Helper()
	return rendered{name: r.Name, objects: decode(t, text(r)), notes: r.Info.Notes}
}

// TestClaimSize: the only thing that is asked of a live cluster is whether the upgrade
// can succeed. Another size says what to do.
func TestClaimSize(t *testing.T) {
	live := newCluster(t, statefulSet(t, asRendered(t, argo(t, `{persistence: {size: 40Gi}}`))))
	if _, err := live.install(t, `{persistence: {size: 40960Mi}}`); err != nil {
		t.Error(err)
	}
	_, err := live.install(t, `{persistence: {size: 80Gi}}`)
	if err == nil || !strings.Contains(err.Error(), "persistence.size is 40Gi, and Kubernetes changes no claim of a StatefulSet") {
		t.Errorf("another size: %v", err)
	}
}

// TestNamespaceOverride: nothing is left in the release's own namespace, or names it.
func TestNamespaceOverride(t *testing.T) {
	for values, want := range map[string]string{`{}`: namespace, choices()["another namespace"].values: "mirrors"} {
		release := argo(t, values)
		for _, o := range asRendered(t, release).objects {
			if o.GetNamespace() != want {
				t.Errorf("%s: %s is in %s", values, o.GetName(), o.GetNamespace())
			}
		}
		if found := regexp.MustCompile(`.*\bapps\b([^/].*|$)`).FindString(text(release)); want != namespace && found != "" {
			t.Errorf("%s: %s", values, found)
		}
	}
}

// TestCommonAnnotations: all objects have them, and pods and claims, which they would
// replace, do not. An object's own go first.
func TestCommonAnnotations(t *testing.T) {
	r := render(t, "mirror", choices()["annotations of all"].values)
	for _, o := range r.objects {
		want := "ci"
		if s, ok := o.(*core.Service); ok && s.Spec.ClusterIP != core.ClusterIPNone {
			want = "network"
		}
		if o.GetAnnotations()["owner"] != want || o.GetAnnotations()["docs.example/page"] != "mirror" {
			t.Errorf("%T %s: %v", o, o.GetName(), o.GetAnnotations())
		}
	}
	set := statefulSet(t, r)
	for what, annotations := range map[string]map[string]string{"pods": set.Spec.Template.Annotations, "nodes": nodes(t, r).Spec.Template.Annotations, "claims": set.Spec.VolumeClaimTemplates[0].Annotations} {
		if annotations["owner"] != "" {
			t.Errorf("%s: %v", what, annotations)
		}
	}
}

// TestExtraObjects: maps and texts are both templates.
func TestExtraObjects(t *testing.T) {
	r := render(t, "mirror", choices()["more objects"].values)
	m := named[*core.ConfigMap](t, r, "mirror-cachalot-more")
	if m.Data["replicas"] != "1" || m.Annotations["owner"] != "ci" {
		t.Errorf("%+v", m)
	}
	if s := named[*core.Secret](t, r, "mirror-cachalot-extra"); s.StringData["password"] != "1" || s.Namespace != namespace {
		t.Errorf("%+v", s)
	}
}
