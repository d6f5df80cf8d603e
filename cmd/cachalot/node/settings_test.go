package node

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"
)

const (
	grpcTable   = `[plugins."io.containerd.grpc.v1.cri".registry]`
	imagesTable = `[plugins."io.containerd.cri.v1.images".registry]`
)

// settingsOf reads the configuration of a machine that has these files.
func settingsOf(t *testing.T, containerd string, files map[string]string) (settings, error) {
	t.Helper()
	root := t.TempDir()
	for name, content := range files {
		put(t, root, name, content, 0o644)
	}
	return readSettings(root, containerd)
}

// TestSettings_WithPath: containerd reads config_path in the table of its format, all else is
// unchanged, and withoutPath restores every byte.
func TestSettings_WithPath(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ file, containerd, want string }{
		"none, containerd 1":    {"", "1.7.35", "version = 2\n\n" + grpcTable},
		"none, containerd 2":    {"", "2.4.2", "version = 3\n\n" + imagesTable},
		"Debian's":              {"version = 2\n\n[plugins]\n  [plugins.\"io.containerd.grpc.v1.cri\"]\n    [plugins.\"io.containerd.grpc.v1.cri\".cni]\n      bin_dir = \"/usr/lib/cni\"\n", "1.6.20", grpcTable},
		"the default's":         {"version = 2\n[plugins.\"io.containerd.grpc.v1.cri\"]\n  sandbox_image = \"pause\"\n\n    [plugins.\"io.containerd.grpc.v1.cri\".registry]\n      config_path = \"\"\n\n      [plugins.\"io.containerd.grpc.v1.cri\".registry.mirrors]\n", "1.7.35", "config_path = "},
		"the default's, 2":      {"version = 3\n[plugins.'io.containerd.transfer.v1.local']\n  config_path = ''\n[plugins.'io.containerd.cri.v1.images'.registry]\n  config_path = ''\n", "2.0.14", "config_path = "},
		"a table without a key": {"version = 3\n[plugins.'io.containerd.cri.v1.images'.registry]\n[plugins.'io.containerd.cri.v1.images'.registry.headers]\n  User-Agent = ['x']\n", "2.1.9", "config_path = "},
		"no line break":         {"version = 3", "2.1.9", imagesTable},
		"a key without a break": {"version = 3\n[plugins.'io.containerd.cri.v1.images'.registry]\n  config_path = ''", "2.0.14", "config_path = "},
		"a header, no break":    {"version = 3\n[plugins.'io.containerd.cri.v1.images'.registry]", "2.0.14", "config_path = "},
		"version 4":             {"version = 4\nroot = '/x'\n", "2.4.2", imagesTable},
		"version 2, containerd 2": {
			"version = 2\n[plugins.\"io.containerd.grpc.v1.cri\"]\n  sandbox_image = \"pause\"\n", "2.1.9", grpcTable,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			files := map[string]string{}
			if tc.file != "" {
				files[settingsFile] = tc.file
			}
			s, err := settingsOf(t, tc.containerd, files)
			if err != nil {
				t.Fatal(err)
			}
			got, err := s.withPath("apps.mirror", "/etc/containerd/certs.d")
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(string(got), tc.want) {
				t.Errorf("no %s in\n%s", tc.want, got)
			}
			var values map[string]any
			if err := toml.Unmarshal(got, &values); err != nil {
				t.Fatalf("%v\n%s", err, got)
			}
			if path := subtable(values, "plugins", s.table, "registry")["config_path"]; path != "/etc/containerd/certs.d" {
				t.Errorf("config_path is %v in\n%s", path, got)
			}
			if after, err := withoutPath(got, "apps.mirror"); err != nil || string(after) != tc.file {
				t.Errorf("%v: it was\n%q and is\n%q", err, tc.file, after)
			}
		})
	}
}

// TestSettings_Refused: a configuration that a change could break, or that says something
// else, is left alone.
func TestSettings_Refused(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		files map[string]string
		want  string
	}{
		"version 1": {map[string]string{settingsFile: "[plugins.cri]\n"}, "containerd config migrate"},
		"mirrors":   {map[string]string{settingsFile: "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry.mirrors.\"docker.io\"]\n  endpoint = [\"https://mirror.gcr.io\"]\n"}, "registry.mirrors"},
		"a path":    {map[string]string{settingsFile: "version = 3\n[plugins.'io.containerd.cri.v1.images'.registry]\n  config_path = '/etc/containerd/hosts.d'\n"}, `config_path = "/etc/containerd/hosts.d"`},
		"an import": {map[string]string{
			settingsFile:                    "version = 2\nimports = [\"conf.d/*.toml\"]\n",
			"/etc/containerd/conf.d/a.toml": "[plugins.\"io.containerd.grpc.v1.cri\".registry]\n  config_path = '/srv'\n",
		}, `config_path = "/srv"`},
		"dotted keys": {map[string]string{settingsFile: "version = 2\nplugins.\"io.containerd.grpc.v1.cri\".registry.headers.a = ['b']\n"}, "no place for config_path"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, err := settingsOf(t, "1.7.35", tc.files)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := s.withPath("mirror", "/etc/containerd/certs.d"); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%v, want %q\n%s", err, tc.want, got)
			}
		})
	}
	if _, err := settingsOf(t, "1.7.35", map[string]string{settingsFile: "version: 2\n"}); err == nil || !strings.Contains(err.Error(), settingsFile) {
		t.Error(err)
	}
}

// TestSettings_Mend: what a person is told to write is what containerd reads.
func TestSettings_Mend(t *testing.T) {
	t.Parallel()
	for file, want := range map[string]string{"version = 2\n": "io.containerd.grpc.v1.cri", "version = 3\n": "io.containerd.cri.v1.images"} {
		s, err := settingsOf(t, "2.1.9", map[string]string{settingsFile: file})
		if err != nil {
			t.Fatal(err)
		}
		if got := s.mend("/srv/certs.d"); !strings.Contains(got, `config_path = "/srv/certs.d" in the table [plugins."`+want+`".registry] of `+settingsFile) {
			t.Error(got)
		}
	}
}

// TestRestoreSettings: the block of a killed process goes too, and the file keeps its
// permissions.
func TestRestoreSettings(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	before := "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\n  config_path = \"\"\n"
	put(t, root, settingsFile, before, 0o640)
	n, _ := newNode(t, Config{Root: root})
	if _, err := n.writeSettings("1.7.35", "/etc/containerd/certs.d"); err != nil {
		t.Fatal(err)
	}
	if got := tree(t, filepath.Join(root, "etc/containerd"))["config.toml"]; !strings.Contains(got, begin("apps.mirror")) {
		t.Errorf("%s", got)
	}
	other, _ := newNode(t, Config{Root: root})
	if err := other.restoreSettings(); err != nil {
		t.Error(err)
	}
	if got := tree(t, filepath.Join(root, "etc/containerd"))["config.toml"]; got != "-rw-r----- "+before {
		t.Errorf("%q, want %q", got, before)
	}
	if err := os.Remove(filepath.Join(root, settingsFile)); err != nil {
		t.Fatal(err)
	}
	if _, err := n.writeSettings("1.7.35", "/etc/containerd/certs.d"); err != nil {
		t.Fatal(err)
	}
	if err := n.restoreSettings(); err != nil {
		t.Error(err)
	}
	sameTree(t, "without a configuration", tree(t, filepath.Join(root, "etc/containerd")), map[string]string{})
}

// FuzzSettings: whatever the file is, a change of it can be taken back to the byte, and changes
// one value.
func FuzzSettings(f *testing.F) {
	f.Add("")
	f.Add("version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\n  config_path = \"\"\n")
	f.Add("version = 3\nimports = ['a']\n[plugins.'io.containerd.cri.v1.images'.registry]\nconfig_path = ''")
	f.Add("version = 3\nnote = \"\"\"\n[plugins.'io.containerd.cri.v1.images'.registry]\nconfig_path = ''\n\"\"\"\n")
	f.Fuzz(func(t *testing.T, before string) {
		if strings.Contains(before, "# cachalot one: ") {
			t.Skip("it has a block of this owner")
		}
		s, err := parseSettings([]byte(before), "2.1.9")
		if err != nil {
			return
		}
		got, err := s.withPath("one", "/srv")
		if err != nil {
			return
		}
		var values map[string]any
		if err := toml.Unmarshal(got, &values); err != nil || subtable(values, "plugins", s.table, "registry")["config_path"] != "/srv" {
			t.Errorf("%v\n%s", err, got)
		}
		if after, err := withoutPath(got, "one"); err != nil || string(after) != before {
			t.Errorf("%v: it was\n%q and is\n%q", err, before, after)
		}
	})
}
