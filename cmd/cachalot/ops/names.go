package ops

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"
)

// maxNames bounds the input: the pods of a large cluster fit.
const maxNames = 256 << 20

// readNames finds image names in the output of kubectl get -o json, in a compose file, or in
// lines of text. notes say what was left out.
func readNames(r io.Reader, from string) (names, notes []string, err error) {
	b, err := io.ReadAll(io.LimitReader(r, maxNames+1))
	if err != nil {
		return nil, nil, errorf(Failed, "read %s: %w", from, err)
	}
	if len(b) > maxNames {
		return nil, nil, errorf(Usage, "%s: longer than %s", from, size(maxNames))
	}
	b = bytes.TrimSpace(bytes.TrimPrefix(b, []byte("\uFEFF")))
	switch {
	case bytes.HasPrefix(b, []byte("{")):
		names, notes, err = jsonNames(b)
	case isCompose(b):
		names, notes, err = composeNames(b)
	case isManifest(b):
		err = fmt.Errorf("this is YAML of Kubernetes; give JSON, as from kubectl get pods -o json")
	default:
		names, err = lineNames(b)
	}
	if err != nil {
		return nil, nil, errorf(Usage, "%s: %w", from, err)
	}
	for i := range notes {
		notes[i] = safe(from + ": " + notes[i])
	}
	return names, notes, nil
}

func isCompose(b []byte) bool { return regexp.MustCompile(`(?m)^services:`).Match(b) }

func isManifest(b []byte) bool {
	return regexp.MustCompile(`(?m)^apiVersion:`).Match(b) && regexp.MustCompile(`(?m)^kind:`).Match(b)
}

// kubeObject is a pod, an object that creates pods, or a list of these.
type kubeObject struct {
	Kind     string       `json:"kind"`
	Items    []kubeObject `json:"items"`
	Spec     *kubeSpec    `json:"spec"`
	Services any          `json:"services"` // of docker compose config --format json
}

type kubeSpec struct {
	InitContainers      []kubeContainer `json:"initContainers"`
	Containers          []kubeContainer `json:"containers"`
	EphemeralContainers []kubeContainer `json:"ephemeralContainers"`
	Template            *kubeObject     `json:"template"`    // of a Deployment, Job, ...
	JobTemplate         *kubeObject     `json:"jobTemplate"` // of a CronJob
}

type kubeContainer struct {
	Image string `json:"image"`
}

func jsonNames(b []byte) (names, notes []string, err error) {
	var o kubeObject
	if err := json.Unmarshal(b, &o); err != nil {
		return nil, nil, fmt.Errorf("read JSON: %w", err)
	}
	switch {
	case o.Kind != "":
		return o.images(nil), nil, nil
	case o.Services != nil:
		return composeNames(b) // JSON is YAML
	}
	return nil, nil, fmt.Errorf("this JSON is neither of Kubernetes nor of compose; give the output of kubectl get pods -o json")
}

func (o *kubeObject) images(names []string) []string {
	for i := range o.Items {
		names = o.Items[i].images(names)
	}
	if o.Spec == nil {
		return names
	}
	for _, c := range slices.Concat(o.Spec.InitContainers, o.Spec.Containers, o.Spec.EphemeralContainers) {
		if c.Image != "" {
			names = append(names, c.Image)
		}
	}
	for _, t := range []*kubeObject{o.Spec.Template, o.Spec.JobTemplate} {
		if t != nil {
			names = t.images(names)
		}
	}
	return names
}

func composeNames(b []byte) (names, notes []string, err error) {
	var file struct {
		Services map[string]struct {
			Image string `yaml:"image"`
			Build any    `yaml:"build"`
		} `yaml:"services"`
	}
	if err := yaml.Unmarshal(b, &file); err != nil {
		return nil, nil, fmt.Errorf("read a compose file: %w", err)
	}
	for _, name := range slices.Sorted(maps.Keys(file.Services)) {
		switch s := file.Services[name]; {
		case strings.Contains(s.Image, "$"):
			notes = append(notes, fmt.Sprintf("service %s is skipped: its image has a variable, %s; docker compose config replaces variables", name, s.Image))
		case s.Image != "":
			names = append(names, s.Image)
		case s.Build != nil:
			notes = append(notes, fmt.Sprintf("service %s is skipped: it is built, and names no image", name))
		default:
			notes = append(notes, fmt.Sprintf("service %s is skipped: it names no image", name))
		}
	}
	return names, notes, nil
}

// lineNames reads one name from each line; a # begins a comment.
func lineNames(b []byte) (names []string, err error) {
	n := 0
	for line := range strings.Lines(string(b)) {
		n++
		line, _, _ = strings.Cut(line, "#")
		switch words := strings.Fields(line); len(words) {
		case 0:
		case 1:
			names = append(names, words[0])
		default:
			return nil, fmt.Errorf("line %d: %q is not the name of an image; write one name a line", n, strings.TrimSpace(line))
		}
	}
	return names, nil
}
