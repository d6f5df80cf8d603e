package chart

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"helm.sh/helm/v4/pkg/chart/loader"
	chartv2 "helm.sh/helm/v4/pkg/chart/v2"
	"k8s.io/apimachinery/pkg/api/equality"
	sigsyaml "sigs.k8s.io/yaml"
)

const larger = `
apiVersion: v2
name: platform
version: 1.2.3
dependencies:
- {name: cachalot, version: ">=0.0.0", repository: "file://../cachalot", condition: cachalot.enabled, tags: [mirrors]}
`

// umbrella is a larger chart, with cachalot's where "helm dependency update" puts it.
func umbrella(t *testing.T, chart string) *chartv2.Chart {
	t.Helper()
	folder := t.TempDir()
	if err := os.WriteFile(filepath.Join(folder, "Chart.yaml"), []byte(chart), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(filepath.Join(folder, "charts/cachalot"), os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	c, err := loader.Load(folder)
	if err != nil {
		t.Fatal(err)
	}
	return c.(*chartv2.Chart)
}

// TestUmbrella: within a larger chart the objects are those of the chart alone.
func TestUmbrella(t *testing.T) {
	for name, c := range choices() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			own := parse(t, c.values)
			values := map[string]any{"cachalot": own, "global": map[string]any{"domain": "corp.example", "levels": []any{1, "two"}}, "platform": true}
			if global := own["global"]; global != nil {
				values["global"] = global
				delete(own, "global")
			}
			text, err := sigsyaml.Marshal(values)
			if err != nil {
				t.Fatal(err)
			}
			alone, within := render(t, "mirror", c.values), renderChart(t, umbrella(t, larger), "mirror", string(text))
			if len(alone.objects) != len(within.objects) {
				t.Fatalf("%d objects, and %d alone", len(within.objects), len(alone.objects))
			}
			for i := range alone.objects {
				if !equality.Semantic.DeepEqual(alone.objects[i], within.objects[i]) {
					t.Errorf("%v\nalone %v", within.objects[i], alone.objects[i])
				}
			}
		})
	}
}

// TestUmbrellaCondition: a larger chart leaves the mirror out by its condition, or by a tag.
func TestUmbrellaCondition(t *testing.T) {
	for values, want := range map[string]bool{
		`{}`:                           true,
		`{cachalot: {enabled: true}}`:  true,
		`{cachalot: {enabled: false}}`: false,
		`{cachalot: {enabled: null}}`:  true,
		`{tags: {mirrors: false}}`:     false,
		`{tags: {mirrors: false}, cachalot: {enabled: true}}`: true,
	} {
		r := renderChart(t, umbrella(t, larger), "platform", values)
		if got := len(r.objects) > 0; got != want {
			t.Errorf("%s: %d objects", values, len(r.objects))
		}
		if want && statefulSet(t, r).Name != "platform-cachalot" {
			t.Errorf("%s: it is %s", values, statefulSet(t, r).Name)
		}
	}
	// Twice, and under names of their own.
	two := umbrella(t, strings.TrimSpace(larger)+`
- {name: cachalot, version: ">=0.0.0", repository: "file://../cachalot", alias: hub, condition: hub.enabled}
`)
	r := renderChart(t, two, "platform", `{hub: {enabled: true, replicas: 2}, cachalot: {enabled: false}}`)
	if set := statefulSet(t, r); set.Name != "platform-hub" || *set.Spec.Replicas != 2 {
		t.Errorf("%s with %d replicas", set.Name, *set.Spec.Replicas)
	}
	checkNames(t, r)
	checkServices(t, r)
}

// TestUmbrellaMistake: a mistake is one in a larger chart too.
func TestUmbrellaMistake(t *testing.T) {
	for values, want := range map[string]string{
		`{cachalot: {replica: 2}}`:                  "'replica'",
		`{cachalot: {persistence: {size: 1Mi}}}`:    "set it to 1Gi or more",
		`{global: {imagePullSecrets: [{a: b}]}}`:    "/global/imagePullSecrets/0",
		`{cachalot: {config: {tags: {fresh: 1m}}}}`: "'fresh'",
	} {
		if _, err := tryRender(t, umbrella(t, larger), "platform", values); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", values, err, want)
		}
	}
}

// TestGlobal: a larger chart's registry and secrets are those of all our pods.
func TestGlobal(t *testing.T) {
	for values, want := range map[string]string{
		`{}`: "ghcr.io/cachalot-registry/cachalot:",
		`{global: {imageRegistry: registry.example}}`:                                                                            "registry.example/cachalot-registry/cachalot:",
		`{global: {imageRegistry: "registry.example:5000/hub/"}}`:                                                                "registry.example:5000/hub/cachalot-registry/cachalot:",
		`{image: {registry: registry.example}}`:                                                                                  "registry.example/cachalot-registry/cachalot:",
		`{image: {registry: registry.example}, global: {imageRegistry: other.example}}`:                                          "other.example/cachalot-registry/cachalot:",
		`{image: {registry: registry.example, repository: library/cachalot, tag: "7"}}`:                                          "registry.example/library/cachalot:7",
		`{image: {registry: registry.example, repository: "localhost/cachalot"}}`:                                                "registry.example/cachalot:",
		`{image: {registry: registry.example, repository: "corp:5000/a/b"}}`:                                                     "registry.example/a/b:",
		`{image: {repository: registry.corp/mirror, digest: "sha256:` + zeros + `"}, global: {imageRegistry: registry.example}}`: "registry.example/mirror@sha256:" + zeros,
	} {
		if got := statefulSet(t, render(t, "mirror", values)).Spec.Template.Spec.Containers[0].Image; !strings.HasPrefix(got, want) {
			t.Errorf("%s: %s, want %s", values, got, want)
		}
	}
	r := render(t, "mirror", choices()["registry of a larger chart"].values)
	for what, secrets := range map[string]int{
		"the mirror": len(statefulSet(t, r).Spec.Template.Spec.ImagePullSecrets),
		"nodes":      len(nodes(t, r).Spec.Template.Spec.ImagePullSecrets),
		"the Job":    len(configJob(t, r).Spec.Template.Spec.ImagePullSecrets),
	} {
		if secrets != 3 {
			t.Errorf("%s has %d secrets, want corp, hub and own", what, secrets)
		}
	}
}

const zeros = "0000000000000000000000000000000000000000000000000000000000000000"
