package chart

import (
	"os"
	"regexp"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	sigsyaml "sigs.k8s.io/yaml"
)

// TestDocs runs each example of the page through the chart and cachalot.
func TestDocs(t *testing.T) {
	page, err := os.ReadFile("../../docs/kubernetes.md")
	if err != nil {
		t.Fatal(err)
	}
	examples := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllStringSubmatch(string(page), -1)
	if len(examples) < 5 {
		t.Fatalf("%d examples", len(examples))
	}
	for _, found := range examples {
		t.Run("", func(t *testing.T) {
			t.Parallel()
			r := documented(t, found[1], examples)
			checkNames(t, r)
			checkServices(t, r)
			unrestricted := ""
			if regexp.MustCompile(`type: hostPath`).MatchString(found[1]) {
				unrestricted = "hostPath"
			}
			checkSecurity(t, r, unrestricted)
			checkMemory(t, r)
			checkStorage(t, r)
			p := newPod(t, r)
			if out, err := p.command(t, "config", "check", p.container.Args[2]).CombinedOutput(); err != nil {
				t.Errorf("%v\n%s\n%s", err, out, found[1])
			}
		})
	}
}

// documented renders an example: values, what has them in a field of its own, or a
// larger chart, whose values are another example.
func documented(t *testing.T, example string, examples [][]string) rendered {
	t.Helper()
	parsed := parse(t, example)
	within := map[any][]string{"Application": {"spec", "source", "helm", "valuesObject"}, "HelmRelease": {"spec", "values"}}[parsed["kind"]]
	switch {
	case within != nil:
		values, found, err := unstructured.NestedMap(parsed, within...)
		if !found || err != nil {
			t.Fatalf("no %v: %v", within, err)
		}
		text, err := sigsyaml.Marshal(values)
		if err != nil {
			t.Fatal(err)
		}
		return render(t, "mirror", string(text))
	case parsed["dependencies"] != nil:
		for _, other := range examples {
			if parse(t, other[1])["cachalot"] != nil {
				return renderChart(t, umbrella(t, example), "mirror", other[1])
			}
		}
		t.Fatal("no example has values for the larger chart")
	case parsed["cachalot"] != nil:
		return renderChart(t, umbrella(t, larger), "mirror", example)
	}
	return render(t, "mirror", example)
}
