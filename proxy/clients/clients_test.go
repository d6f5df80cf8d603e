package clients

import (
	"encoding/json"
	"errors"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/BurntSushi/toml"
)

func exampleSettings() Settings {
	return Settings{
		Mirror: "https://cachalot.example:5000", CAFile: "/etc/ssl/our ca.pem", CA: []byte("-----BEGIN CERTIFICATE-----\n"),
		Registries: []string{"docker.io", "quay.io", "registry.example:8443"},
	}
}

// everything is the configuration of a client in one text.
func everything(t *testing.T, c Client, s Settings) string {
	t.Helper()
	files, err := c.Config(s)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, f := range files {
		if f.Use == "" || !strings.HasSuffix(f.Content, "\n") || strings.Contains(f.Content, "\n\n\n") || strings.Contains(f.Content, "no value") {
			t.Errorf("%s: a file not as files are: %+v", f.Path, f)
		}
		parses(t, f)
		b.WriteString(f.Path + "\n" + f.Content)
	}
	return b.String()
}

// parses reads JSON and TOML; the command's tests read YAML.
func parses(t *testing.T, f File) {
	t.Helper()
	var v map[string]any
	var err error
	switch path.Ext(f.Path) {
	case ".json":
		err = json.Unmarshal([]byte(f.Content), &v)
	case ".toml", ".conf":
		_, err = toml.Decode(f.Content, &v)
	default:
		return
	}
	if err != nil || len(v) == 0 {
		t.Errorf("%s: %v\n%s", f.Path, err, f.Content)
	}
}

// Every client's configuration has the mirror, and each registry that it can mirror or a wildcard.
func TestConfig(t *testing.T) {
	t.Parallel()
	wildcards := map[string]string{"docker": "_default", "gitlab-ci": "_default", "containerd": "_default", "kind": "_default", "k3s": `"*"`, "talos": `"*"`}
	for _, c := range All() {
		t.Run(c.Name, func(t *testing.T) {
			t.Parallel()
			for _, mirror := range []string{"http://cachalot.example:5000", "https://cachalot.example:5000", "https://cachalot.example", "http://10.0.0.1", "https://[2001:db8::1]:5000"} {
				s := exampleSettings()
				s.Mirror = mirror
				_, host, _ := strings.Cut(mirror, "://")
				plain := strings.HasPrefix(mirror, "http:")
				if plain {
					s.CAFile, s.CA = "", nil
				}
				one := everything(t, c, s)
				if !strings.Contains(one, host) {
					t.Errorf("no mirror %s in\n%s", host, one)
				}
				if s.CAFile != "" && c.Name != "talos" && c.Name != "drone" && !strings.Contains(one, s.CAFile) {
					t.Errorf("no CA in\n%s", one)
				}
				for _, name := range s.Registries {
					if c.Name == "drone" {
						break // drone mirrors Docker Hub only, and does not name it
					}
					if hostsForm := strings.ReplaceAll(name, ":8443", "_8443_"); !strings.Contains(one, name) && !strings.Contains(one, hostsForm) {
						t.Errorf("no %s in\n%s", name, one)
					}
				}
				s.All = true
				all := everything(t, c, s)
				if w := wildcards[c.Name]; w != "" && (!strings.Contains(all, w) || strings.Contains(all, "quay.io")) {
					t.Errorf("for all registries:\n%s", all)
				}
			}
		})
	}
}

// TestConfig_PortsInPaths: a path in an image's name has no port in it.
func TestConfig_PortsInPaths(t *testing.T) {
	t.Parallel()
	for _, c := range All() {
		if c.Name != "podman" && c.Name != "kaniko" && c.Name != "buildkit" {
			continue
		}
		text := everything(t, c, exampleSettings())
		if strings.Contains(text, "/registry.example:8443") || !strings.Contains(text, "cachalot.example:5000/registry.example.8443") {
			t.Errorf("%s:\n%s", c.Name, text)
		}
	}
}

// If the mirror's default is another registry, the URL names Docker Hub.
func TestConfig_AnotherDefault(t *testing.T) {
	t.Parallel()
	for _, c := range All() {
		s := exampleSettings()
		s.Default = "quay.io"
		got := everything(t, c, s)
		hub := strings.Contains(got, `"https://cachalot.example:5000/docker.io"`)
		if want := slices.Contains([]string{"docker", "drone", "gitlab-ci", "github-actions"}, c.Name); hub != want {
			t.Errorf("%s: %t in\n%s", c.Name, hub, got)
		}
	}
}

// Parts of the files, parsed as their clients parse them.
func TestConfig_Contents(t *testing.T) {
	t.Parallel()
	files := map[string]string{}
	for _, c := range All() {
		got, err := c.Config(Settings{Mirror: "http://m:5000/", Registries: []string{"docker.io", "quay.io", "docker.io", "m:5000"}})
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range got {
			files[c.Name+" "+f.Path] += f.Content
		}
	}
	for name, want := range map[string]string{
		"docker /etc/docker/daemon.json":                         "{\n  \"registry-mirrors\": [\"http://m:5000\"]\n}\n",
		"buildkit /etc/buildkit/buildkitd.toml":                  "[registry.\"docker.io\"]\n  mirrors = [\"m:5000/docker.io\"]\n[registry.\"quay.io\"]\n  mirrors = [\"m:5000/quay.io\"]\n[registry.\"m:5000\"]\n  http = true\n",
		"podman /etc/containers/registries.conf.d/cachalot.conf": "[[registry]]\nlocation = \"docker.io\"\n[[registry.mirror]]\nlocation = \"m:5000/docker.io\"\ninsecure = true\n\n[[registry]]\nlocation = \"quay.io\"\n[[registry.mirror]]\nlocation = \"m:5000/quay.io\"\ninsecure = true\n",
		"k3s /etc/rancher/k3s/registries.yaml":                   "mirrors:\n  \"docker.io\":\n    endpoint:\n      - \"http://m:5000/v2\"\n  \"quay.io\":\n    endpoint:\n      - \"http://m:5000/v2\"\n",
		"kaniko ": "/kaniko/executor \\\n  --registry-map='index.docker.io=m:5000/m:5000/docker.io;quay.io=m:5000/m:5000/quay.io' \\\n  --insecure-registry='m:5000'\n" +
			"export KANIKO_REGISTRY_MAP='index.docker.io=m:5000/m:5000/docker.io;quay.io=m:5000/m:5000/quay.io'\n",
		"containerd /etc/containerd/certs.d/quay.io/hosts.toml": "# The mirror is asked first; if it fails, the registry itself is.\n[host.\"http://m:5000\"]\n  capabilities = [\"pull\", \"resolve\"]\n  dial_timeout = \"2s\"\n",
	} {
		if files[name] != want {
			t.Errorf("%s:\n%s\nwant\n%s", name, files[name], want)
		}
	}
}

func TestNamed_EachClient(t *testing.T) {
	t.Parallel()
	for _, c := range All() {
		if got, ok := Named(c.Name); !ok || got.Title != c.Title {
			t.Errorf("%s: %v, %t", c.Name, got, ok)
		}
	}
	if got, ok := Named("dokcer"); ok {
		t.Errorf("a client of no such name: %v", got)
	}
}

func TestConfig_Refusals(t *testing.T) {
	t.Parallel()
	set := func(change func(*Settings)) Settings {
		s := exampleSettings()
		change(&s)
		return s
	}
	mirror := func(url string) Settings { return set(func(s *Settings) { s.Mirror = url }) }
	for name, tc := range map[string]struct {
		client   string
		settings Settings
		want     string // the invalid setting
	}{
		"no mirror":          {"docker", mirror(""), "mirror"},
		"no scheme":          {"docker", mirror("cachalot.example:5000"), "mirror"},
		"another scheme":     {"docker", mirror("ftp://cachalot.example"), "mirror"},
		"a quote":            {"docker", mirror(`https://a"b`), "mirror"},
		"a quote in a path":  {"docker", mirror(`https://a/"b`), "mirror"},
		"a line break":       {"docker", mirror("https://a/%0ab"), "mirror"},
		"port 0":             {"docker", mirror("https://a:0"), "mirror"},
		"no port":            {"docker", mirror("https://a:"), "mirror"},
		"a zone":             {"docker", mirror("https://[fe80::1%25eth0]"), "mirror"},
		"a user":             {"docker", mirror("https://user:secret@a"), "mirror"},
		"a query":            {"docker", mirror("https://a/?ns=x"), "mirror"},
		"v2":                 {"docker", mirror("https://a/v2/"), "mirror"},
		"a path":             {"podman", mirror("https://a/path"), "mirror"},
		"a path in BuildKit": {"buildkit", mirror("https://a/path"), "mirror"},
		"CA over http":       {"docker", mirror("http://a"), "ca"},
		"CA not absolute":    {"docker", set(func(s *Settings) { s.CAFile = "ca.pem" }), "ca"},
		"CA with a quote":    {"docker", set(func(s *Settings) { s.CAFile = "/ca'.pem" }), "ca"},
		"CA not read":        {"talos", set(func(s *Settings) { s.CA = nil }), "ca"},
		"no registry":        {"docker", set(func(s *Settings) { s.Registries = nil }), "registry"},
		"only the mirror":    {"docker", set(func(s *Settings) { s.Registries = []string{"cachalot.example:5000"} }), "registry"},
		"a registry's URL":   {"docker", set(func(s *Settings) { s.Registries = []string{"https://quay.io"} }), "registry"},
		"up and away":        {"docker", set(func(s *Settings) { s.Registries = []string{"../../etc"} }), "registry"},
		"not Docker Hub":     {"drone", set(func(s *Settings) { s.Registries = []string{"quay.io"} }), "registry"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, ok := Named(tc.client)
			if !ok {
				t.Fatalf("no client %s", tc.client)
			}
			files, err := c.Config(tc.settings)
			wrong, ok := errors.AsType[*SettingError](err)
			if !ok || wrong.Setting != tc.want || wrong.Reason == "" || files != nil {
				t.Errorf("%v, %v; want an error about %s", files, err, tc.want)
			}
			if err != nil && strings.Contains(err.Error(), "secret") {
				t.Errorf("the error tells a secret: %v", err)
			}
		})
	}
}

// Valid settings give files that parse and contain nothing else.
func FuzzConfig(f *testing.F) {
	for _, mirror := range []string{"http://m:5000", "https://[::1]", "https://m/a/b/", "https://m/\"\n[x]", "http://m#"} {
		f.Add(mirror, "/ca.pem", "docker.io")
	}
	f.Add("https://m", "/a b/c@+-.pem", "quay.io:443")
	f.Add("https://m", "/a\\b", "a'b")
	f.Add("http://0", "0", "0") // the registry is the mirror
	clients := All()
	f.Fuzz(func(t *testing.T, mirror, ca, registry string) {
		for _, s := range []Settings{
			{Mirror: mirror, CAFile: ca, CA: []byte(ca), Registries: []string{registry}},
			{Mirror: mirror, Registries: []string{registry}},
		} {
			for _, c := range clients {
				files, err := c.Config(s)
				if err != nil {
					if _, ok := errors.AsType[*SettingError](err); !ok {
						t.Fatalf("%s: %v", c.Name, err)
					}
					continue
				}
				for _, f := range files {
					parses(t, f)
				}
			}
		}
	})
}
