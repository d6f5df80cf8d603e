package chart

import (
	"os"
	"regexp"
	"testing"
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
			r := render(t, "mirror", found[1])
			checkNames(t, r)
			checkServices(t, r)
			checkSecurity(t, r, "")
			checkMemory(t, r)
			p := newPod(t, r)
			if out, err := p.command(t, "config", "check", p.container.Args[2]).CombinedOutput(); err != nil {
				t.Errorf("%v\n%s\n%s", err, out, found[1])
			}
		})
	}
}
