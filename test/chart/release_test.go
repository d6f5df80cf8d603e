package chart

import (
	"errors"
	"io"
	"strings"
	"testing"

	certmanager "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	"helm.sh/helm/v4/pkg/action"
	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/loader"
	chartv2 "helm.sh/helm/v4/pkg/chart/v2"
	release "helm.sh/helm/v4/pkg/release/v1"
	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/kubernetes/scheme"
	gateway "sigs.k8s.io/gateway-api/apis/v1"
	sigsyaml "sigs.k8s.io/yaml"
)

const (
	dir       = "../../charts/cachalot"
	namespace = "apps"
)

// oldest is the Kubernetes version that Chart.yaml requires.
var oldest = common.KubeVersion{Version: "v1.27.0", Major: "1", Minor: "27"} //nolint:gochecknoglobals // a constant

// object is any Kubernetes object.
type object interface {
	runtime.Object
	meta.Object
}

// rendered is what Helm would install.
type rendered struct {
	name    string // of the release
	objects []object
	notes   string
}

func loadChart(t *testing.T) *chartv2.Chart {
	t.Helper()
	c, err := loader.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	return c.(*chartv2.Chart)
}

func parse(t *testing.T, values string) map[string]any {
	t.Helper()
	parsed := map[string]any{}
	if err := sigsyaml.UnmarshalStrict([]byte(values), &parsed); err != nil {
		t.Fatal(err)
	}
	return parsed
}

func tryRender(t *testing.T, c *chartv2.Chart, name, values string) (*release.Release, error) {
	t.Helper()
	return tryRenderIn(t, c, namespace, name, values)
}

// tryRenderIn runs "helm install --dry-run=client" with values in YAML.
func tryRenderIn(t *testing.T, c *chartv2.Chart, namespace, name, values string) (*release.Release, error) {
	t.Helper()
	install := action.NewInstall(&action.Configuration{})
	install.DryRunStrategy = action.DryRunClient
	install.ReleaseName, install.Namespace = name, namespace
	install.KubeVersion = &oldest
	r, err := install.Run(c, parse(t, values))
	if err != nil {
		return nil, err
	}
	return r.(*release.Release), nil
}

func render(t *testing.T, name, values string) rendered {
	t.Helper()
	return renderChart(t, loadChart(t), name, values)
}

func renderChart(t *testing.T, c *chartv2.Chart, name, values string) rendered {
	t.Helper()
	r, err := tryRender(t, c, name, values)
	if err != nil {
		t.Fatal(err)
	}
	all := r.Manifest
	for _, h := range r.Hooks {
		all += "\n---\n" + h.Manifest
	}
	return rendered{name: name, objects: decode(t, all), notes: r.Info.Notes}
}

// decode fails on fields that Kubernetes or an operator does not know.
func decode(t *testing.T, manifests string) []object {
	t.Helper()
	s := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{scheme.AddToScheme, certmanager.AddToScheme, monitoring.AddToScheme, gateway.Install} {
		if err := add(s); err != nil {
			t.Fatal(err)
		}
	}
	strict := serializer.NewCodecFactory(s, serializer.EnableStrict).UniversalDeserializer()
	var objects []object
	documents := yaml.NewDocumentDecoder(io.NopCloser(strings.NewReader(manifests)))
	defer documents.Close()
	buffer := make([]byte, 1<<20)
	for {
		n, err := documents.Read(buffer)
		if errors.Is(err, io.EOF) {
			return objects
		}
		if err != nil {
			t.Fatal(err)
		}
		document := buffer[:n]
		if len(strings.TrimSpace(string(document))) == 0 {
			continue
		}
		o, _, err := strict.Decode(document, nil, nil)
		if err != nil {
			t.Fatalf("%v, in\n%s", err, document)
		}
		objects = append(objects, o.(object))
	}
}

// all returns the objects of a type.
func all[T object](r rendered) []T {
	var found []T
	for _, o := range r.objects {
		if x, ok := o.(T); ok {
			found = append(found, x)
		}
	}
	return found
}

// named returns the only object of a type with this name.
func named[T object](t *testing.T, r rendered, name string) T {
	t.Helper()
	for _, x := range all[T](r) {
		if x.GetName() == name {
			return x
		}
	}
	t.Fatalf("no %T of the name %s", *new(T), name)
	panic("unreachable")
}

// statefulSet returns the only StatefulSet.
func statefulSet(t *testing.T, r rendered) *apps.StatefulSet {
	t.Helper()
	sets := all[*apps.StatefulSet](r)
	if len(sets) != 1 {
		t.Fatalf("%d StatefulSets", len(sets))
	}
	return sets[0]
}

// config returns cachalot's configuration file.
func config(t *testing.T, r rendered) string {
	t.Helper()
	set := statefulSet(t, r)
	return named[*core.ConfigMap](t, r, set.Name).Data["cachalot.yml"]
}
