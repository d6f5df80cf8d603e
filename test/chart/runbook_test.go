package chart

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// TestRunbooks: the commands of the alerts' runbooks, with the labels of a release, name what
// that release has: its StatefulSet, pod, container and labels, and commands of cachalot.
func TestRunbooks(t *testing.T) {
	page, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	_, alerts, _ := strings.Cut(string(page), "\n## Alerts\n")
	alerts, _, _ = strings.Cut(alerts, "\n## Change the configuration\n")
	r := render(t, "mirror", `{fullnameOverride: hub, nodes: {enabled: true}}`)
	set := statefulSet(t, r)
	p := newPod(t, r)
	known := strings.NewReplacer("NAMESPACE", namespace, "POD", set.Name+"-0", "JOB", set.Name, "UPSTREAM", "docker.io")
	commands := regexp.MustCompile(`(?m)^kubectl .*$`).FindAllString(alerts, -1)
	if len(commands) < 20 {
		t.Fatalf("%d commands", len(commands))
	}
	for _, command := range commands {
		command, _, _ = strings.Cut(known.Replace(command), " | ")
		outer, inner, _ := strings.Cut(command, " -- ")
		words := strings.Fields(outer)
		if i := slices.Index(words, "-n"); i < 0 || words[i+1] != namespace {
			t.Errorf("no namespace: %s", command)
		}
		if i := slices.Index(words, "-l"); i >= 0 {
			selector, err := labels.Parse(words[i+1])
			claim := slices.Contains(words, "pvc") && selector.Matches(labels.Set(set.Spec.VolumeClaimTemplates[0].Labels))
			if err != nil || !claim && !selector.Matches(labels.Set(set.Spec.Template.Labels)) && !selector.Matches(labels.Set(nodes(t, r).Spec.Template.Labels)) {
				t.Errorf("nothing has these labels: %s", command)
			}
		}
		switch verb := words[1]; verb {
		case "exec", "logs":
			of := slices.Contains(words, set.Name+"-0") || slices.Contains(words, "statefulset/"+set.Name) || slices.Contains(words, "-l")
			i := slices.Index(words, "-c")
			if !of || i < 0 || !slices.ContainsFunc(set.Spec.Template.Spec.Containers, func(c core.Container) bool { return c.Name == words[i+1] }) {
				t.Errorf("not of the mirror's container: %s", command)
			}
		case "get", "describe", "top":
		default:
			t.Errorf("an unknown verb: %s", command)
		}
		if inner == "" {
			continue
		}
		args, ours := strings.CutPrefix(inner, "/cachalot ")
		if !ours {
			t.Errorf("the image has nothing but cachalot: %s", command)
			continue
		}
		fields := strings.Fields(args)
		if fields[0] != "config" { // which reads a file; others ask a mirror that runs
			fields = append(fields, "--help")
		}
		if out, err := p.command(t, fields...).CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", command, err, out)
		}
	}
}
