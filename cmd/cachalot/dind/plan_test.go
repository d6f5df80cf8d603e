package dind

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/BurntSushi/toml"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	mirrorURL   = "http://mirror:5000"
	defaultFile = "/etc/docker/certs.d/_default/hosts.toml"
	itselfFile  = "/etc/docker/certs.d/mirror_5000_/hosts.toml"
	buildxFile  = "/root/.docker/buildx/buildkitd.default.toml"

	askedFirst  = "dockerd asks http://mirror:5000 first for images of all registries, then the registry itself"
	buildersAsk = "new builders of docker buildx ask http://mirror:5000 first for images of well-known registries: " + buildxFile
	hubFlag     = "--registry-mirror=http://mirror:5000"
	plainFlag   = "--insecure-registry=http://mirror:5000" // before dockerd 28
	overlay2    = "DOCKER_DRIVER=overlay2"
	oldHub      = "dockerd asks http://mirror:5000 first for images of Docker Hub; dockerd 20.10.24 can mirror no other registry, 29 can"
	buildsAsk   = "builds ask http://mirror:5000 first for images of all registries, then the registry itself"
	hubOnly     = "warning: docker pull and docker run ask it for images of Docker Hub only: "
)

// usual are the files and log lines of a plan without special settings.
func usual(lines ...string) []string {
	return slices.Concat([]string{askedFirst}, lines, []string{buildersAsk})
}

// classic are the log lines for dockerd's classic image store.
func classic(lines ...string) []string {
	return slices.Concat([]string{buildsAsk}, lines, []string{buildersAsk})
}

// scene is the input of one plan, and the expected result.
type scene struct {
	name    string
	args    []string
	env     []string // CACHALOT_MIRROR is added unless it is set here
	uid     int
	version string            // of dockerd; "": 29.7.2
	there   map[string]string // existing files

	wantArgs  []string
	wantEnv   map[string]string // changed variables; "": removed
	wantFiles map[string]string // path: a part of the content
	wantLog   []string
}

func (s scene) input(t *testing.T) Input {
	t.Helper()
	root := Root(t.TempDir())
	for path, content := range s.there {
		put(t, root, path, content)
	}
	env := environ{"PATH=/bin", "LAST=1"}
	if !slices.ContainsFunc(s.env, func(v string) bool { return strings.HasPrefix(v, mirrorVariable+"=") }) {
		env = env.with(mirrorVariable, mirrorURL)
	}
	v := "29.7.2"
	if s.version != "" {
		v = s.version
	}
	in := Input{
		Args: s.args, Env: append(env, s.env...), UID: s.uid, Home: "/root", Root: root,
		Version: parseVersion(v), Registries: []string{hub, "quay.io"},
	}
	if s.uid != 0 {
		in.Home = "/home/me"
	}
	return in
}

func put(t *testing.T, root Root, path, content string) {
	t.Helper()
	file := root.at(path)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if strings.HasSuffix(path, "/") {
		if err := os.Mkdir(file, 0o755); err != nil {
			t.Fatal(err)
		}
		return
	}
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (s scene) check(t *testing.T) {
	t.Helper()
	in := s.input(t)
	plan, err := NewPlan(in)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(plan.Args, s.wantArgs) {
		t.Errorf("args:\n got %q\nwant %q", plan.Args, s.wantArgs)
	}
	if got, want := changes(in.Env, plan.Env), s.wantEnv; !maps.Equal(got, want) {
		t.Errorf("changes of the environment:\n got %q\nwant %q", got, want)
	}
	if got, want := strings.Join(plan.Log, "\n"), strings.Join(s.wantLog, "\n"); got != want {
		t.Errorf("log:\n got %s\nwant %s", got, want)
	}
	if s.wantFiles == nil {
		return
	}
	var paths []string
	for _, f := range plan.Files {
		paths = append(paths, f.Path)
		if strings.HasSuffix(f.Path, ".toml") {
			var v map[string]any
			if err := toml.Unmarshal(f.Content, &v); err != nil {
				t.Errorf("%s: %v", f.Path, err)
			}
		}
		if want := s.wantFiles[f.Path]; !strings.Contains(string(f.Content), want) {
			t.Errorf("%s lacks %q:\n%s", f.Path, want, f.Content)
		}
		if !f.Append && strings.HasSuffix(f.Path, ".toml") && !strings.HasPrefix(string(f.Content), marker) {
			t.Errorf("%s has no marker:\n%s", f.Path, f.Content)
		}
	}
	slices.Sort(paths)
	if want := slices.Sorted(maps.Keys(s.wantFiles)); !slices.Equal(paths, want) {
		t.Errorf("files:\n got %q\nwant %q", paths, want)
	}
}

// changes returns the variables that differ; removed ones have "".
func changes(before, after environ) map[string]string {
	var changed map[string]string
	set := func(name, value string) {
		if changed == nil {
			changed = make(map[string]string)
		}
		changed[name] = value
	}
	for _, v := range slices.Concat(before, after) {
		name, _, _ := strings.Cut(v, "=")
		if old, now := before.get(name), after.get(name); old != now {
			set(name, now)
		}
	}
	return changed
}

func checkAll(t *testing.T, scenes []scene) {
	t.Helper()
	for _, s := range scenes {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			s.check(t)
		})
	}
}

func TestArguments(t *testing.T) {
	t.Parallel()
	files := map[string]string{defaultFile: `[host."http://mirror:5000"]`, itselfFile: `server = "http://mirror:5000"`, buildxFile: "http = true"}
	builders := map[string]string{buildxFile: ""}
	checkAll(t, []scene{
		{name: "none", wantArgs: []string{hubFlag}, wantFiles: files, wantLog: usual()},
		{name: "flags", args: []string{"-D", "--tls=false"}, wantArgs: []string{"-D", "--tls=false", hubFlag}, wantFiles: files, wantLog: usual()},
		{name: "dockerd", args: []string{"dockerd"}, wantArgs: []string{"dockerd", hubFlag}, wantFiles: files, wantLog: usual()},
		{
			name: "dockerd with flags", args: []string{"dockerd", "--host=unix:///var/run/docker.sock", "--group=123"},
			wantArgs: []string{"dockerd", "--host=unix:///var/run/docker.sock", "--group=123", hubFlag}, wantFiles: files, wantLog: usual(),
		},
		{
			name: "entrypoint as a command", args: []string{"dockerd-entrypoint.sh", "-D"},
			wantArgs: []string{"dockerd-entrypoint.sh", "-D", hubFlag}, wantFiles: files, wantLog: usual(),
		},
		{name: "entrypoint and dockerd", args: []string{"dockerd-entrypoint.sh", "/usr/local/bin/dockerd"}, wantArgs: []string{"dockerd-entrypoint.sh", "/usr/local/bin/dockerd", hubFlag}, wantFiles: files, wantLog: usual()},
		{name: "flags end", args: []string{"-D", "--"}, wantArgs: []string{"-D", hubFlag, "--"}, wantFiles: files, wantLog: usual()},
		{name: "dashes as a value", args: []string{"dockerd", "--data-root", "--"}, wantArgs: []string{"dockerd", "--data-root", "--", hubFlag}, wantFiles: files, wantLog: usual()},
		{name: "command", args: []string{"sh", "-c", "docker info"}, wantArgs: []string{"sh", "-c", "docker info"}, wantFiles: builders, wantLog: []string{buildersAsk}},
		{name: "docker", args: []string{"docker", "--registry-mirror=x"}, wantArgs: []string{"docker", "--registry-mirror=x"}, wantFiles: builders, wantLog: []string{buildersAsk}},
		{name: "empty command", args: []string{""}, wantArgs: []string{""}, wantFiles: builders, wantLog: []string{buildersAsk}},
		{
			name: "value missing", args: []string{"--registry-mirror"}, wantArgs: []string{"--registry-mirror"}, wantFiles: builders,
			wantLog: []string{"warning: nothing is set up, and dockerd will not start: read dockerd's flags: flag needs an argument: --registry-mirror", buildersAsk},
		},
	})
}

func TestNoMirror(t *testing.T) {
	t.Parallel()
	const line = "CACHALOT_MIRROR is not set, so nothing is changed; write the mirror's URL there, such as http://cachalot.example:5000"
	for _, args := range [][]string{nil, {"-D"}, {"sh"}} {
		in := Input{Args: args, Env: []string{"DOCKER_DRIVER=overlay2", "CACHALOT_DIRECT=!", "HTTP_PROXY=http://proxy"}, Root: Root(t.TempDir())}
		plan, err := NewPlan(in)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(plan.Args, args) || !slices.Equal(plan.Env, in.Env) || plan.Files != nil || plan.probe != nil || !slices.Equal(plan.Log, []string{line}) {
			t.Errorf("%q: %+v", args, plan)
		}
	}
}

func TestRegistryMirror(t *testing.T) {
	t.Parallel()
	const json = "/etc/docker/daemon.json"
	unused := usual()
	unused = slices.Insert(unused, 0, "warning: the registry mirrors among the arguments are not asked: hosts.toml counts in their place")
	unusedJSON := usual()
	unusedJSON = slices.Insert(unusedJSON, 0, "warning: the registry mirrors in /etc/docker/daemon.json are not asked: hosts.toml counts in their place")
	checkAll(t, []scene{
		{name: "argument", args: []string{"--registry-mirror=http://other"}, wantArgs: []string{"--registry-mirror=http://other"}, wantLog: unused},
		{name: "two arguments", args: []string{"dockerd", "--registry-mirror", "http://other"}, wantArgs: []string{"dockerd", "--registry-mirror", "http://other"}, wantLog: unused},
		{name: "the same", args: []string{"--registry-mirror", "http://mirror:5000/"}, wantArgs: []string{"--registry-mirror", "http://mirror:5000/"}, wantLog: usual()},
		{name: "behind the flags' end", args: []string{"--", "--registry-mirror=x"}, wantArgs: []string{hubFlag, "--", "--registry-mirror=x"}, wantLog: usual()},
		{name: "value of another", args: []string{"--data-root", "--registry-mirror=x"}, wantArgs: []string{"--data-root", "--registry-mirror=x", hubFlag}, wantLog: usual()},
		{name: "daemon.json", there: map[string]string{json: `{"registry-mirrors": ["http://other"]}`}, wantLog: unusedJSON},
		{name: "daemon.json with none", there: map[string]string{json: `{"registry-mirrors": []}`}, wantLog: unusedJSON},
		{name: "daemon.json with the same", there: map[string]string{json: `{"registry-mirrors": ["http://other", "http://mirror:5000"]}`}, wantLog: usual()},
		{name: "daemon.json without", there: map[string]string{json: "\ufeff {\"debug\": true}\n"}, wantArgs: []string{hubFlag}, wantLog: usual()},
		{name: "empty daemon.json", there: map[string]string{json: "\n"}, wantArgs: []string{hubFlag}, wantLog: usual()},
		{
			name: "daemon.json elsewhere", args: []string{"--config-file", "/d.json"}, there: map[string]string{"/d.json": `{"registry-mirrors": ["http://mirror:5000"]}`, json: `{"mtu": 9}`},
			wantArgs: []string{"--config-file", "/d.json"}, wantLog: usual(),
		},
		{name: "no daemon.json", args: []string{"--config-file="}, there: map[string]string{json: `{"registry-mirrors": []}`}, wantArgs: []string{"--config-file=", hubFlag}, wantLog: usual()},
		{
			name: "rootless daemon.json", uid: 1000, there: map[string]string{"/home/me/.config/docker/daemon.json": `{"registry-mirrors": ["http://mirror:5000"]}`},
			wantLog: []string{askedFirst, strings.ReplaceAll(buildersAsk, "/root", "/home/me")},
		},
		{
			name: "garbled daemon.json", there: map[string]string{json: `{"registry-mirrors": `}, wantArgs: []string{hubFlag},
			wantLog: slices.Insert(usual(), 0, "warning: dockerd will not start: read /etc/docker/daemon.json: unexpected end of JSON input"),
		},
		{
			name: "daemon.json of another type", there: map[string]string{json: `{"registry-mirrors": "http://other"}`}, wantArgs: []string{hubFlag},
			wantLog: slices.Insert(usual(), 0, "warning: dockerd will not start: read /etc/docker/daemon.json: json: cannot unmarshal string into Go struct field daemonJSON.registry-mirrors of type []string"),
		},
		{
			name: "old, argument", version: "20.10.24", args: []string{"--registry-mirror=http://other"}, wantArgs: []string{"--registry-mirror=http://other"},
			wantLog: []string{
				"warning: the registry mirrors among the arguments stay, and are asked for Docker Hub; add http://mirror:5000 there",
				"warning: dockerd does not ask http://mirror:5000", buildersAsk,
			},
		},
		{
			name: "insecure already, old", version: "27.5.1", args: []string{"--insecure-registry=http://mirror:5000"},
			wantArgs: []string{"--insecure-registry=http://mirror:5000", hubFlag}, wantLog: []string{strings.Replace(oldHub, "20.10.24", "27.5.1", 1), buildersAsk},
		},
		{
			name: "insecure in daemon.json already, old", version: "20.10.24", there: map[string]string{json: `{"insecure-registries": ["http://mirror:5000"]}`},
			wantArgs: []string{hubFlag}, wantLog: []string{oldHub, buildersAsk},
		},
		{
			name: "others insecure in daemon.json, old", version: "20.10.24", there: map[string]string{json: `{"insecure-registries": ["mirror:5000"]}`},
			wantArgs: []string{hubFlag},
			wantLog: []string{
				"warning: builds with BuildKit do not ask the mirror: add http://mirror:5000 to insecure-registries in /etc/docker/daemon.json",
				oldHub, buildersAsk,
			},
		},
		{
			name: "path, old", version: "24.0.7", env: []string{"CACHALOT_MIRROR=https://mirror/below"},
			wantLog: []string{
				"warning: dockerd 24.0.7 allows no mirror with a path; write a URL without one, or use a base image of 24.0.8 or later",
				"warning: dockerd does not ask https://mirror/below",
				"warning: new builders of docker buildx do not ask the mirror: BuildKit puts a path after /v2; write a URL without one",
			},
		},
		{
			name: "path", version: "24.0.8", env: []string{"CACHALOT_MIRROR=https://mirror/below/"}, wantArgs: []string{"--registry-mirror=https://mirror/below"},
			wantLog: []string{
				"dockerd asks https://mirror/below first for images of Docker Hub; dockerd 24.0.8 can mirror no other registry, 29 can",
				"warning: new builders of docker buildx do not ask the mirror: BuildKit puts a path after /v2; write a URL without one",
			},
		},
		{
			name: "Docker Hub direct", env: []string{"CACHALOT_DIRECT=index.docker.io"},
			wantLog: usual("images of docker.io (CACHALOT_DIRECT) are pulled without it"),
		},
		{
			name: "Docker Hub direct, old", version: "20.10.24", env: []string{"CACHALOT_DIRECT=docker.io"},
			wantLog: []string{"warning: dockerd does not ask http://mirror:5000", buildersAsk},
		},
	})
}
