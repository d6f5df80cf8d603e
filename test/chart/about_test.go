package chart

import (
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	sigsyaml "sigs.k8s.io/yaml"
)

const repository = "https://github.com/cachalot-registry/cachalot"

// TestAbout: what Chart.yaml tells Artifact Hub is true of the chart and the repository.
func TestAbout(t *testing.T) {
	about := loadChart(t).Metadata
	annotation := func(key string, into any) {
		if err := sigsyaml.UnmarshalStrict([]byte(about.Annotations["artifacthub.io/"+key]), into); err != nil {
			t.Errorf("%s: %v", key, err)
		}
	}
	var images []struct{ Name, Image string }
	annotation("images", &images)
	if image := statefulSet(t, render(t, "mirror", "")).Spec.Template.Spec.Containers[0].Image; len(images) != 1 || images[0].Name != "cachalot" || images[0].Image != image {
		t.Errorf("images %v, and the chart has %s", images, image)
	}
	var links []struct{ Name, URL string }
	annotation("links", &links)
	for _, l := range links {
		file, ok := strings.CutPrefix(l.URL, repository+"/blob/main/")
		if _, err := os.Stat(filepath.Join("../..", file)); l.Name == "" || !ok || err != nil {
			t.Errorf("link %v: %v", l, err)
		}
	}
	var changes []struct{ Kind, Description string }
	annotation("changes", &changes)
	for _, c := range changes {
		if !slices.Contains([]string{"added", "changed", "deprecated", "removed", "fixed", "security"}, c.Kind) || c.Description == "" {
			t.Errorf("change %v", c)
		}
	}
	if len(links) == 0 || len(changes) == 0 || about.Annotations["artifacthub.io/category"] != "integration-delivery" || about.Annotations["artifacthub.io/license"] != "Apache-2.0" {
		t.Errorf("annotations %v", about.Annotations)
	}
	if _, signed := about.Annotations["artifacthub.io/signKey"]; signed {
		t.Error("nothing is signed")
	}
	if about.Home != repository || !slices.Contains(about.Sources, repository) || about.KubeVersion == "" || len(about.Keywords) == 0 || len(about.Maintainers) == 0 {
		t.Errorf("%+v", about)
	}
	file, ok := strings.CutPrefix(about.Icon, "https://raw.githubusercontent.com/cachalot-registry/cachalot/main/")
	if !ok {
		t.Fatalf("the icon is at %s", about.Icon)
	}
	icon, err := os.Open(filepath.Join("../..", file))
	if err != nil {
		t.Fatal(err)
	}
	defer icon.Close()
	if root := rootElement(t, icon); root != "svg" {
		t.Errorf("the icon is a <%s>", root)
	}
}

// rootElement reads a whole XML document, and returns its first element.
func rootElement(t *testing.T, r io.Reader) string {
	t.Helper()
	root := ""
	for d := xml.NewDecoder(r); ; {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			return root
		}
		if err != nil {
			t.Fatal(err)
		}
		if e, ok := token.(xml.StartElement); ok && root == "" {
			root = e.Name.Local
		}
	}
}
