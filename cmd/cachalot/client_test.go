package main

import (
	"encoding/base64"
	"path"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"

	"github.com/cachalot-registry/cachalot/proxy/clients"
)

// YAML configurations parse strictly, and contain the values that they should.
func TestClientsYAML(t *testing.T) {
	t.Parallel()
	const mirror, ca = "https://[2001:db8::1]:5000", "/etc/ssl/our ca.pem"
	want := map[string]any{ // by client: a path of keys, and its value
		"k3s mirrors * endpoint":             []any{mirror + "/v2"},
		"k3s configs [2001:db8::1]:5000 tls": map[string]any{"ca_file": ca},
		"talos machine registries mirrors *": map[string]any{"endpoints": []any{mirror}},
		"drone steps":                        []any{map[string]any{"name": "image", "image": "plugins/docker", "settings": map[string]any{"mirror": mirror}}},
		"gitlab-ci default services":         []any{map[string]any{"name": "docker:dind", "alias": "docker", "command": []any{"--registry-mirror", mirror}}},
		"kind kind":                          "Cluster",
		"woodpecker":                         nil,
		"github-actions":                     nil,
		"talos machine registries config":    map[string]any{"[2001:db8::1]:5000": map[string]any{"tls": map[string]any{"ca": base64.StdEncoding.EncodeToString([]byte("PEM"))}}},
	}
	toml := partOf(t, "buildkit", mirror, ca, ".toml")
	json := partOf(t, "docker", mirror, ca, ".json")
	read := map[string]map[string]any{}
	for _, c := range clients.All() {
		for _, f := range configure(t, c, mirror, ca) {
			if ext := path.Ext(f.Path); ext != ".yaml" && ext != ".yml" {
				continue
			}
			var v map[string]any
			if err := yaml.UnmarshalWithOptions([]byte(f.Content), &v, yaml.Strict()); err != nil {
				t.Errorf("%s: %v\n%s", f.Path, err, f.Content)
			}
			read[c.Name] = v
		}
	}
	for keys, value := range want {
		names := strings.Split(keys, " ")
		v, ok := any(read[names[0]]), read[names[0]] != nil
		for _, k := range names[1:] {
			var m map[string]any
			if m, ok = v.(map[string]any); ok {
				v, ok = m[k]
			}
			if !ok {
				break
			}
		}
		if !ok || value != nil && !equal(t, v, value) {
			t.Errorf("%s: %v, want %v", keys, v, value)
		}
	}
	steps := read["github-actions"]["steps"].([]any)
	if got := steps[0].(map[string]any)["with"].(map[string]any)["daemon-config"]; got != json {
		t.Errorf("GitHub's daemon.json is %q, want %q", got, json)
	}
	if got := steps[1].(map[string]any)["with"].(map[string]any)["buildkitd-config-inline"]; got != toml {
		t.Errorf("GitHub's buildkitd.toml is %q, want %q", got, toml)
	}
	step := read["woodpecker"]["steps"].([]any)[0].(map[string]any)
	// Only this setting: the plugin ignores "mirror" if this one is set.
	if got := step["settings"]; !equal(t, got, map[string]any{"buildkit_config": toml}) {
		t.Errorf("Woodpecker's settings are %q, want %q", got, toml)
	}
}

// equal compares two values as YAML.
func equal(t *testing.T, a, b any) bool {
	t.Helper()
	x, err := yaml.Marshal(a)
	if err != nil {
		t.Fatal(err)
	}
	y, err := yaml.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	return string(x) == string(y)
}

func configure(t *testing.T, c clients.Client, mirror, ca string) []clients.File {
	t.Helper()
	files, err := c.Config(clients.Settings{
		Mirror: mirror, CAFile: ca, CA: []byte("PEM"),
		Registries: []string{"docker.io", "quay.io", "registry.example:8443"}, All: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// partOf returns the file of a client whose name ends in ext.
func partOf(t *testing.T, client, mirror, ca, ext string) string {
	t.Helper()
	for _, c := range clients.All() {
		if c.Name != client {
			continue
		}
		for _, f := range configure(t, c, mirror, ca) {
			if path.Ext(f.Path) == ext {
				return f.Content
			}
		}
	}
	t.Fatalf("%s has no %s file", client, ext)
	return ""
}
