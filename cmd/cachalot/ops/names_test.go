package ops

import (
	"slices"
	"strings"
	"testing"
)

// The output of kubectl get pods -o json, without most fields.
const kubectlPods = `{
    "apiVersion": "v1",
    "items": [
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "web-7d4b9c6f5-x2x9k", "namespace": "shop", "annotations": {"note": "services:\nimage: not/one"}},
            "spec": {
                "containers": [{"image": "ghcr.io/acme/web:v12", "imagePullPolicy": "IfNotPresent", "name": "web"}],
                "ephemeralContainers": [{"image": "busybox:1.37", "name": "debugger-1"}],
                "initContainers": [{"image": "ghcr.io/acme/migrate@sha256:0000000000000000000000000000000000000000000000000000000000000001", "name": "migrate"}]
            },
            "status": {"containerStatuses": [{"image": "ghcr.io/acme/web:v12", "imageID": "ghcr.io/acme/web@sha256:1"}]}
        },
        {"apiVersion": "v1", "kind": "Pod", "metadata": {}, "spec": {"containers": [{"image": "registry.k8s.io/pause:3.10", "name": "pause"}]}}
    ],
    "kind": "List",
    "metadata": {"resourceVersion": ""}
}`

func TestReadNames(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, text string
		want       []string
		notes      []string
		err        string
	}{
		{
			"pods", kubectlPods,
			[]string{"ghcr.io/acme/migrate@sha256:0000000000000000000000000000000000000000000000000000000000000001", "ghcr.io/acme/web:v12", "busybox:1.37", "registry.k8s.io/pause:3.10"},
			nil, "",
		},
		{"one pod", `{"kind": "Pod", "spec": {"containers": [{"image": "a"}]}}`, []string{"a"}, nil, ""},
		{"no pods", `{"apiVersion": "v1", "items": [], "kind": "List"}`, nil, nil, ""},
		{
			"what makes pods", `{"kind": "List", "items": [
				{"kind": "Deployment", "spec": {"replicas": 2, "template": {"spec": {"containers": [{"image": "a:1"}]}}}},
				{"kind": "CronJob", "spec": {"jobTemplate": {"spec": {"template": {"spec": {"containers": [{"image": "b:2"}]}}}}}},
				{"kind": "Service", "spec": {"ports": []}}]}`,
			[]string{"a:1", "b:2"},
			nil, "",
		},
		{
			"compose", `# the shop
x-common: &common
  restart: always
  image: postgres:17
services:
  db:
    <<: *common
  web: {image: "nginx:1.29", build: .}
  app:
    build: {context: ./app}
  worker:
    image: "${REGISTRY:-docker.io}/acme/worker:$TAG"
  none: {command: "true"}
volumes: {data: {}}
`,
			[]string{"postgres:17", "nginx:1.29"},
			[]string{
				"x: service app is skipped: it is built, and names no image",
				"x: service none is skipped: it names no image",
				"x: service worker is skipped: its image has a variable, ${REGISTRY:-docker.io}/acme/worker:$TAG; docker compose config replaces variables",
			},
			"",
		},
		{"compose as JSON", `{"name": "shop", "services": {"db": {"image": "postgres:17", "networks": {"default": null}}}}`, []string{"postgres:17"}, nil, ""},
		{"lines", "\uFEFF# ours\r\nalpine:3.22\r\n\r\n  ghcr.io/acme/app:v1  # the app\n#nginx\nbusybox", []string{"alpine:3.22", "ghcr.io/acme/app:v1", "busybox"}, nil, ""},
		{"nothing", " \n", nil, nil, ""},
		{"two on a line", "alpine\nbusybox nginx\n", nil, nil, `x: line 2: "busybox nginx" is not the name of an image; write one name a line`},
		{"hostile line", "alpine\n\x1b[2J x\n", nil, nil, `x: line 2: "\x1b[2J x" is not the name of an image; write one name a line`},
		{"other JSON", `{"images": ["alpine"]}`, nil, nil, "x: this JSON is neither of Kubernetes nor of compose; give the output of kubectl get pods -o json"},
		{"broken JSON", `{"kind": "List", `, nil, nil, "x: read JSON: unexpected end of JSON input"},
		{"manifest", "apiVersion: v1\nkind: Pod\nspec: {}\n", nil, nil, "x: this is YAML of Kubernetes; give JSON, as from kubectl get pods -o json"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			got, notes, err := readNames(strings.NewReader(test.text), "x")
			if !slices.Equal(got, test.want) || !slices.Equal(notes, test.notes) || (err == nil) != (test.err == "") || err != nil && err.Error() != test.err {
				t.Errorf("%q, %q, %v", got, notes, err)
			}
		})
	}
}

func FuzzReadNames(f *testing.F) {
	f.Add(kubectlPods)
	f.Add("services:\n  a: {image: b}\n")
	f.Add("alpine # a\nb")
	f.Fuzz(func(t *testing.T, text string) {
		names, notes, err := readNames(strings.NewReader(text), "x")
		if err != nil && safe(err.Error()) != err.Error() {
			t.Errorf("%q", err)
		}
		for _, note := range notes {
			if safe(note) != note {
				t.Errorf("%q", note)
			}
		}
		_ = names // the API validates names
	})
}
